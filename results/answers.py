"""Measures of stored answers over many runs: what the predictions of each run give, and the table of them."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dassl.utils import available_cpus, check_availability
from results.layout import RunDirectory, known_roles
from results.measures import (
    COVERAGES,
    MEASURES,
    NEAREST,
    Array,
    Bins,
    best_temperature,
    distance_aware_temperatures,
    equal_width_bins,
    image_scores,
    risk_coverage,
)
from results.predictions import Predictions, Source, source_of
from results.records import Record
from results.rows import Method, in_order, method_names, method_of, methods_in_order
from results.seeds import seeds_name
from results.statistics import summarise
from results.tables import AVERAGE, SPREAD, Table, TableOptions, Value, add_missing, average, by_dataset

OF_THE_RECORD = {"accuracy": "accuracy", "macro_f1": "macro F1"}  # known without predictions
RESCALED = {
    "": "",
    "_ts": ", with the temperature that is best on the validation images of the training",
    "_dac": f", with distance-aware temperatures by the {NEAREST} nearest classes of the training",
}
OF_PREDICTIONS = {f"{name}{how}": (name, how) for how in RESCALED for name in MEASURES}
NAMES = (*OF_THE_RECORD, *OF_PREDICTIONS)

Rows = Mapping[tuple[str, str, Method], Mapping[int, Record]]  # by role, data set and method, then by seed
Values = dict[str, dict[str, float]]  # by name of a measure, then by directory of a run


@dataclass(frozen=True)
class Measured:
    """What the stored predictions of one run give.

    Attributes:
        values: by names of `MEASURES`; None where there is no such number.
        bins: images by their confidence, of equal width.
        risk: error rates at `COVERAGES`, from 0 to 1.
    """

    values: Mapping[str, float | None]
    bins: Bins
    risk: Array


def measure(predictions: Predictions, temperature: float | Array = 1.0) -> Measured:
    """All measures of predictions whose logits are divided by a temperature, or by one of each image."""
    scores = image_scores(predictions, temperature)
    risk = risk_coverage(scores)
    at = np.ceil(COVERAGES * len(risk)).astype(int).clip(1) - 1
    values = {name: one.compute(scores) for name, one in MEASURES.items()}
    return Measured(values, equal_width_bins(scores), risk[at])


@functools.lru_cache(maxsize=100_000)
def _measured(own: Source, how: str, other: Source | None) -> Measured:
    """The measures of a file of predictions; ValueError where it, or what temperatures are made of, is not sound.

    Args:
        own: the file.
        how: of `RESCALED`.
        other: what the temperatures are made of: predictions of validation images, or of the classes of the training.
    """
    predictions = own.read()
    if other is None:
        return measure(predictions)
    temperature = best_temperature if how == "_ts" else functools.partial(distance_aware_temperatures, predictions)
    return measure(predictions, temperature(other.read()))


def measured(records: Sequence[Record], how: str = "", trainings: Iterable[Record] = ()) -> list[Measured | str]:
    """The measures of each run, or a sentence why there are none.

    Args:
        records: the runs.
        how: of `RESCALED`.
        trainings: among which those are that the runs are evaluations of.
    """
    by_place = {record.place: record for record in [*trainings, *records]}

    def one(record: Record) -> Measured | str:
        try:
            return _measured(source_of(record), how, _other_source(record, how, by_place))
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(available_cpus()) as pool:  # reading and unpacking leave the interpreter to others
        return list(pool.map(one, records))


def _other_source(record: Record, how: str, by_place: Mapping[RunDirectory, Record]) -> Source | None:
    """What the temperatures of a run are made of; ValueError where it is not there."""
    if not how:
        return None
    training = by_place.get(record.place.training())
    if training is None:
        raise ValueError("the training is not there")
    return source_of(training, validation=how == "_ts")


def values_of(records: Sequence[Record], names: Sequence[str]) -> tuple[Values, dict[str, dict[str, list[Record]]]]:
    """Numbers of runs by measure and directory, and by measure the runs that lack it by the reason."""
    found: Values = {name: {} for name in names}
    lacking: dict[str, dict[str, list[Record]]] = {}
    for name in (name for name in names if name in OF_THE_RECORD):
        found[name] = {r.path: float(r.metrics[name]) for r in records if name in r.metrics}
    for how in RESCALED:
        wanted = [(name, OF_PREDICTIONS[name][0]) for name in names if OF_PREDICTIONS.get(name, ("", None))[1] == how]
        for record, got in zip(records, measured(records, how), strict=True) if wanted else ():
            if isinstance(got, str):
                lacking.setdefault(how, {}).setdefault(got, []).append(record)
                continue
            for name, plain in wanted:
                if (value := got.values[plain]) is not None:
                    found[name][record.path] = value
    return found, lacking


def measures_table(records: Iterable[Record], names: Sequence[str], title: str, options: TableOptions) -> Table:
    """Measures of each data set and method over seeds, a row for each list of classes, and averages over the sets.

    Args:
        records: of one protocol; those with a problem are named below.
        names: of `NAMES`, in the order of the columns.
        title: says what the runs are.
        options: seeds and order.

    Raises:
        ValueError: there is no such measure; the sentence names those that there are.
    """
    for name in names:
        check_availability(name, NAMES, "measure")
    records = list(records)
    methods = methods_in_order({method_of(record) for record in records}, options.order)
    named = method_names(methods)
    table = Table(title, ["data set", "classes", "method", "n", *map(label_of, names)])
    table.notes.append(f"mean over n seeds; {SPREAD}")
    table.notes += [f"{label_of(name)}: {_note(name)}" for name in names if name in OF_PREDICTIONS]
    rows = _rows(records)
    sound = [record for own in rows.values() for record in own.values()]
    values, lacking = values_of(sound, names)
    datasets = in_order((dataset for _, dataset, _ in rows), options.order)
    for role in (name for name in known_roles() if name in {role for role, _, _ in rows}):
        own = [(dataset, method) for dataset in datasets for method in methods if (role, dataset, method) in rows]
        for dataset, method in own:
            runs = rows[role, dataset, method]
            table.rows.append([dataset, role, named[method], len(runs), *_cells(list(runs.values()), values, names)])
        for method in methods:
            table.rows += _averages(role, method, [d for d, m in own if m == method], rows, values, named[method])
    table.notes += _lacking_notes(lacking, named)
    add_missing(table, records, by_dataset(records), named, options.seeds)
    return table


def label_of(name: str) -> str:
    """The head of a measure's column."""
    if name in OF_THE_RECORD:
        return OF_THE_RECORD[name]
    plain, how = OF_PREDICTIONS[name]
    return f"{MEASURES[plain].label} {how.removeprefix('_').upper()}".strip()


def _note(name: str) -> str:
    plain, how = OF_PREDICTIONS[name]
    return f"{MEASURES[plain].note}{RESCALED[how]}"


def _rows(records: Iterable[Record]) -> dict[tuple[str, str, Method], dict[int, Record]]:
    """Sound runs by role, data set and method, then by seed; rows without a sound run have none."""
    rows: dict[tuple[str, str, Method], dict[int, Record]] = {}
    for record in records:
        own = rows.setdefault((record.place.role, record.place.dataset, method_of(record)), {})
        if not record.problem:
            own[record.place.seed] = record
    return rows


def _cells(runs: Sequence[Record], values: Values, names: Sequence[str]) -> list[Value]:
    """The mean of each measure over runs that have it; None where none has."""
    each = ([values[name][run.path] for run in runs if run.path in values[name]] for name in names)
    return [summarise(own) if own else None for own in each]


def _averages(
    role: str, method: Method, datasets: Sequence[str], rows: Rows, values: Values, name: str
) -> list[list[Value]]:
    """The row of the means over data sets, over the seeds that all of them have; none for one data set."""
    if len(datasets) < 2:
        return []
    runs = [rows[role, dataset, method] for dataset in datasets]
    cells = []
    for by_run in values.values():
        parts = [{seed: by_run[run.path] for seed, run in own.items() if run.path in by_run} for own in runs]
        cells.append(average(parts) if all(map(len, parts)) else None)
    counts = [cell.n for cell in cells if cell]
    return [[AVERAGE, role, name, max(counts, default=0), *cells]] if counts else []


def _lacking_notes(lacking: Mapping[str, Mapping[str, Sequence[Record]]], named: Mapping[Method, str]) -> list[str]:
    """A sentence for each reason why runs have no such measures; all of them are named."""
    notes = []
    for how, by_reason in lacking.items():
        what = f"no {how.removeprefix('_').upper()} measures" if how else "no measures but those of the record"
        for reason, runs in by_reason.items():
            seeds: dict[str, list[int]] = {}
            for run in runs:
                key = f"{run.place.dataset}, {run.place.role}, {named[method_of(run)]}"
                seeds.setdefault(key, []).append(run.place.seed)
            whose = "; ".join(f"{key}, {seeds_name(own)}" for key, own in seeds.items())
            notes.append(f"{what} ({reason}): {whose}")
    return notes
