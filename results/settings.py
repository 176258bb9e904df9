"""Where runs that would be averaged were made with different things, or do not say with which.

In what two runs differ says `dassl.engine.comparison`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from results.records import Record
from results.seeds import seeds_name

SHOWN = 4  # settings that a sentence names
OF_THE_DATA = ("split", "test images")  # what old records do not say
OF_ONE_TRAINING = ("weights", "recipe", *OF_THE_DATA)  # what base and new classes have to share; the split is the whole


def settings(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's `metrics.json` says that it was made with, by dotted keys (`run_settings`)."""
    from dassl.engine.comparison import run_settings

    return run_settings(metrics) if metrics else {}


def disagreements(records: Iterable[Record], ignored: Iterable[str]) -> dict[str, dict[str, list[Record]]]:
    """The settings in which runs disagree: key -> value as text -> the runs that have it.

    A key that some runs lack is no disagreement: it came or went with the version of the code.

    Args:
        records: the runs.
        ignored: keys that do not count, one of the lists of `dassl.engine.comparison`.
    """
    from dassl.engine import comparison

    return comparison.disagreements(((record, settings(record.metrics)) for record in records), ignored)


def only_comparable(records: Sequence[Record]) -> list[Record]:
    """The records, those with a `problem` that differ from other seeds of their method and data set in more than that.

    Which of them is meant nobody can know, so none of them is averaged. So it is with an evaluation that is of another
    training than the one beside it.
    """
    from dassl.engine.comparison import OF_A_SEED

    problems: dict[str, str] = {}
    for group in _groups(records, lambda record: replace(record.place, seed=0)):
        if found := disagreements(group, OF_A_SEED):
            sentence = f"not averaged, for the runs differ in {_by_value(found, _seeds)}"
            problems |= {record.path: sentence for record in group}
    return [replace(record, problem=record.problem or problems.get(record.path, "")) for record in records]


def _groups(records: Iterable[Record], key: Callable[[Record], Any]) -> list[list[Record]]:
    """Sound records with the same key, where several have it."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        if not record.problem:
            groups.setdefault(key(record), []).append(record)
    return [group for group in groups.values() if len(group) > 1]


def unlike_sets_note(records: Iterable[Record], name: str) -> list[str]:
    """A sentence where an average over data sets is of runs with different settings; else nothing."""
    from dassl.engine.comparison import OF_A_DATA_SET

    found = disagreements((record for record in records if not record.problem), OF_A_DATA_SET)
    return [f"average, {name}: the data sets differ in {_by_value(found, _datasets)}"] if found else []


def unsaid_note(records: Iterable[Record]) -> list[str]:
    """A sentence about runs whose records are too old to say of which split and images they are; else nothing."""
    silent = [r for r in records if not r.problem and not any(key in settings(r.metrics) for key in OF_THE_DATA)]
    named: dict[str, list[Record]] = {}
    for record in silent:
        named.setdefault(f"{record.place.dataset}, {record.place.trainer}", []).append(record)
    if not named:
        return []
    runs = "; ".join(f"{name}, {_seeds(own)}" for name, own in list(named.items())[:SHOWN])
    more = f"; and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return [f"cannot be told to be of the same images, for their records (or logs) do not say: {runs}{more}"]


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
