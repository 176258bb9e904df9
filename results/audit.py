"""What does not agree with what in a tree of results: directories, records, logs, checkpoints, images, code."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from results import logs
from results.predictions import predictions_of, why_without
from results.records import METRICS, Record, read_metrics, read_run
from results.settings import SHOWN, only_comparable, settings
from results.tree import directories

REQUEST = "sweep.json"  # what a sweep asked of a run
HALF_A_DIGIT = 0.051  # logs round to one or two decimals

# What all runs share that have something in common: what it is called, and how the runs are grouped.
SHARED: dict[str, Callable[[Record], tuple]] = {
    "recipe": lambda record: ("trainer", record.place.trainer),
    "weights": lambda record: ("backbone", record.metrics.get("backbone")),
    "architecture": lambda record: ("backbone", record.metrics.get("backbone")),
    "split": lambda record: ("data set", record.place.configured),
    "test images": lambda record: ("data set", record.place.configured, record.place.kind.classes, *_evaluated(record)),
}


def audit(root: str | os.PathLike[str]) -> tuple[list[str], int, int]:
    """What does not agree in the results below a folder.

    Returns:
        a sentence for each disagreement; the number of results; how many of them do not say of which split and images
        they are.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"there is no folder {root}")
    records, strays = [], []
    for directory in directories(os.path.abspath(root)):
        if os.path.lexists(os.path.join(directory, METRICS)):
            record = read_run(directory)
            if record:
                records.append(record)
            else:
                strays.append(f"{directory}: no protocol has such a directory, so no table shows its {METRICS}")
    silent = sum(not {"split", "test images"} & settings(record.metrics).keys() for record in records)
    return [*strays, *audit_records(records)], len(records) + len(strays), silent


def audit_records(records: Iterable[Record]) -> list[str]:
    """A sentence for each disagreement among runs that have results, or in the files beside them."""
    with_result = [record for record in records if os.path.lexists(os.path.join(record.path, METRICS))]
    compared = [r for r in only_comparable(with_result) if not r.problem.startswith("diverged")]
    found = [f"{record.path}: {record.problem}" for record in compared if record.problem]
    sound = [record for record in compared if record.metrics]
    for record in sound:
        beside = [*_other_checkpoint(record), *_other_log(record), *_other_request(record), *_other_predictions(record)]
        found += [f"{record.path}: {text}" for text in beside]
    return found + _unlike(sound)


def _evaluated(record: Record) -> tuple[str, ...]:
    """The list that was evaluated, the fold of the support images if it is one, and whose images were added."""
    fold = record.metrics.get("config", {}).get("DATASET", {}).get("FOLD", "")
    more = [f"fold {fold}", f"seed {record.place.seed}"] if fold else []
    more += [f"and images of {record.place.dataset}"] if record.place.kind.adds_images else []
    return (record.metrics.get("split", "test"), *more)


def _other_checkpoint(record: Record) -> list[str]:
    """Checkpoint files that are not those that the record says were evaluated; those that are gone say nothing."""
    from dassl.utils.file_identity import file_digests

    folder = Path(record.path)
    if record.place.kind.evaluates:
        own = record.place.path()
        if not folder.as_posix().endswith(f"/{own}"):
            return []
        folder = Path(folder.as_posix().removesuffix(own)) / record.place.training().path()
    found = []
    for name, digest in record.metrics.get("checkpoint", {}).get("files", {}).items():
        path = str(folder / name)
        if os.path.isfile(path) and file_digests([path])[0] != digest:
            found.append(f"{path} is not the checkpoint that was evaluated")
    return found


def _other_log(record: Record) -> list[str]:
    """The accuracy of the log, where it ends with another one."""
    path = os.path.join(record.path, logs.LOG)
    if not os.path.isfile(path):
        return []
    value, _ = logs.read_log(path, "accuracy", logs.END_OF_TEST)
    if value is None or abs(value - record.accuracy) < HALF_A_DIGIT:
        return []
    return [f"accuracy {record.accuracy:.2f} in the record, {value:.2f} in {logs.LOG}"]


def _other_request(record: Record) -> list[str]:
    """In what the run differs from what a sweep asked for when it began."""
    from dassl.config import get_cfg_default
    from dassl.engine.comparison import differences, flatten, to_dict

    path = os.path.join(record.path, REQUEST)
    if not os.path.isfile(path):
        return []
    try:
        asked = read_metrics(path, ())
    except ValueError as error:
        return [str(error)]
    defaults = flatten(to_dict(get_cfg_default()))
    found = differences(record.metrics.get("config", {}), asked.get("config", {}), defaults=defaults)
    return [f"{one.key} is {one.old} in the record, {one.new} in {REQUEST}" for one in found[:SHOWN]]


def _other_predictions(record: Record) -> list[str]:
    """What is wrong with the predictions beside a record that says that it has some."""
    if why_without(record):
        return []
    try:
        predictions_of(record)
    except ValueError as error:
        return [str(error)]
    return []


def _unlike(records: Sequence[Record]) -> list[str]:
    """What differs between runs that share a trainer, a backbone or a data set, whatever their method and seed."""
    found = []
    for name, group_of in SHARED.items():
        groups: dict[tuple, dict[str, list[str]]] = {}
        for record in records:
            if name in (own := settings(record.metrics)):
                groups.setdefault(group_of(record), {}).setdefault(str(own[name]), []).append(record.path)
        for (kind, *which), by_value in groups.items():
            if len(by_value) > 1:
                runs = "; ".join(f"{value} in {len(paths)} (such as {paths[0]})" for value, paths in by_value.items())
                found.append(f"{kind} {', '.join(map(str, which))}: the runs differ in {name}: {runs}")
    return found
