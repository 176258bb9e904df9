"""Which of several methods to use, by cross-validation over the support images alone."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from results.statistics import CONFIDENCE, Summary, t_quantile


def cross_validated(values: Sequence[float], folds: int) -> Summary:
    """Mean and spread over the folds of a repeated cross-validation.

    The trainings of two folds share most of their images, so the folds' spread alone makes the mean look too sure. The
    interval is that of Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 2003: the variance
    of the mean is `sd^2 (1/n + test/train)`, where `test/train` is 1 / (folds - 1).

    Args:
        values: a number per fold, n of them.
        folds: in how many the images were dealt.
    """
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Summary(mean, None, None, n)
    sd = statistics.stdev(values)
    return Summary(mean, sd, t_quantile(n - 1) * sd * math.sqrt(1 / n + 1 / (folds - 1)), n)


@dataclass(frozen=True)
class Choice:
    """An answer.

    Attributes:
        best: the method with the highest mean accuracy over the folds; of equals, the cheapest.
        equals: the others that cannot be told from it: the 95% interval of the difference holds 0.
        cheapest: of the best and its equals, the one that took the least time.
        differences: of each other method, the best less it, fold by fold.
    """

    best: str
    equals: tuple[str, ...]
    cheapest: str
    differences: Mapping[str, Summary]


def choose(accuracies: Mapping[str, Sequence[float]], seconds: Mapping[str, float], folds: int) -> Choice:
    """The answer for one data set.

    Args:
        accuracies: of each method, per fold in percent; the folds are the same for all, in the same order.
        seconds: of a training, by method.
        folds: in how many the images were dealt.

    Raises:
        ValueError: no method, or methods with different numbers of folds.
    """
    if len({len(values) for values in accuracies.values()}) != 1:
        raise ValueError("there is nothing to choose from: every method has to have the same folds")
    means = {name: statistics.fmean(values) for name, values in accuracies.items()}
    best = min(means, key=lambda name: (-round(means[name], 9), seconds[name]))
    others = [name for name in accuracies if name != best]
    differences = {
        name: cross_validated([a - b for a, b in zip(accuracies[best], accuracies[name], strict=True)], folds)
        for name in others
    }
    equals = tuple(name for name, found in differences.items() if found.ci95 is None or found.mean <= found.ci95)
    return Choice(best, equals, min((best, *equals), key=lambda name: seconds[name]), differences)


def answer(choice: Choice, accuracies: Mapping[str, Summary], seconds: Mapping[str, float]) -> str:
    """The answer in a sentence: `APEX 84.10 +- 1.90, CLIP_LoRA 83.70 +- 2.20: no difference; the cheaper is ...`."""

    def one(name: str) -> str:
        found = accuracies[name]
        return f"{name} {found.mean:.2f}" + ("" if found.ci95 is None else f" +- {found.ci95:.2f}")

    if not choice.equals:
        return f"{one(choice.best)}: better than every other ({CONFIDENCE:.0%} interval of the difference)"
    together = ", ".join(map(one, (choice.best, *choice.equals)))
    comparative = "cheaper" if len(choice.equals) == 1 else "cheapest"
    times = ", ".join(f"{name} {seconds[name]:.1f} s" for name in (choice.best, *choice.equals))
    return f"{together}: no difference; the {comparative} is {choice.cheapest} ({times} a training)"
