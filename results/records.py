"""Stored runs: reading trees of `metrics.json`."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results import logs
from results.evidence import contradictions
from results.layout import ZERO_SHOT, RunDirectory, recognise

METRICS, FAILURE = "metrics.json", "failed.json"
SELECTIONS = ("none", "validation", "test")  # on which images, beside those of training, anything was chosen
OPEN_WORLD = (  # what evaluators of lists with other than trained classes add, in percent
    "base_accuracy", "new_accuracy", "harmonic_mean", "base_new_auroc", "openworld_auc",
    "mcm_auroc", "mcm_fpr95", "energy_auroc", "energy_fpr95",
)  # fmt: skip
NEEDED = ("trainer", "dataset", "seed", "accuracy")
DEEPEST = 30  # levels of nesting; a configuration has about five


@dataclass(frozen=True)
class Record:
    """One run as it lies on disk.

    Attributes:
        place: what its directory says.
        path: its directory.
        metrics: the content of `metrics.json`; empty unless the run is complete.
        problem: why its numbers are not to be averaged (`failed: ...`, `diverged: ...`, `unfinished`, `its record
            disagrees with ...`, `not averaged, for ...`); "" if they are.
    """

    place: RunDirectory
    path: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def learns(self) -> bool:
        """Whether the method learns anything; if not, every seed gives the same. Without metrics the name says."""
        return self.metrics.get("learns", not self.place.trainer.startswith(ZERO_SHOT))

    @property
    def accuracy(self) -> float:
        """Percent."""
        return float(self.metrics["accuracy"])


def _is(*kinds: type) -> Callable[[Any], bool]:
    """A test for values of these types; JSON's true and false are no numbers."""
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool)


def _between(low: float, high: float) -> Callable[[Any], bool]:
    number = _is(int, float)
    return lambda value: number(value) and low <= value <= high


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


TEXT, WHOLE, SECONDS, PERCENT = _is(str), _is(int), _between(0, math.inf), _between(0, 100)
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("trainer", "dataset", "subsample_classes", "backbone", "split", "created"), (TEXT, "text")),
    **dict.fromkeys(("seed", "shots"), (WHOLE, "a whole number")),
    **dict.fromkeys(
        ("epoch", "num_classes", "num_test", "num_train"),
        (lambda value: WHOLE(value) and value >= 0, "a whole number of at least 0"),
    ),
    **dict.fromkeys(("train_seconds", "eval_seconds"), (SECONDS, "a number of at least 0")),
    **dict.fromkeys(("accuracy", "error_rate", "macro_f1", *OPEN_WORLD), (PERCENT, "a number between 0 and 100")),
    "num_ood": (SECONDS, "a number of at least 0"),
    "transductive": (TEXT, "text"),
    **dict.fromkeys(("per_class", "history"), (_rows, "a list of objects")),
    **dict.fromkeys(("config", "checkpoint"), (_is(dict), "an object")),
    "predictions": (
        lambda value: isinstance(value, dict) and all(map(TEXT, value.values())),
        "an object of texts",
    ),
    **dict.fromkeys(
        ("backbone_digest", "split_hash", "full_split_hash", "test_images_hash", "train_images_hash", "recipe"),
        (TEXT, "text"),
    ),
    **dict.fromkeys(("support", "label_noise"), (TEXT, "text")),
    "wrong_labels": (lambda value: WHOLE(value) and value >= 0, "a whole number of at least 0"),
    "selection": (lambda value: value in SELECTIONS, f"one of {', '.join(SELECTIONS)}"),
    "learns": (lambda value: isinstance(value, bool), "true or false"),
}


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it cannot be read, is damaged, is nested deeper than any result is, or is no object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run the same line again") from error
    level = [content]
    for _ in range(DEEPEST):
        level = [value for item in level for value in _inside(item)]
        if not level:
            break
    else:
        raise ValueError(f"{path} is no result of a run: it is nested more than {DEEPEST} levels deep")
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no result of a run: it holds no object")
    return content


def _inside(item: Any) -> Iterable[Any]:
    """The values in a list or an object."""
    return item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def read_metrics(path: str | os.PathLike[str], needed: Sequence[str] = NEEDED) -> dict[str, Any]:
    """The content of a `metrics.json`; a field without a value (null) is left out.

    Args:
        path: the file.
        needed: fields that it has to have.

    Raises:
        ValueError: it is damaged, lacks a field that every table needs, or a field is not of its type or out of its
            range; the sentence names the file.
    """
    content = {key: value for key, value in read_object(path).items() if value is not None}
    missing = [key for key in needed if key not in content]
    if missing:
        raise ValueError(f"{path} is no result of a run: it has no {', '.join(missing)}")
    for name, (fits, what) in FIELDS.items():
        if name in content and not fits(content[name]):
            shown = repr(content[name])
            shown = f"{shown[:40]}..." if len(shown) > 40 else shown
            raise ValueError(f"{path} is no result of a run: {name} is {shown}, not {what}")
    return content


def divergence(metrics: Mapping[str, Any]) -> str:
    """Why the run counts as diverged, or "".

    It does if the loss of an epoch is not finite, or if the last epoch's mean loss is above twice the first epoch's
    (the first epoch is warm-up: its loss is about that of the untrained method) and above that of guessing.
    """
    losses = [row["loss"] for row in metrics.get("history", ()) if "loss" in row]
    strange = [i for i, loss in enumerate(losses, 1) if not _is(int, float)(loss) or not math.isfinite(loss)]
    if strange:
        return f"diverged: the loss of epoch {strange[0]} is not finite"
    guessing = math.log(max(metrics.get("num_classes", 1), 1))
    if len(losses) > 1 and losses[-1] > max(2 * losses[0], guessing):
        return f"diverged: the loss rose from {losses[0]:.4g} in epoch 1 to {losses[-1]:.4g} in epoch {len(losses)}"
    return ""


def read_run(
    directory: str | os.PathLike[str], from_logs: bool = False, place: RunDirectory | None = None
) -> Record | None:
    """The run in a directory, or None if none was begun there or the directory is of no known layout.

    Args:
        directory: of the run.
        from_logs: read a run without `metrics.json` from its `log.txt`: one of the code family, made elsewhere.
        place: what the directory is, where that is known and its name alone may not say it.
    """
    directory = os.path.abspath(directory)
    files = {entry.name for entry in os.scandir(directory)} if os.path.isdir(directory) else set()
    if not files & {METRICS, FAILURE, "log.txt"}:
        return None
    metrics, damage = _read_or_say(os.path.join(directory, METRICS)) if METRICS in files else ({}, "")
    learnless = metrics["trainer"] if metrics.get("learns") is False else ""
    place = recognise(Path(directory).as_posix(), learnless) or place
    if place is None:
        return None
    if METRICS in files:
        found = damage or contradictions(place, metrics) or divergence(metrics)
        return Record(place, directory, metrics, found)
    if FAILURE in files:
        return Record(place, directory, problem=": ".join(read_failure(os.path.join(directory, FAILURE))))
    return _from_log(place, directory) if from_logs else Record(place, directory, problem="unfinished")


def _read_or_say(path: str) -> tuple[dict[str, Any], str]:
    """The metrics in a file, and what is wrong with it."""
    try:
        return read_metrics(path), ""
    except ValueError as error:
        return {}, f"failed: {error}"


def _from_log(place: RunDirectory, directory: str) -> Record:
    """What the log of a run says: accuracy, macro F1 and the backbone, if its configuration was printed."""
    tested = not place.kind.trains or place.trainer.startswith(ZERO_SHOT)
    signals = logs.END_OF_TEST if tested else logs.END_OF_TRAINING
    found = logs.read_run(directory, "accuracy", signals)
    if found.value is None:
        return Record(place, directory, problem=f"{found.path}: {found.problem}")
    text = Path(found.path).read_text(encoding="utf-8", errors="replace")
    backbone = re.search(r"BACKBONE:\s*\n\s*NAME: (\S+)", text)
    metrics = {"accuracy": found.value, "backbone": backbone[1] if backbone else ""}
    macro_f1, _ = logs.read_log(found.path, "macro_f1", signals)
    if macro_f1 is not None:
        metrics["macro_f1"] = macro_f1
    return Record(place, directory, metrics)


def read_failure(path: str | os.PathLike[str]) -> tuple[str, str]:
    """What was written about a run that failed: "failed" or "diverged", and the reason; "" twice if nothing was."""
    if not os.path.isfile(path):
        return "", ""
    try:
        content = read_object(path)
        reason = str(content["reason"])
    except (ValueError, KeyError) as error:
        return "failed", f"{path} is unreadable ({error})"
    diverged = content.get("kind") == "diverged" or reason.startswith("FloatingPointError")
    return "diverged" if diverged else "failed", reason
