"""What a run was made with, and where runs that would be averaged were made with different things."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from results.records import Record
from results.seeds import seeds_name

OF_THE_RUN = ("SEED", "TEST.NO_TEST")  # what runs of one row need not share
SHOWN = 4  # settings that a sentence names


def settings(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's `metrics.json` says that it was made with, by dotted keys, without what seeds need not share.

    Beside the configuration: `recipe` (version of the code that computes), `weights` and `architecture` (digests of the
    backbone's) and `epoch` (of the checkpoint, where it was not chosen by validation). Empty if there is no
    configuration, as for runs that are known by their log alone.
    """
    from dassl.engine.record import flatten

    if not metrics.get("config"):
        return {}
    found = {key: value for key, value in flatten(metrics["config"]).items() if key not in OF_THE_RUN}
    if digest := metrics.get("backbone_digest"):
        found["weights"] = digest[:12]
        found.pop("MODEL.BACKBONE.PATH", None)  # where the same weights lie does not matter
    if architecture := metrics.get("backbone_architecture"):  # the same weights may be run in several
        found["architecture"] = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()[:12]
    if "recipe" in metrics:
        found["recipe"] = metrics["recipe"]
    if found.get("TEST.FINAL_MODEL") == "last_step" and "epoch" in metrics:
        found["epoch"] = metrics["epoch"]
    return found


def disagreements(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """The settings in which runs disagree: key -> value as text -> the runs that have it.

    A key that some runs lack is no disagreement: it came or went with the version of the code.
    """
    found: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        for key, value in settings(record.metrics).items():
            found.setdefault(key, {}).setdefault(str(value), []).append(record)
    return {key: by_value for key, by_value in found.items() if len(by_value) > 1}


def only_comparable(records: Sequence[Record]) -> list[Record]:
    """The records, those with a `problem` that differ from other seeds of their method and data set in more than that.

    Which of them is meant nobody can know, so none of them is averaged.
    """
    groups: dict[Any, list[Record]] = {}
    for record in records:
        if not record.problem:
            groups.setdefault(replace(record.place, seed=0), []).append(record)
    problems = {}
    for group in groups.values():
        if len(group) > 1 and (found := disagreements(group)):
            sentence = f"not averaged, for the runs differ in {_by_value(found, _seeds)}"
            problems |= {record.path: sentence for record in group}
    return [replace(record, problem=problems.get(record.path, record.problem)) for record in records]


def unlike_sets_note(records: Iterable[Record], name: str) -> list[str]:
    """A sentence where an average over data sets is of runs with different settings; else nothing."""
    found = disagreements(record for record in records if not record.problem)
    found = {key: by_value for key, by_value in found.items() if not key.startswith("DATASET.") and key != "epoch"}
    return [f"average, {name}: the data sets differ in {_by_value(found, _datasets)}"] if found else []


def _by_value(found: Mapping[str, Mapping[str, Sequence[Record]]], describe: Callable[[Sequence[Record]], str]) -> str:
    """Disagreements as `OPTIM.LR: 0.002 (seeds 1-3), 0.05 (seed 4); ...`; what is in brackets is described."""
    parts = []
    for key, by_value in list(found.items())[:SHOWN]:
        whose = {value: describe(own) for value, own in by_value.items()}
        parts.append(f"{key}: {', '.join(f'{value or repr(value)} ({own})' for value, own in whose.items())}")
    more = len(found) - SHOWN
    return "; ".join(parts) + (f"; and in {more} more" if more > 0 else "")


def _seeds(records: Sequence[Record]) -> str:
    return seeds_name(record.place.seed for record in records)


def _datasets(records: Sequence[Record]) -> str:
    return ", ".join(sorted({record.place.dataset for record in records}))
