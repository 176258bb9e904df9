"""Do two methods differ? Paired tests over the seeds that both have, per data set and over all pairs."""

from collections.abc import Iterable, Sequence

from results.records import Record
from results.rows import Pair, in_order, method_names, method_of, pairs_of
from results.settings import selection_notes
from results.statistics import harmonic_mean, paired_test
from results.tables import Probability, Table

MEASURES = ("base", "new", "HM")


def paired(records: Iterable[Record], first: str, second: str, order: Sequence[str] = ()) -> Table:
    """Base, new and harmonic mean of the second method less those of the first, with their tests.

    A method that learns nothing has one result, which is matched with every seed of the other.

    Args:
        records: of the roles `base` and `new`; others are passed over.
        first: method to compare with, as the tables call it.
        second: method that is looked at.
        order: data sets in the order wanted.

    Raises:
        ValueError: there is no such method; the sentence names those that there are.
    """
    records = list(records)
    pairs = pairs_of(records)
    names = {name: method for method, name in method_names(method for _, method in pairs).items()}
    for name in (first, second):
        if name not in names:
            raise ValueError(f"--paired: no method {name!r}; there are: {', '.join(sorted(names)) or 'none'}")
    constant = {record.place.trainer for record in records if not record.learns}
    a, b = names[first], names[second]
    datasets = in_order((dataset for dataset, method in pairs if method == a and (dataset, b) in pairs), order)
    table = Table(
        f"{second} less {first}: accuracy in points",
        ["data set", "measure", "n", "difference", "p (t)", "p (Wilcoxon)"],
    )
    matched = {dataset: _matched(pairs[dataset, a], pairs[dataset, b], {a[0], b[0]} & constant) for dataset in datasets}
    for dataset in datasets:
        for measure in MEASURES:
            table.rows.append(_row(dataset, measure, matched[dataset][measure]))
    if len(datasets) > 1:
        for measure in MEASURES:
            together = [two for dataset in datasets for two in matched[dataset][measure]]
            table.rows.append(_row("all", measure, together))
    table.notes = [
        "pairs are seeds of one data set (all: of every data set); difference: mean ± sample standard deviation (half "
        "the width of the 95% t interval)",
        "p: two-sided, of the paired t test and of Wilcoxon's signed-rank test; not corrected for the number of rows",
        *selection_notes(r for r in records if r.place.role in ("base", "new") and method_of(r) in (a, b)),
    ]
    return table


def _matched(first: Pair, second: Pair, constant: set[str]) -> dict[str, list[tuple[float, float]]]:
    """Pairs of values by measure, over the seeds that both have, or that the learning one has."""
    if constant and min(len(first.seeds), len(second.seeds)) == 1:
        longer = max(first.seeds, second.seeds, key=len)
        seeds = [
            (first.seeds[0] if len(first.seeds) == 1 else s, second.seeds[0] if len(second.seeds) == 1 else s)
            for s in longer
        ]
    else:
        seeds = [(seed, seed) for seed in sorted(set(first.seeds) & set(second.seeds))]
    return {
        "base": [(first.base[s], second.base[t]) for s, t in seeds],
        "new": [(first.new[s], second.new[t]) for s, t in seeds],
        "HM": [
            (harmonic_mean(first.base[s], first.new[s]), harmonic_mean(second.base[t], second.new[t])) for s, t in seeds
        ],
    }


def _row(dataset: str, measure: str, matched: Sequence[tuple[float, float]]) -> list:
    """A row of the table; without numbers where nothing matches."""
    if not matched:
        return [dataset, measure, 0, None, None, None]
    test = paired_test(*zip(*matched, strict=True))
    return [dataset, measure, len(matched), test.difference, _p(test.t_p), _p(test.wilcoxon_p)]


def _p(value: float | None) -> Probability | None:
    return None if value is None else Probability(value)
