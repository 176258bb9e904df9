"""Cross-dataset transfer: trained on all classes of one data set, tested on others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from protocols.fewshot import ALL
from results.layout import BENCHMARKS, IMAGENET_VARIANTS, USUAL_SOURCE, Role, RunDirectory
from results.published import published_notes
from results.records import Record
from results.rows import in_order, method_names, method_of, methods_in_order
from results.settings import unlike_sets_note
from results.statistics import Summary, summarise
from results.tables import (
    AVERAGE,
    SPREAD,
    Difference,
    Table,
    TableOptions,
    Value,
    add_missing,
    average,
    by_dataset,
    common_seeds_note,
    counted,
    departing,
    departure_notes,
    mean_of,
    published_entry,
)
from sweep.plan import Run, SweepConfig, refuse_others, transferable
from sweep.protocol import Protocol, register

TRANSFER = Role("evaluation{origin}/{trainer}/{cfg}_{shots}shots{variant}/{dataset}/seed{seed}", evaluates="all")
ROLES = {"all": ALL, "transfer": TRANSFER}
TITLES = {"xd": "Cross-dataset transfer", "dg": "Domain generalisation"}


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training on all classes of the source, then testing on the other sets.

    Raises:
        Unserved: a trainer whose learned state belongs to its classes, and cannot be tested on a part of them.
    """
    allowed = ("any", "subset") if set(datasets) <= set(IMAGENET_VARIANTS) else ("any",)
    refuse_others(trainers, allowed, "other data sets")
    runs = []
    for trainer in trainers:
        file = config.config(trainer, "transfer", config.source)
        for seed in config.seeds_of(trainer):
            source = RunDirectory("all", config.source, trainer, Path(file).name, config.shots, seed, config.variant)
            first = config.run(source, file)
            others = [name for name in datasets if name != config.source]  # the training ends with testing on its own
            tested = [replace(source, role="transfer", dataset=name, source=config.source) for name in others]
            runs += [first, *(config.run(place, file, (), first) for place in tested)]
    return transferable(runs, allowed, "other data sets")


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
    cells = by_dataset([*trained, *tested])
    targets = [name for name in in_order((record.place.dataset for record in tested), order) if name != source]
    table = Table(f"{TITLES[protocol]}: accuracy in percent, trained on {source}", ["method", "n", source])
    table.columns += [*targets, AVERAGE]
    table.notes.append(f"mean over n seeds; {SPREAD}; the average is over the data sets that were not trained on")
    names = method_names(methods)
    beside = {method: published_entry(tested, protocol, method) for method in methods} if compare else {}
    strange = departing([*trained, *tested], beside)
    for method in methods_in_order(methods, order):
        own = [cells.get((dataset, method), {}) for dataset in [source, *targets]]
        values = [summarise([part[seed] for seed in sorted(part)]) if part else None for part in own]
        table.rows.append([names[method], counted(own), *values, average(own[1:])])
        table.notes += common_seeds_note(own[1:], names[method])
        table.notes += unlike_sets_note((r for r in [*trained, *tested] if method_of(r) == method), names[method])
        if not any(key[1] == method for key in strange):
            _add_published(table, beside.get(method))
    add_missing(table, [*trained, *tested], cells, names, seeds)
    table.notes += departure_notes(strange, names)
    return table


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
    table.notes += [note for note in published_notes([entry], datasets) if note not in table.notes]


def protocol(name: str, datasets: tuple[str, ...]) -> Protocol:
    """A protocol of transfer: `xd`, or `dg`."""

    def table(records: Sequence[Record], options: TableOptions) -> Table:
        source = options.source or USUAL_SOURCE
        return transfer(records, options.seeds, options.order, options.compare, name, source)

    def tables(records: Sequence[Record], options: TableOptions) -> dict[str, Table]:
        return transfers(records, name, options.seeds, options.compare, options.source)

    def own(records: Sequence[Record]) -> list[Record]:
        tested = [record for record in records if record.place.role == "transfer"]
        tested = [record for record in tested if (record.place.dataset in IMAGENET_VARIANTS) == (name == "dg")]
        trainings = {record.place.training() for record in tested}
        return [record for record in records if record.place in trainings] + tested

    return Protocol(name, plan, table, ROLES, datasets, seeds="1-5", tables=tables, own=own)


register(protocol("xd", BENCHMARKS[1:]))
