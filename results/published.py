"""Published numbers beside one's own: `published.json` holds them with their source."""

import functools
import json
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

from results.layout import ZERO_SHOT


@functools.cache
def facts() -> dict[str, Any]:
    """The content of `published.json`."""
    return json.loads(files("results").joinpath("published.json").read_text(encoding="utf-8"))


def published(protocol: str, trainer: str, cfg: str, backbone: str, shots: int) -> dict[str, Any] | None:
    """What was published for a recipe, or None.

    Args:
        protocol: `base2new`, `xd` or `dg`.
        trainer: registered name; compared without regard to case and `_`.
        cfg: name of the method's configuration file without its suffix.
        backbone: `MODEL.BACKBONE.NAME`.
        shots: training images per class; whatever it is for zero-shot.

    Returns:
        the entry of `published.json` with `results` narrowed to the trainer: data set (or `average`) -> accuracy, or
        [base, new] accuracy, in percent.
    """
    for entry in facts()["tables"]:
        found = {_bare(name): numbers for name, numbers in entry["results"].items()}.get(_bare(trainer))
        fits = any(fnmatchcase(cfg, pattern) for pattern in entry["cfg"])
        excluded = any(fnmatchcase(cfg, pattern) for pattern in entry.get("exclude", ()))
        same = entry["protocol"] == protocol and entry["backbone"].lower() == backbone.lower()
        if found and same and fits and not excluded and (shots == entry["shots"] or trainer.startswith(ZERO_SHOT)):
            return {**entry, "results": found}
    return None


def _bare(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
