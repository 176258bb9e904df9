"""Published numbers beside one's own: `published.json` holds them with their source."""

import functools
import json
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

from results.layout import BENCHMARKS, ZERO_SHOT
from results.records import Record
from results.settings import settings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@functools.cache
def facts() -> dict[str, Any]:
    """The content of `published.json`."""
    return json.loads(files(__package__).joinpath("published.json").read_text(encoding="utf-8"))


def published(protocol: str, trainer: str, cfg: str, backbone: str, shots: int) -> list[dict[str, Any]]:
    """What was published for a recipe, the best known source first.

    Args:
        protocol: `base2new`, `xd`, `dg` or `fewshot`.
        trainer: registered name; compared without regard to case and `_`.
        cfg: name of the method's configuration file without its suffix.
        backbone: `MODEL.BACKBONE.NAME`.
        shots: training images per class; whatever it is for zero-shot.

    Returns:
        the entries of `published.json` with `results` narrowed to the trainer: data set (or `average`) -> accuracy, or
        [base, new] accuracy, in percent.
    """
    entries = []
    for entry in facts()["tables"]:
        found = {_bare(name): numbers for name, numbers in entry["results"].items()}.get(_bare(trainer))
        fits = any(fnmatchcase(cfg, pattern) for pattern in entry["cfg"])
        excluded = any(fnmatchcase(cfg, pattern) for pattern in entry.get("exclude", ()))
        same = entry["protocol"] == protocol and entry["backbone"].lower() == backbone.lower()
        if found and same and fits and not excluded and (shots == entry["shots"] or trainer.startswith(ZERO_SHOT)):
            entries.append({**entry, "results": found})
    return entries


def published_notes(entries: Iterable[Mapping[str, Any]], datasets: Collection[str]) -> list[str]:
    """Where published numbers come from, and what is wrong with those that a table of these data sets shows."""
    sources, doubts = [], []
    shown = {"all", *datasets, *(["average"] if set(datasets) == set(BENCHMARKS) else [])}
    for entry in entries:
        seeds = f" ({entry['seeds']} seeds)" if entry["seeds"] else ""
        sources.append(f"published: {entry['name']}{seeds}: {entry['source']}")
        for what, sentence in entry.get("notes", {}).items():
            where = [] if what == "all" else [what]
            doubts += [f"{', '.join(['published', entry['name'], *where])}: {sentence}"] if what in shown else []
    return [*sorted(set(sources)), *sorted(set(doubts))]


def _bare(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def departures(record: Record, free: Iterable[str] = ()) -> list[str]:
    """In what a run's settings differ from the configuration files that bear the names in its directory.

    Published numbers are for those files. Empty for a run whose settings are unknown (one that is known by its log).

    Args:
        record: the run.
        free: keys in which it may differ.

    Returns:
        `KEY of the file -> of the run`, one for each setting; or that there is no such file.
    """
    place, own = record.place, settings(record.metrics)
    if not own:
        return []
    files = sorted((CONFIGS / "trainers").glob(f"*/{place.cfg}.yaml"))
    files = [file for file in files if file.parent.name == place.trainer] or files
    if not files:
        return [f"there is no file {place.cfg}.yaml in configs/trainers"]
    found = [_differences(_shipped(file, place.dataset), own, record.learns, free) for file in files]
    return min(found, key=len)


def _differences(shipped: Mapping[str, Any], own: Mapping[str, Any], learns: bool, free: Iterable[str]) -> list[str]:
    """Settings that both have, with different values; INPUT keys at their default are filled from the backbone."""
    from dassl.config import get_cfg_default
    from dassl.engine.comparison import OF_A_PUBLICATION, OF_LEARNING, differences, flatten, to_dict

    ignored = [*OF_A_PUBLICATION, *free, *(() if learns else OF_LEARNING)]
    found = differences(own, shipped, ignored, flatten(to_dict(get_cfg_default())))
    return [f"{key} {as_shipped} -> {here}" for key, here, as_shipped in found]


@functools.cache
def _shipped(file: Path, dataset: str) -> dict[str, Any]:
    """The configuration that the files of a method and of a data set make, by dotted keys."""
    import datasets  # noqa: F401 - declares its keys
    import trainers  # noqa: F401 - declares its keys
    from adaptation.trainer import fill_known_input
    from dassl.config import declared_cfg, merge_file
    from dassl.engine.comparison import flatten, to_dict

    cfg = declared_cfg()
    given: set[str] = set()
    of_dataset = CONFIGS / "datasets" / f"{dataset}.yaml"
    for path in (of_dataset, file):
        if path.is_file():
            given.update(merge_file(cfg, str(path)))
    fill_known_input(cfg, given)
    return flatten(to_dict(cfg))
