"""Base-to-new generalisation: trained on the base classes, tested on them and on the new classes.

Published tables round the harmonic mean of a data set from its mean base and mean new accuracy, so here too the number
shown is that; its spread is that of the seeds' own harmonic means.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from results.layout import BENCHMARKS, Role, RunDirectory
from results.published import published_notes
from results.records import Record
from results.rows import Pair, in_order, method_names, method_of, methods_in_order, pairs_of
from results.settings import unlike_sets_note
from results.statistics import Summary, harmonic_mean, summarise
from results.tables import (
    SPREAD,
    Difference,
    Method,
    Table,
    TableOptions,
    Value,
    add_missing,
    common,
    common_seeds_note,
    departing,
    departure_notes,
    mean_of,
    published_entry,
)
from sweep.plan import Run, SweepConfig, refuse_others, transferable
from sweep.protocol import Protocol, register

BASE = Role("base2new/train_base/{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}", classes="base")
NEW = Role("base2new/test_new/{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}", classes="new", evaluates="base")
AVERAGE_OF_HMS = "average, HM = mean of the sets' HMs"
HM_OF_AVERAGES = "average, HM = HM of the mean accuracies"


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training on the base classes, which ends with testing on them, then testing on the new classes.

    Raises:
        Unserved: a trainer whose learned state belongs to its classes.
    """
    refuse_others(trainers, ("any",), "new classes")
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            file = config.config(trainer, "base2new", dataset)
            for seed in config.seeds_of(trainer):
                base = RunDirectory("base", dataset, trainer, Path(file).name, config.shots, seed)
                first = config.run(base, file, ("DATASET.SUBSAMPLE_CLASSES", "base"))
                second = ("DATASET.SUBSAMPLE_CLASSES", "new")
                runs += [first, config.run(replace(base, role="new"), file, second, first)]
    return transferable(runs, ("any",), "new classes")


def base2new(
    records: Iterable[Record], seeds: Sequence[int] = (), order: Sequence[str] = (), compare: bool = True
) -> Table:
    """Base, new and harmonic mean per data set and method, and both averages over the data sets.

    Args:
        records: of the roles `base` and `new`; others are passed over.
        seeds: those that are expected; by default those that any row has.
        order: data sets and trainers in the order wanted.
        compare: put published numbers beside, where there are any.
    """
    records = [record for record in records if record.place.role in ("base", "new")]
    pairs = pairs_of(records)
    table = Table("Base-to-new generalisation: accuracy in percent", ["data set", "method", "n", "base", "new", "HM"])
    table.notes.append(f"mean over n seeds; {SPREAD}; HM: harmonic mean of mean base and mean new accuracy")
    datasets = in_order((dataset for dataset, _ in pairs), order)
    methods = methods_in_order((method for _, method in pairs), order)
    names = method_names(methods)
    beside = {method: published_entry(records, "base2new", method) for method in methods} if compare else {}
    strange = departing(records, beside)
    keys = [(dataset, method) for dataset in datasets for method in methods if (dataset, method) in pairs]
    for dataset, method in keys:
        pair = pairs[dataset, method]
        cells = pair.summaries() if pair.seeds else [None, None, None]
        entry = None if (dataset, method) in strange else beside.get(method)
        table.rows.append([dataset, names[method], len(pair.seeds), *cells, *_facts(entry, [dataset])])
    for method in methods:
        entry = None if any((dataset, method) in strange for dataset in datasets) else beside.get(method)
        table.rows += _averages([pairs.get((dataset, method)) for dataset in datasets], datasets, names[method], entry)
        everywhere = [set(pairs[dataset, method].seeds) for dataset in datasets if (dataset, method) in pairs]
        if len(everywhere) == len(datasets):
            table.notes += common_seeds_note(everywhere, names[method])
            own = (record for record in records if method_of(record) == method)
            table.notes += unlike_sets_note(own, names[method])
    add_missing(table, records, {key: pair.seeds for key, pair in pairs.items()}, names, seeds)
    _add_published_columns(table, beside, datasets)
    table.notes += departure_notes(strange, names)
    return table


def _averages(
    parts: Sequence[Pair | None], datasets: Sequence[str], name: str, fact: Mapping | None
) -> list[list[Value]]:
    """The two average rows of a method, over the seeds that have every data set.

    None unless it has every data set of the table, at least two, and such a seed.
    """
    seeds = common([set(pair.seeds) if pair else set() for pair in parts])
    if len(parts) < 2 or not seeds:
        return []
    own = [Pair({s: pair.base[s] for s in seeds}, {s: pair.new[s] for s in seeds}) for pair in parts if pair]
    base = summarise([mean_of(pair.base[s] for pair in own) for s in seeds])
    new = summarise([mean_of(pair.new[s] for pair in own) for s in seeds])
    per_seed = [mean_of(harmonic_mean(pair.base[s], pair.new[s]) for pair in own) for s in seeds]
    mean_of_hms = summarise(per_seed, mean_of(pair.summaries()[2].mean for pair in own))
    per_seed = [harmonic_mean(mean_of(p.base[s] for p in own), mean_of(p.new[s] for p in own)) for s in seeds]
    hm_of_means = summarise(per_seed, harmonic_mean(base.mean, new.mean))
    first, second = _facts(fact, datasets), _facts(fact, datasets, of_means=True)
    return [
        [AVERAGE_OF_HMS, name, len(seeds), base, new, mean_of_hms, *first],
        [HM_OF_AVERAGES, name, len(seeds), base, new, hm_of_means, *second],
    ]


def _facts(entry: Mapping | None, datasets: Sequence[str], of_means: bool = False) -> list[Value]:
    """Published base, new and HM over the data sets; None where they are not known."""
    numbers = entry["results"] if entry else {}
    if all(dataset in numbers for dataset in datasets):
        each = [numbers[dataset] for dataset in datasets]
        base, new = mean_of(pair[0] for pair in each), mean_of(pair[1] for pair in each)
        hm = harmonic_mean(base, new) if of_means else mean_of(harmonic_mean(*pair) for pair in each)
        return [base, new, hm]
    if set(datasets) == set(BENCHMARKS) and "average" in numbers:
        base, new = numbers["average"]
        return [base, new, harmonic_mean(base, new) if of_means and base is not None else None]
    return [None, None, None]


def _add_published_columns(table: Table, beside: Mapping[Method, Mapping | None], datasets: Sequence[str]) -> None:
    """Turn the three numbers at the end of each row into columns and differences; drop them if there are none."""
    known = any(value is not None for row in table.rows for value in row[6:])
    for row in table.rows:
        facts = row[6:]
        del row[6:]
        if known:
            row += facts
            row += [
                Difference(own.mean - fact) if isinstance(own, Summary) and isinstance(fact, float | int) else None
                for own, fact in zip(row[3:6], facts, strict=True)
            ]
    if known:
        table.columns += [f"published {what}" for what in ("base", "new", "HM")]
        table.columns += [f"difference {what}" for what in ("base", "new", "HM")]
        table.notes += published_notes(filter(None, beside.values()), datasets)
        table.notes.append("difference: own mean less the published one")


def _table(records: Sequence[Record], options: TableOptions) -> Table:
    return base2new(records, options.seeds, options.order, options.compare)


register(Protocol("base2new", plan, _table, {"base": BASE, "new": NEW}, BENCHMARKS, seeds="1-20"))
