"""Few-shot classification: trained and tested on all classes, with several numbers of shots."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from results.layout import BENCHMARKS, Role, RunDirectory
from results.published import published_notes
from results.records import Record
from results.rows import Method, few_shot_rows, few_shot_runs, in_order, method_names, method_of, shots_name
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
    departing,
    departure_notes,
    published_entries,
)
from sweep.plan import Run, SweepConfig
from sweep.protocol import Protocol, register

ALL = Role("{dataset}/{trainer}/{cfg}_{shots}shots{variant}/seed{seed}")


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training and testing on all classes."""
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            file = config.config(trainer, "all", dataset)
            for seed in config.seeds_of(trainer):
                name = Path(file).name
                place = RunDirectory("all", dataset, trainer, name, config.shots, seed, config.variant)
                runs.append(config.run(place, file))
    return runs


def few_shot(
    records: Iterable[Record],
    seeds: Sequence[int] = (),
    order: Sequence[str] = (),
    compare: bool = True,
    role: str = "all",
    title: str = "Few-shot classification",
    free: Sequence[str] = (),
) -> Table:
    """Trained and tested on all classes: a row per data set and method, a column per number of shots.

    Args:
        records: of the role; others are passed over.
        seeds: those that are expected; by default those that any row has.
        order: data sets and trainers in the order wanted.
        compare: put rows with published numbers beside, where there are any.
        role: of the runs that are shown.
        title: of the table.
        free: keys in which runs may differ from published recipes.
    """
    rows = few_shot_rows(records, order, role)
    records = [record for own in rows.values() for record in own]
    shots = sorted({record.place.shots for record in records})
    datasets = in_order({record.place.dataset for record in records}, order)
    cells: dict[tuple[str, str, int], dict[int, float]] = {}
    for name, own in rows.items():
        for record in own:
            if not record.problem:
                by_seed = cells.setdefault((record.place.dataset, name, record.place.shots), {})
                by_seed[record.place.seed] = record.accuracy
    table = Table(f"{title}: accuracy in percent", ["data set", "method", *map(shots_name, shots)])
    table.notes.append(f"mean over seeds; {SPREAD}")
    beside = _Beside(records, datasets, free) if compare else None
    for dataset in datasets:
        for name in rows:
            found = [cells.get((dataset, name, n), {}) for n in shots]
            if any(found):
                values = [summarise(list(f.values())) if f else None for f in found]
                table.rows.append([dataset, name, *values])
                table.rows += beside.rows(dataset, rows[name], shots, values) if beside else []
    if len(datasets) > 1:
        for name in rows:
            parts = {n: [cells.get((dataset, name, n), {}) for dataset in datasets] for n in shots}
            averages = [average(parts[n]) for n in shots]
            if any(averages):
                table.rows.append([AVERAGE, name, *averages])
                table.rows += beside.rows(AVERAGE, rows[name], shots, averages) if beside else []
            for n in (n for n, average in zip(shots, averages, strict=True) if average):
                title, own = f"{name}, {shots_name(n)}", [r for r in rows[name] if r.place.shots == n]
                table.notes += [*common_seeds_note(parts[n], title), *unlike_sets_note(own, title)]
    names = method_names(method_of(record) for record in records)
    add_missing(table, records, by_dataset(records), names, seeds)
    table.notes += beside.notes(names) if beside else []
    return table


class _Beside:
    """Published numbers of few-shot runs.

    Args:
        records: the runs of the table.
        datasets: its data sets; published averages are over all benchmarks.
        free: keys in which runs may differ from published recipes.
    """

    def __init__(self, records: Sequence[Record], datasets: Sequence[str], free: Sequence[str] = ()):
        methods = dict.fromkeys(map(method_of, records))
        self.datasets = datasets
        self.entries = {method: published_entries(records, "fewshot", method) for method in methods}
        self.strange = departing(records, self.entries, free)
        self.shown: list[Mapping] = []

    def rows(
        self, dataset: str, records: Iterable[Record], shots: Sequence[int], own: Sequence[Summary | None]
    ) -> list[list[Value]]:
        """Two rows below a method's: the published numbers for a data set, or the average, and the differences."""
        own_records = [r for r in records if dataset in (AVERAGE, r.place.dataset)]
        facts = [self._fact(dataset, {method_of(r) for r in own_records if r.place.shots == n}) for n in shots]
        if not any(facts):
            return []
        differences: list[Value] = [
            Difference(value.mean - fact) if value and fact else None for value, fact in zip(own, facts, strict=True)
        ]
        return [[dataset, "  published", *facts], [dataset, "  difference", *differences]]

    def _fact(self, dataset: str, methods: Collection[Method]) -> float | None:
        """The first published number of a row's methods, unless they were not run as published; noted as shown."""
        covered = self.datasets if dataset == AVERAGE else [dataset]
        if dataset == AVERAGE and set(covered) != set(BENCHMARKS):
            return None
        if any((name, method) in self.strange for name in covered for method in methods):
            return None
        for entry in (entry for method in sorted(methods) for entry in self.entries[method]):
            if dataset in entry["results"]:
                self.shown.append(entry)
                return entry["results"][dataset]
        return None

    def notes(self, names: Mapping[Method, str]) -> list[str]:
        """Sources of what was shown, and what was not held against published numbers."""
        return [*published_notes(self.shown, self.datasets), *departure_notes(self.strange, names)]


def _table(records: Sequence[Record], options: TableOptions) -> Table:
    return few_shot(records, options.seeds, options.order, options.compare)


register(Protocol("fewshot", plan, _table, {"all": ALL}, BENCHMARKS, (1, 2, 4, 8, 16), "1-3", own=few_shot_runs))
