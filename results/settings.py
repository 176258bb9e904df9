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
OF_A_TRAINING = (
    "weights",
    "architecture",
    "recipe",
    "support",
    "label noise",
)  # what an evaluation has of the training that it evaluates


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
    """The records, those with a `problem` of which nobody can know whether they are meant.

    These are the seeds of a method and data set that differ in more than the seed, runs of one seed with different
    results, and evaluations of another training than the one that lies beside them.
    """
    from dassl.engine.comparison import OF_A_SEED

    problems = _of_other_trainings(records)
    for group in _groups(records, lambda record: record.place):
        if len({record.accuracy for record in group}) > 1:
            each = ", ".join(f"{record.accuracy:.2f} in {record.path}" for record in group)
            problems |= {record.path: f"not averaged, for a seed has several runs: {each}" for record in group}
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


def _of_other_trainings(records: Iterable[Record]) -> dict[str, str]:
    """By path, evaluations that are not of the training that lies beside them, with the reason."""
    sound = [record for record in records if not record.problem and record.learns]
    trainings = {record.place: record for record in sound}
    problems = {}
    for record in sound:
        training = trainings.get(record.place.training()) if record.place.kind.evaluates else None
        if training and (found := _unlike_training(training, record)):
            problems[record.path] = f"not averaged, for it is no evaluation of {training.path}: {'; '.join(found)}"
    return problems


def _unlike_training(training: Record, evaluation: Record) -> list[str]:
    """In what an evaluation differs from its training, of what it has to have from it."""
    then, now = settings(training.metrics), settings(evaluation.metrics)
    same_set = training.place.dataset == evaluation.place.configured
    keys = then.keys() & now.keys() & {*OF_A_TRAINING, *(["split"] if same_set else [])}
    found = [f"{key} {then[key]} there, {now[key]} here" for key in sorted(keys) if then[key] != now[key]]
    files, evaluated = (record.metrics.get("checkpoint", {}).get("files", {}) for record in (training, evaluation))
    other = [name for name in sorted(files.keys() & evaluated.keys()) if files[name] != evaluated[name]]
    return [*found, *(f"its checkpoint {name} is another one" for name in other)]


def unlike_sets_note(records: Iterable[Record], name: str) -> list[str]:
    """A sentence where an average over data sets is of runs with different settings; else nothing."""
    from dassl.engine.comparison import OF_A_DATA_SET

    found = disagreements((record for record in records if not record.problem), OF_A_DATA_SET)
    return [f"average, {name}: the data sets differ in {_by_value(found, _datasets)}"] if found else []


def validation_note(records: Iterable[Record]) -> list[str]:
    """A sentence about runs that were measured on validation images, not on test images; else nothing."""
    found = _named(record for record in records if not record.problem and record.metrics.get("split") == "val")
    return [f"measured on the validation images, not on the test images: {found}"] if found else []


def selection_notes(records: Iterable[Record]) -> list[str]:
    """A sentence for each kind of image, beside those of training, on which anything was chosen in runs; else nothing.

    Records that are too old to say it chose on validation images if their configuration has the best model there.
    """
    chosen: dict[str, list[Record]] = {"validation": [], "test": []}
    for record in records:
        best = settings(record.metrics).get("TEST.FINAL_MODEL") == "best_val"
        on = record.metrics.get("selection", "validation" if best else "none")
        if not record.problem and on in chosen:
            chosen[on].append(record)
    sentences = {
        "validation": "something was chosen by the result on validation images",
        "test": "SOMETHING WAS CHOSEN BY THE RESULT ON TEST IMAGES, which flatters the number",
    }
    return [f"{sentences[on]}: {_named(own)}" for on, own in chosen.items() if own]


def unsaid_note(records: Iterable[Record]) -> list[str]:
    """A sentence about runs whose records are too old to say of which split and images they are; else nothing."""
    sound = (record for record in records if not record.problem)
    found = _named(r for r in sound if not any(key in settings(r.metrics) for key in OF_THE_DATA))
    return [f"whether these are of the same images their records (or logs) do not say: {found}"] if found else []


def draw_note(records: Iterable[Record]) -> list[str]:
    """A sentence about runs whose few-shot draws were stored ones that the rule does not give; else nothing."""
    found = _named(r for r in records if not r.problem and r.metrics.get("draw_source") == "stored")
    return [f"trained on stored few-shot draws, not on those of the rule: {found}"] if found else []


def _named(records: Iterable[Record]) -> str:
    """Runs as `dtd, APEX, seeds 1-3; ...`."""
    named: dict[str, list[Record]] = {}
    for record in records:
        named.setdefault(f"{record.place.dataset}, {record.place.trainer}", []).append(record)
    more = [f"and {len(named) - SHOWN} more"] if len(named) > SHOWN else []
    return "; ".join([*(f"{name}, {_seeds(own)}" for name, own in list(named.items())[:SHOWN]), *more])


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
