"""Tables of the protocols that test on all classes: transfer to other data sets, few-shot, zero-shot."""

from collections.abc import Iterable, Mapping, Sequence

from results.layout import IMAGENET_VARIANTS
from results.records import Record
from results.settings import unlike_sets_note
from results.statistics import Summary, summarise
from results.tables import (
    SPREAD,
    Difference,
    Method,
    Table,
    Value,
    add_missing,
    common,
    common_seeds_note,
    departing,
    departure_notes,
    in_order,
    mean_of,
    method_names,
    method_of,
    methods_in_order,
    published_entry,
    shots_name,
)

AVERAGE = "average"
TITLES = {"xd": "Cross-dataset transfer", "dg": "Domain generalisation"}
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
    """The mean over data sets, over the seeds that have all of them; None without such a seed."""
    seeds = common(parts)
    return summarise([mean_of(part[seed] for part in parts) for seed in seeds]) if seeds else None


def _counted(parts: Iterable[Mapping[int, float]]) -> int | str:
    """How many seeds the parts that have any have: `3`, or `2 to 3` where that differs."""
    counts = sorted({len(part) for part in parts if part})
    return counts[-1] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else 0


def transfers(
    records: Iterable[Record], protocol: str, seeds: Sequence[int] = (), compare: bool = True, source: str = ""
) -> dict[str, Table]:
    """The tables of a protocol out of all records: one per data set that was trained on, by name (`xd_from_dtd`).

    Args:
        records: of all roles.
        protocol: `dg` (tested on the four ImageNet variants) or `xd` (on others).
        seeds: as in `transfer`.
        compare: as in `transfer`.
        source: only what was trained on this data set.
    """
    records = list(records)
    tested = [record for record in records if record.place.role == "transfer"]
    own = [record for record in tested if (record.place.dataset in IMAGENET_VARIANTS) == (protocol == "dg")]
    trained = [record for record in records if record.place.role == "all"]
    tables = {}
    for name in [source] if source else in_order(record.place.source for record in own):
        table = transfer([*trained, *own], seeds, compare=compare, protocol=protocol, source=name)
        others = in_order(r.place.dataset for r in tested if r.place.source == name and r not in own)
        if others:
            table.notes.append(f"in the table {'xd' if protocol == 'dg' else 'dg'}: {', '.join(others)}")
        tables[protocol if name == "imagenet" else f"{protocol}_from_{name}"] = table
    return tables


def transfer(
    records: Iterable[Record],
    seeds: Sequence[int] = (),
    order: Sequence[str] = (),
    compare: bool = True,
    protocol: str = "xd",
    source: str = "imagenet",
) -> Table:
    """Trained on one data set, tested on others: one row per method, one column per data set.

    Args:
        records: of the roles `all` (on the source) and `transfer`; others are passed over.
        seeds: those that are expected; by default those that any cell has.
        order: data sets and trainers in the order wanted.
        compare: add rows with published numbers and the differences, where there are any.
        protocol: `xd` (cross-dataset) or `dg` (domain generalisation): its name, and whose published numbers.
        source: data set that is trained on.
    """
    records = list(records)
    tested = [record for record in records if record.place.role == "transfer" and record.place.source == source]
    methods = {method_of(record) for record in tested}
    trained = [r for r in records if r.place.role == "all" and r.place.dataset == source and method_of(r) in methods]
    cells = _by_column([*trained, *tested], lambda record: record.place.dataset)
    targets = [name for name in in_order((record.place.dataset for record in tested), order) if name != source]
    table = Table(f"{TITLES[protocol]}: accuracy in percent, trained on {source}", ["method", "n", source])
    table.columns += [*targets, AVERAGE]
    table.notes.append(f"mean over n seeds; {SPREAD}; the average is over the data sets that were not trained on")
    names = method_names(methods)
    beside = {method: published_entry(tested, protocol, method) for method in methods} if compare else {}
    strange = departing([*trained, *tested], beside)
    for method in methods_in_order(methods, order):
        own = [cells.get((method, dataset), {}) for dataset in [source, *targets]]
        values = [summarise([part[seed] for seed in sorted(part)]) if part else None for part in own]
        table.rows.append([names[method], _counted(own), *values, _average(own[1:])])
        table.notes += common_seeds_note(own[1:], names[method])
        table.notes += unlike_sets_note((r for r in [*trained, *tested] if method_of(r) == method), names[method])
        if not any(key[1] == method for key in strange):
            _add_published(table, beside.get(method))
    add_missing(table, [*trained, *tested], {_place(k): v for k, v in cells.items()}, names, seeds)
    table.notes += departure_notes(strange, names)
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
        Difference(value.mean - fact) if isinstance(value, Summary) and fact is not None else None
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


def few_shot_rows(records: Iterable[Record], order: Sequence[str] = ()) -> dict[str, list[Record]]:
    """The runs of few-shot by the rows that they make: one per trainer, for recipes differ by data set and shots.

    Where a trainer has several configurations or variants for one data set and number of shots, each is a row.
    """
    runs: dict[str, dict[str, list[Record]]] = {}
    for record in few_shot_runs(records):
        trainer, config, _ = method_of(record)
        runs.setdefault(trainer, {}).setdefault(config, []).append(record)
    rows = {}
    for trainer in in_order(runs, order):
        by_config = runs[trainer]
        cells = [{(r.place.dataset, r.place.shots) for r in own} for own in by_config.values()]
        if sum(map(len, cells)) == len(set().union(*cells)):
            rows[trainer] = [record for own in by_config.values() for record in own]
        else:
            rows |= {f"{trainer} ({config})": by_config[config] for config in sorted(by_config)}
    return rows


def few_shot(records: Iterable[Record], seeds: Sequence[int] = (), order: Sequence[str] = ()) -> Table:
    """Trained and tested on all classes: a row per data set and method, a column per number of shots."""
    rows = few_shot_rows(records, order)
    records = [record for own in rows.values() for record in own]
    shots = sorted({record.place.shots for record in records})
    datasets = in_order({record.place.dataset for record in records}, order)
    cells: dict[tuple[str, str, int], dict[int, float]] = {}
    for name, own in rows.items():
        for record in own:
            if not record.problem:
                by_seed = cells.setdefault((record.place.dataset, name, record.place.shots), {})
                by_seed[record.place.seed] = record.accuracy
    table = Table("Few-shot classification: accuracy in percent", ["data set", "method", *map(shots_name, shots)])
    table.notes.append(f"mean over seeds; {SPREAD}")
    for dataset in datasets:
        for name in rows:
            found = [cells.get((dataset, name, n), {}) for n in shots]
            if any(found):
                table.rows.append([dataset, name, *(summarise(list(f.values())) if f else None for f in found)])
    if len(datasets) > 1:
        for name in rows:
            parts = {n: [cells.get((dataset, name, n), {}) for dataset in datasets] for n in shots}
            averages = [_average(parts[n]) for n in shots]
            if any(averages):
                table.rows.append([AVERAGE, name, *averages])
            for n in (n for n, average in zip(shots, averages, strict=True) if average):
                title, own = f"{name}, {shots_name(n)}", [r for r in rows[name] if r.place.shots == n]
                table.notes += [*common_seeds_note(parts[n], title), *unlike_sets_note(own, title)]
    names = method_names(method_of(record) for record in records)
    methods = _by_column(records, lambda record: record.place.dataset)
    add_missing(table, records, {_place(k): v for k, v in methods.items()}, names, seeds)
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
            table.notes += common_seeds_note(parts, names[method])
    add_missing(table, records, found, names, seeds)
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
