"""Tables of records: what the tables of all protocols are made of.

Spread is always over seeds.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from results.published import departures, published
from results.records import Record
from results.rows import Method, in_order, method_names, method_of, methods_in_order
from results.seeds import numbers, seeds_name
from results.settings import SHOWN, draw_note, selection_notes, unsaid_note, validation_note
from results.statistics import Summary, summarise


class Difference(float):
    """A number that is shown with its sign."""


class Probability(float):
    """A p value: shown with three significant digits."""


Value = Summary | float | int | str | None

SPREAD = "± is the sample standard deviation over seeds (n - 1), in brackets half the width of the 95% t interval"
AVERAGE = "average"
ACCURACIES = {"accuracy": "accuracy", "macro F1": "macro_f1"}


@dataclass
class Table:
    """Columns and rows of equal length; `notes` say what the numbers are and what is missing.

    `complete` says whether every run that was expected has a sound result.
    """

    title: str
    columns: list[str]
    rows: list[list[Value]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True


@dataclass(frozen=True)
class TableOptions:
    """What a table is to show.

    Attributes:
        seeds: those that are expected; by default those that any run has.
        order: data sets and trainers in the order wanted.
        compare: whether published numbers stand beside.
        source: data set that is trained on, where others are tested; by default a table for each that there is.
    """

    seeds: Sequence[int] = ()
    order: Sequence[str] = ()
    compare: bool = True
    source: str = ""


def common(parts: Sequence[Collection[int]]) -> list[int]:
    """The seeds that all of the parts have."""
    return sorted(set.intersection(*map(set, parts))) if parts else []


def common_seeds_note(parts: Sequence[Collection[int]], name: str) -> list[str]:
    """A sentence where an average over data sets leaves out seeds that some of them have; else nothing."""
    seeds = common(parts)
    if len(parts) < 2 or not seeds or set(seeds) == set().union(*parts):
        return []
    return [f"average, {name}: over {seeds_name(seeds)} alone, for not every data set has the others"]


def mean_of(values: Iterable[float]) -> float:
    """The mean of at least one number."""
    values = list(values)
    return sum(values) / len(values)


def by_dataset(records: Iterable[Record]) -> dict[tuple[str, Method], dict[int, float]]:
    """Accuracies of sound records by data set and method, then by seed."""
    cells: dict[tuple[str, Method], dict[int, float]] = {}
    for record in records:
        by_seed = cells.setdefault((record.place.dataset, method_of(record)), {})
        if not record.problem:
            by_seed[record.place.seed] = record.accuracy
    return cells


def average(parts: Sequence[Mapping[int, float]]) -> Summary | None:
    """The mean over data sets, over the seeds that have all of them; None without such a seed."""
    seeds = common(parts)
    return summarise([mean_of(part[seed] for part in parts) for seed in seeds]) if seeds else None


def counted(parts: Iterable[Mapping[int, float]]) -> int | str:
    """How many seeds the parts that have any have: `3`, or `2 to 3` where that differs."""
    counts = sorted({len(part) for part in parts if part})
    return counts[-1] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else 0


def published_entry(records: Iterable[Record], protocol: str, method: Method) -> dict | None:
    """The first published entry for a method, by the backbone that one of its records names."""
    return next(iter(published_entries(records, protocol, method)), None)


def published_entries(records: Iterable[Record], protocol: str, method: Method) -> list[dict]:
    """The published entries for a method, by the backbone that one of its records names."""
    backbones = (record.metrics.get("backbone") for record in records if method_of(record) == method)
    backbone = next(filter(None, backbones), "")
    return published(protocol, method[0], method[1].split("/")[0], backbone, method[2])


def departing(
    records: Iterable[Record], beside: Mapping[Method, Mapping | None], free: Sequence[str] = ()
) -> dict[tuple[str, Method], list[str]]:
    """The data sets and methods with published numbers that were not run as published: what differs (`departures`).

    Args:
        records: the runs.
        beside: whatever published numbers a method has.
        free: keys in which runs may differ.
    """
    found: dict[tuple[str, Method], list[str]] = {}
    for record in records:
        key = record.place.dataset, method_of(record)
        if not record.problem and beside.get(key[1]) and key not in found and (differ := departures(record, free)):
            found[key] = differ
    return found


def departure_notes(strange: Mapping[tuple[str, Method], Sequence[str]], names: Mapping[Method, str]) -> list[str]:
    """A sentence for each way in which data sets and methods were not run as published."""
    where: dict[str, list[str]] = {}
    for (dataset, method), differ in strange.items():
        more = [f"and {len(differ) - SHOWN} more"] if len(differ) > SHOWN else []
        where.setdefault("; ".join([*differ[:SHOWN], *more]), []).append(f"{dataset}, {names[method]}")
    return [
        f"{' / '.join(own)}: not held against published numbers, for it was made with other settings than the "
        f"published recipe: {differ}"
        for differ, own in where.items()
    ]


def missing_seeds(
    records: Sequence[Record],
    found: Mapping[tuple[str, Method], Collection[int]],
    names: Mapping[Method, str],
    seeds: Sequence[int] = (),
) -> list[str]:
    """A sentence for each data set and method that lacks seeds.

    Args:
        records: all runs of the table.
        found: the seeds that have a sound result.
        names: what the methods are called.
        seeds: those that are expected; by default those that any run has.
    """
    constant = _constant(records)
    expected = set(seeds) or {record.place.seed for record in records if method_of(record) not in constant}
    sentences = []
    for (dataset, method), there in found.items():
        missing = sorted(expected - set(there))
        if missing and not (method in constant and there):
            sentences.append(f"{dataset}, {names[method]}: no result of seeds {numbers(missing)}")
    return sentences


def _constant(records: Iterable[Record]) -> set[Method]:
    """The methods that learn nothing."""
    return {method_of(record) for record in records if not record.learns}


def _constant_note(records: Iterable[Record], names: Mapping[Method, str]) -> list[str]:
    """A sentence about the methods that learn nothing, if there are any."""
    learnless = ", ".join(sorted({names[method] for method in _constant(records)}))
    return [f"{learnless}: nothing is learned, every seed gives the same, so n = 1 says all"] if learnless else []


def add_missing(
    table: Table,
    records: Sequence[Record],
    found: Mapping[tuple[str, Method], Collection[int]],
    names: Mapping[Method, str],
    seeds: Sequence[int] = (),
) -> None:
    """Write below a table what it lacks, and into it whether it is complete; arguments as of `missing_seeds`."""
    lacking, left_out = missing_seeds(records, found, names, seeds), complaints(records, names)
    table.notes += [
        *lacking,
        *left_out,
        *_constant_note(records, names),
        *selection_notes(records),
        *validation_note(records),
        *unsaid_note(records),
        *draw_note(records),
    ]
    table.complete = not lacking and not left_out


def complaints(records: Iterable[Record], names: Mapping[Method, str]) -> list[str]:
    """A sentence for the runs that failed, diverged, did not finish or cannot be averaged; one for each reason."""
    seeds: dict[tuple[str, str, str, str], list[int]] = {}
    for record in records:
        if record.problem:
            place, problem = record.place, " ".join(record.problem.split())
            seeds.setdefault((place.dataset, names[method_of(record)], place.role, problem), []).append(place.seed)
    return [
        f"left out: {dataset}, {name}, {seeds_name(own)}, {role} classes: {problem}"
        for (dataset, name, role, problem), own in seeds.items()
    ]


def accuracies(
    records: Iterable[Record],
    title: str,
    seeds: Sequence[int] = (),
    order: Sequence[str] = (),
    measures: Mapping[str, str] = ACCURACIES,
) -> Table:
    """Each data set and method, whatever was trained on, and their averages over the sets.

    Args:
        records: the runs.
        title: of the table.
        seeds: those that are expected; by default those that any run has.
        order: data sets and trainers in the order wanted.
        measures: column -> field of the records, in percent; by default accuracy and macro F1.
    """
    records = list(records)
    methods = methods_in_order({method_of(record) for record in records}, order)
    names = method_names(methods)
    table = Table(f"{title} in percent", ["data set", "method", "n", *measures])
    if any(record.learns for record in records):
        table.notes.append(f"mean over n seeds; {SPREAD}")
    found: dict[tuple[str, Method], dict[int, Record]] = {}
    for record in records:
        by_seed = found.setdefault((record.place.dataset, method_of(record)), {})
        if not record.problem:
            by_seed[record.place.seed] = record
    datasets = in_order((dataset for dataset, _ in found), order)
    fields = list(measures.values())
    for dataset in datasets:
        for method in methods:
            if (dataset, method) in found:
                own = list(found[dataset, method].values())
                table.rows.append([dataset, names[method], len(own), *_measures(own, fields)])
    if len(datasets) > 1:
        for method in methods:
            parts = [found.get((dataset, method), {}) for dataset in datasets]
            table.rows.append(_average_row(names[method], parts, fields))
            table.notes += common_seeds_note(parts, names[method])
    add_missing(table, records, found, names, seeds)
    return table


def _measures(own: Sequence[Record], fields: Sequence[str]) -> list[Value]:
    """Fields over records; None where none has it."""
    values = [[float(record.metrics[name]) for record in own if name in record.metrics] for name in fields]
    return [summarise(part) if part else None for part in values]


def _average_row(name: str, parts: Sequence[Mapping[int, Record]], fields: Sequence[str]) -> list[Value]:
    """The mean over data sets of fields, where every data set has them."""
    averages = []
    for name_of_field in fields:
        complete = all(name_of_field in record.metrics for part in parts for record in part.values())
        get = itemgetter(name_of_field)
        by_set = [{seed: float(get(record.metrics)) for seed, record in part.items()} for part in parts if complete]
        averages.append(average(by_set) if complete else None)
    return [AVERAGE, name, averages[0].n if averages[0] else 0, *averages]
