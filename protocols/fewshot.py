"""Few-shot classification: trained and tested on all classes, with several numbers of shots."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from results.layout import BENCHMARKS, Role, RunDirectory
from results.records import Record
from results.rows import few_shot_rows, in_order, method_names, method_of, shots_name
from results.settings import unlike_sets_note
from results.statistics import summarise
from results.tables import AVERAGE, SPREAD, Table, TableOptions, add_missing, average, by_dataset, common_seeds_note
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
            averages = [average(parts[n]) for n in shots]
            if any(averages):
                table.rows.append([AVERAGE, name, *averages])
            for n in (n for n, average in zip(shots, averages, strict=True) if average):
                title, own = f"{name}, {shots_name(n)}", [r for r in rows[name] if r.place.shots == n]
                table.notes += [*common_seeds_note(parts[n], title), *unlike_sets_note(own, title)]
    names = method_names(method_of(record) for record in records)
    add_missing(table, records, by_dataset(records), names, seeds)
    return table


def _table(records: Sequence[Record], options: TableOptions) -> Table:
    return few_shot(records, options.seeds, options.order)


register(Protocol("fewshot", plan, _table, {"all": ALL}, BENCHMARKS, (1, 2, 4, 8, 16), "1-3"))
