"""Tables of the protocols that test on all classes: transfer to other data sets, few-shot, zero-shot."""

from collections.abc import Iterable, Mapping, Sequence

from results.layout import IMAGENET_VARIANTS
from results.records import Record
from results.statistics import Summary, summarise
from results.tables import (
    SPREAD,
    Difference,
    Method,
    Table,
    Value,
    complaints,
    in_order,
    mean_of,
    method_names,
    method_of,
    methods_in_order,
    missing_seeds,
    published_entry,
    shots_name,
)

AVERAGE = "average"
Cells = dict[tuple[Method, str], dict[int, float]]


def _by_column(records: Iterable[Record], column) -> Cells:
    """Accuracies of sound records by method, `column(record)` and seed."""
    cells: Cells = {}
    for record in records:
        by_seed = cells.setdefault((method_of(record), column(record)), {})
        if not record.problem:
            by_seed[record.place.seed] = record.accuracy
    return cells


def _average(parts: Sequence[Mapping[int, float]]) -> Summary | None:
    """The mean over data sets, with the spread over the seeds that have all of them; None without such a seed."""
    seeds = sorted(set.intersection(*(set(part) for part in parts))) if parts else []
    if not seeds:
        return None
    per_seed = [mean_of(part[seed] for part in parts) for seed in seeds]
    return summarise(per_seed, mean_of(mean_of(part.values()) for part in parts))


def transfer(
    records: Iterable[Record],
    seeds: Sequence[int] = (),
    order: Sequence[str] = (),
    compare: bool = True,
    variants: bool = False,
    source: str = "",
) -> Table:
    """Trained on one data set, tested on others: one row per method, one column per data set.

    Args:
        records: of the roles `all` (on the source) and `transfer`; others are passed over.
        seeds: those that are expected; by default those that any cell has.
        order: data sets and trainers in the order wanted.
        compare: add rows with published numbers and the differences, where there are any.
        variants: the four ImageNet variants (domain generalisation) instead of the other sets (cross-dataset).
        source: data set that is trained on; by default ImageNet, or what there is instead.
    """
    tested = [r for r in records if r.place.role == "transfer" and (r.place.dataset in IMAGENET_VARIANTS) == variants]
    sources = in_order(record.place.source for record in tested)
    source = source or next(iter(sources), "imagenet")
    tested = [record for record in tested if record.place.source == source]
    methods = {method_of(record) for record in tested}
    trained = [r for r in records if r.place.role == "all" and r.place.dataset == source and method_of(r) in methods]
    cells = _by_column([*trained, *tested], lambda record: record.place.dataset)
    targets = in_order((record.place.dataset for record in tested), order)
    title = "Domain generalisation" if variants else "Cross-dataset transfer"
    columns = ["method", "n", source, *targets, AVERAGE]
    table = Table(f"{title}: accuracy in percent, trained on {source}", columns)
    table.notes.append(f"mean over n seeds; {SPREAD}; the average is over the data sets that were not trained on")
    if others := ", ".join(name for name in sources if name != source):
        table.notes.append(f"not shown: what was trained on {others} (--source)")
    names = method_names(methods)
    for method in methods_in_order(methods, order):
        own = [cells.get((method, dataset), {}) for dataset in [source, *targets]]
        n = min((len(part) for part in own if part), default=0)
        values = [summarise([part[seed] for seed in sorted(part)]) if part else None for part in own]
        complete = all(own[1:])
        table.rows.append([names[method], n, *values, _average(own[1:]) if complete else None])
        if compare:
            _add_published(table, published_entry(tested, "dg" if variants else "xd", method))
    table.notes += missing_seeds([*trained, *tested], {_place(k): v for k, v in cells.items()}, names, seeds)
    table.notes += complaints([*trained, *tested], names)
    return table


def _place(key: tuple[Method, str]) -> tuple[str, Method]:
    return key[1], key[0]


def _add_published(table: Table, entry: Mapping | None) -> None:
    """Two rows below the last one: the published numbers and the differences."""
    datasets = table.columns[2:-1]
    if entry is None or not set(datasets) & entry["results"].keys():
        return
    facts: list[float | None] = [entry["results"].get(dataset) for dataset in datasets]
    targets = facts[1:]
    facts.append(mean_of(targets) if None not in targets else None)
    own = table.rows[-1][2:]
    differences: list[Value] = [
        Difference(round(value.mean, 2) - fact) if isinstance(value, Summary) and fact is not None else None
        for value, fact in zip(own, facts, strict=True)
    ]
    table.rows.append(["  published", entry["seeds"], *facts])
    table.rows.append(["  difference", None, *differences])
    note = f"published: {entry['name']} ({entry['seeds']} seeds): {entry['source']}"
    if note not in table.notes:
        table.notes.append(note)


def few_shot_runs(records: Iterable[Record]) -> list[Record]:
    """Those trained and tested on all classes, less those that were trained to be tested on other data sets."""

    def key(record: Record, dataset: str) -> tuple:
        return dataset, method_of(record), record.place.seed

    records = list(records)
    sources = {key(record, record.place.source) for record in records if record.place.role == "transfer"}
    return [r for r in records if r.place.role == "all" and key(r, r.place.dataset) not in sources]


def few_shot(records: Iterable[Record], seeds: Sequence[int] = (), order: Sequence[str] = ()) -> Table:
    """Trained and tested on all classes: a row per data set and method, a column per number of shots.

    Configurations of a trainer are not told apart: the official recipes take other ones for other shots.
    """
    records = few_shot_runs(records)
    shots = sorted({record.place.shots for record in records})
    trainers = in_order({record.place.trainer for record in records}, order)
    datasets = in_order({record.place.dataset for record in records}, order)
    cells: dict[tuple[str, str, int], dict[int, float]] = {}
    for record in records:
        key = (record.place.dataset, record.place.trainer, record.place.shots)
        by_seed = cells.setdefault(key, {})
        if not record.problem:
            by_seed[record.place.seed] = record.accuracy
    table = Table("Few-shot classification: accuracy in percent", ["data set", "method", *map(shots_name, shots)])
    table.notes.append(f"mean over seeds; {SPREAD}")
    for dataset in datasets:
        for trainer in trainers:
            found = [cells.get((dataset, trainer, n), {}) for n in shots]
            if any(found):
                table.rows.append([dataset, trainer, *(summarise(list(f.values())) if f else None for f in found)])
    if len(datasets) > 1:
        for trainer in trainers:
            averages = [_average([cells.get((d, trainer, n), {}) for d in datasets]) for n in shots]
            if any(averages):
                table.rows.append([AVERAGE, trainer, *averages])
    names = method_names(method_of(record) for record in records)
    methods = _by_column(records, lambda record: record.place.dataset)
    table.notes += missing_seeds(records, {_place(k): v for k, v in methods.items()}, names, seeds)
    table.notes += complaints(records, names)
    return table


def accuracies(records: Iterable[Record], title: str, seeds: Sequence[int] = (), order: Sequence[str] = ()) -> Table:
    """Accuracy and macro F1 of each data set and method, whatever was trained on, and their averages over the sets."""
    records = list(records)
    methods = methods_in_order({method_of(record) for record in records}, order)
    names = method_names(methods)
    table = Table(f"{title} in percent", ["data set", "method", "n", "accuracy", "macro F1"])
    if any(record.learns for record in records):
        table.notes.append(f"mean over n seeds; {SPREAD}")
    found: dict[tuple[str, Method], dict[int, Record]] = {}
    for record in records:
        by_seed = found.setdefault((record.place.dataset, method_of(record)), {})
        if not record.problem:
            by_seed[record.place.seed] = record
    datasets = in_order((dataset for dataset, _ in found), order)
    for dataset in datasets:
        for method in methods:
            if (dataset, method) in found:
                own = list(found[dataset, method].values())
                table.rows.append([dataset, names[method], len(own), *_measures(own)])
    if len(datasets) > 1:
        for method in methods:
            parts = [found.get((dataset, method), {}) for dataset in datasets]
            table.rows.append(_average_row(names[method], parts))
    table.notes += missing_seeds(records, found, names, seeds)
    table.notes += complaints(records, names)
    return table


def _measures(own: Sequence[Record]) -> list[Value]:
    """Accuracy and macro F1 over records; None where there is none."""
    f1 = [record.metrics["macro_f1"] for record in own if "macro_f1" in record.metrics]
    return [summarise([record.accuracy for record in own]) if own else None, summarise(f1) if f1 else None]


def _average_row(name: str, parts: Sequence[Mapping[int, Record]]) -> list[Value]:
    """The mean over data sets of accuracy and macro F1, where every data set has them."""
    accuracy = _average([{seed: record.accuracy for seed, record in part.items()} for part in parts])
    complete = all("macro_f1" in record.metrics for part in parts for record in part.values())
    f1 = [{seed: record.metrics["macro_f1"] for seed, record in part.items()} for part in parts] if complete else []
    return [AVERAGE, name, accuracy.n if accuracy else 0, accuracy, _average(f1)]


def zero_shot(records: Iterable[Record], order: Sequence[str] = ()) -> Table:
    """Zero-shot on all classes: accuracy and macro F1 per data set."""
    zero = [record for record in records if record.place.role == "zeroshot"]
    return accuracies(zero, "Zero-shot classification", order=order)
