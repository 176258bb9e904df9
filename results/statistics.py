"""Numbers over seeds: mean, spread, interval, harmonic mean, paired tests."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """One number over seeds.

    Attributes:
        mean: in the unit of what was averaged.
        sd: sample standard deviation (n - 1); None for n = 1.
        ci95: half width of the 95% interval by Student's t; None for n = 1.
        n: how many.
    """

    mean: float
    sd: float | None
    ci95: float | None
    n: int


def summarise(values: Sequence[float], mean: float | None = None) -> Summary:
    """Mean and spread of at least one value; with `mean`, that number takes the place of the values' own mean."""
    n = len(values)
    centre = statistics.fmean(values) if mean is None else mean
    if n < 2:
        return Summary(centre, None, None, n)
    sd = statistics.stdev(values)
    return Summary(centre, sd, t_quantile(n - 1) * sd / math.sqrt(n), n)


def t_quantile(freedom: int) -> float:
    """The two-sided 95% quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def population_ci95(values: Sequence[float]) -> float:
    """1.96 population standard deviations over the root of n: what `--ci95` has always meant in the code family."""
    return 1.96 * statistics.pstdev(values) / math.sqrt(len(values))


def harmonic_mean(base: float, new: float) -> float:
    """2 / (1/base + 1/new); 0 if either is 0."""
    return 2 * base * new / (base + new) if base > 0 and new > 0 else 0.0


@dataclass(frozen=True)
class PairedTest:
    """Differences of matched results, second minus first.

    Attributes:
        difference: mean, spread and interval of the differences.
        t_p: two-sided p of the paired t test; None where it says nothing (n < 2, or all differences equal).
        wilcoxon_p: two-sided p of Wilcoxon's signed-rank test; None for n < 2 or where all differences are 0.
    """

    difference: Summary
    t_p: float | None
    wilcoxon_p: float | None


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Compare two sequences of the same length, pair by pair."""
    from scipy import stats

    differences = [b - a for a, b in zip(first, second, strict=True)]
    varied = len(differences) > 1 and max(differences) - min(differences) > 1e-9
    t_p = float(stats.ttest_rel(second, first).pvalue) if varied else None
    signed = len(differences) > 1 and any(abs(d) > 1e-9 for d in differences)
    wilcoxon_p = float(stats.wilcoxon(differences).pvalue) if signed else None
    return PairedTest(summarise(differences), t_p, wilcoxon_p)
