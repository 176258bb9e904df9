"""Tables of records: one row per data set and method, then the averages over data sets.

Spread is always over seeds. Published tables round the harmonic mean of a data set from its mean base and mean new
accuracy, so here too the number shown is that; its spread is that of the seeds' own harmonic means.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from results.layout import BENCHMARKS, IMAGENET_VARIANTS, ZERO_SHOT
from results.published import departures, published
from results.records import Record
from results.seeds import numbers, seeds_name
from results.settings import SHOWN, unlike_sets_note
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
    """Columns and rows of equal length; `notes` say what the numbers are and what is missing.

    `complete` says whether every run that was expected has a sound result.
    """

    title: str
    columns: list[str]
    rows: list[list[Value]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True


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
    _add_published_columns(table, beside)
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


def published_entry(records: Iterable[Record], protocol: str, method: Method) -> dict | None:
    """The published entry for a method, by the backbone that one of its records names."""
    backbones = (record.metrics.get("backbone") for record in records if method_of(record) == method)
    backbone = next(filter(None, backbones), "")
    return published(protocol, method[0], method[1].split("/")[0], backbone, method[2])


def departing(
    records: Iterable[Record], beside: Mapping[Method, Mapping | None]
) -> dict[tuple[str, Method], list[str]]:
    """The data sets and methods with published numbers that were not run as published: what differs (`departures`)."""
    found: dict[tuple[str, Method], list[str]] = {}
    for record in records:
        key = record.place.dataset, method_of(record)
        if not record.problem and beside.get(key[1]) and key not in found and (differ := departures(record)):
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
                Difference(own.mean - fact) if own is not None and fact is not None else None
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
    table.notes += [*lacking, *left_out, *_constant_note(records, names)]
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
