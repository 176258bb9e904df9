"""Tables of records: one row per data set and method, then the averages over data sets.

Spread is always over seeds. Published tables round the harmonic mean of a data set from its mean base and mean new
accuracy, so here too the number shown is that; its spread is that of the seeds' own harmonic means.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from results.layout import BENCHMARKS, IMAGENET_VARIANTS, ZERO_SHOT
from results.published import published
from results.records import Record
from results.seeds import numbers, seeds_name
from results.statistics import Summary, harmonic_mean, summarise


class Difference(float):
    """A number that is shown with its sign."""


class Probability(float):
    """A p value: shown with three significant digits."""


Value = Summary | float | int | str | None
Method = tuple[str, str, int]  # trainer, configuration, shots

SPREAD = "± is the sample standard deviation over seeds (n - 1), in brackets half the width of the 95% t interval"
AVERAGE_OF_HMS = "average, HM = mean of the sets' HMs"
HM_OF_AVERAGES = "average, HM = HM of the mean accuracies"


@dataclass
class Table:
    """Columns and rows of equal length; `notes` say what the numbers are and what is missing."""

    title: str
    columns: list[str]
    rows: list[list[Value]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Pair:
    """Base and new accuracy of one method on one data set, by seed, where both are there."""

    base: dict[int, float]
    new: dict[int, float]

    @property
    def seeds(self) -> list[int]:
        """Seeds that have both."""
        return sorted(self.base.keys() & self.new.keys())

    def summaries(self) -> list[Summary]:
        """Base, new and harmonic mean over the seeds that have both (at least one)."""
        base = summarise([self.base[seed] for seed in self.seeds])
        new = summarise([self.new[seed] for seed in self.seeds])
        own = [harmonic_mean(self.base[seed], self.new[seed]) for seed in self.seeds]
        return [base, new, summarise(own, mean=harmonic_mean(base.mean, new.mean))]


def method_of(record: Record) -> Method:
    """What is averaged over seeds: trainer, configuration and shots."""
    place = record.place
    return place.trainer, f"{place.cfg}/{place.variant}" if place.variant else place.cfg, place.shots


def method_names(methods: Iterable[Method]) -> dict[Method, str]:
    """A name for each method: the trainer, with configuration and shots only where the trainer alone is not enough."""
    methods = list(dict.fromkeys(methods))
    names = {}
    for method in methods:
        trainer, cfg, shots = method
        rivals = [other for other in methods if other[0] == trainer and other != method]
        extra = [cfg] if any(other[1] != cfg for other in rivals) else []
        extra += [shots_name(shots)] if any(other[2] != shots for other in rivals) else []
        names[method] = f"{trainer} ({', '.join(extra)})" if extra else trainer
    return names


def shots_name(shots: int) -> str:
    """`1 shot`, `2 shots`."""
    return f"{shots} shot{'' if shots == 1 else 's'}"


def in_order(names: Iterable[str], order: Sequence[str] = ()) -> list[str]:
    """Names as in `order`, then data sets as in the papers, then zero-shot, then the rest by the alphabet."""
    ranks = {name: rank for rank, name in enumerate([*order, *BENCHMARKS, *IMAGENET_VARIANTS])}
    return sorted(set(names), key=lambda name: (ranks.get(name, len(ranks)), not name.startswith(ZERO_SHOT), name))


def methods_in_order(methods: Iterable[Method], order: Sequence[str] = ()) -> list[Method]:
    """Methods by their trainers as in `in_order`, then by configuration and shots."""
    methods = set(methods)
    trainers = in_order((trainer for trainer, _, _ in methods), order)
    return sorted(methods, key=lambda method: (trainers.index(method[0]), method))


def pairs_of(records: Iterable[Record]) -> dict[tuple[str, Method], Pair]:
    """Base and new accuracies of sound records by data set and method."""
    pairs: dict[tuple[str, Method], Pair] = {}
    for record in records:
        if record.place.role in ("base", "new"):
            pair = pairs.setdefault((record.place.dataset, method_of(record)), Pair({}, {}))
            if not record.problem:
                getattr(pair, record.place.role)[record.place.seed] = record.accuracy
    return pairs


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
    keys = [(dataset, method) for dataset in datasets for method in methods if (dataset, method) in pairs]
    for dataset, method in keys:
        pair = pairs[dataset, method]
        cells = pair.summaries() if pair.seeds else [None, None, None]
        table.rows.append([dataset, names[method], len(pair.seeds), *cells, *_facts(beside.get(method), [dataset])])
    for method in methods:
        table.rows.extend(_averages(method, pairs, datasets, names[method], beside.get(method)))
    table.notes += missing_seeds(records, {key: pair.seeds for key, pair in pairs.items()}, names, seeds)
    table.notes += complaints(records, names)
    _add_published_columns(table, beside)
    return table


def _averages(
    method: Method,
    pairs: Mapping[tuple[str, Method], Pair],
    datasets: Sequence[str],
    name: str,
    fact: Mapping | None,
) -> list[list[Value]]:
    """The two average rows of a method; none unless it has every data set of the table, and at least two."""
    own = [
        pairs[dataset, method] for dataset in datasets if (dataset, method) in pairs and pairs[dataset, method].seeds
    ]
    if len(own) < len(datasets) or len(own) < 2:
        return []
    seeds = sorted(set.intersection(*(set(pair.seeds) for pair in own)))
    if not seeds:
        return []
    means = {s: (mean_of(p.base[s] for p in own), mean_of(p.new[s] for p in own)) for s in seeds}
    base, new = (summarise([means[s][i] for s in seeds], mean_of(p.summaries()[i].mean for p in own)) for i in (0, 1))
    per_seed = [mean_of(harmonic_mean(p.base[s], p.new[s]) for p in own) for s in seeds]
    mean_of_hms = summarise(per_seed, mean_of(p.summaries()[2].mean for p in own))
    hm_of_means = summarise([harmonic_mean(*means[s]) for s in seeds], harmonic_mean(base.mean, new.mean))
    first, second = _facts(fact, datasets), _facts(fact, datasets, of_means=True)
    return [
        [AVERAGE_OF_HMS, name, len(seeds), base, new, mean_of_hms, *first],
        [HM_OF_AVERAGES, name, len(seeds), base, new, hm_of_means, *second],
    ]


def mean_of(values: Iterable[float]) -> float:
    """The mean of at least one number."""
    values = list(values)
    return sum(values) / len(values)


def published_entry(records: Iterable[Record], protocol: str, method: Method) -> dict | None:
    """The published entry for a method, by the backbone that one of its records names."""
    backbones = (record.metrics.get("backbone") for record in records if method_of(record) == method)
    backbone = next(filter(None, backbones), "")
    return published(protocol, method[0], method[1].split("/")[0], backbone, method[2])


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


def _add_published_columns(table: Table, beside: Mapping[Method, Mapping | None]) -> None:
    """Turn the three numbers at the end of each row into columns and differences; drop them if there are none."""
    known = any(value is not None for row in table.rows for value in row[6:])
    for row in table.rows:
        facts = row[6:]
        del row[6:]
        if known:
            row += facts
            row += [
                Difference(round(own.mean, 2) - fact) if own is not None and fact is not None else None
                for own, fact in zip(row[3:6], facts, strict=True)
            ]
    if known:
        table.columns += [f"published {what}" for what in ("base", "new", "HM")]
        table.columns += [f"difference {what}" for what in ("base", "new", "HM")]
        entries = {f"{entry['name']} ({entry['seeds']} seeds): {entry['source']}" for entry in beside.values() if entry}
        table.notes += [f"published: {entry}" for entry in sorted(entries)]
        table.notes.append("difference: own mean less the published one")


def missing_seeds(
    records: Sequence[Record],
    found: Mapping[tuple[str, Method], Collection[int]],
    names: Mapping[Method, str],
    seeds: Sequence[int] = (),
) -> list[str]:
    """A sentence for each data set and method that lacks seeds, and one for the methods that learn nothing.

    Args:
        records: all runs of the table.
        found: the seeds that have a sound result.
        names: what the methods are called.
        seeds: those that are expected; by default those that any run has.
    """
    constant = {method_of(record) for record in records if not record.learns}
    expected = set(seeds) or {record.place.seed for record in records if method_of(record) not in constant}
    sentences = []
    for (dataset, method), there in found.items():
        missing = sorted(expected - set(there))
        if missing and not (method in constant and there):
            sentences.append(f"{dataset}, {names[method]}: no result of seeds {numbers(missing)}")
    if constant:
        learnless = ", ".join(sorted({names[method] for method in constant}))
        sentences.append(f"{learnless}: nothing is learned, every seed gives the same, so n = 1 says all")
    return sentences


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
