"""Few-shot logistic regression with its L2 strength searched on a few validation images.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, appendix A.3; draws
and search as in Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134).
"""

import warnings
from functools import cache
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from lpclip.features import Features

SHOTS = (1, 2, 4, 8, 16)
RUNS = 10
MAX_VAL_SHOTS = 4
SWEEP = (6, 4, 2, 0, -2, -4, -6)  # exponents of C = 10^e, the inverse of the L2 strength
HALVINGS = 8
MAX_ITERATIONS = 1000


class Probe(NamedTuple):
    """One run: the chosen C and the test accuracy in percent."""

    c: float
    accuracy: float


def draw(features: Features, shots: int, generator: np.random.RandomState) -> Features:
    """`shots` images of each class in ascending order of labels; all of a class that has fewer."""
    chosen = []
    for label in np.unique(features.y):
        indices = np.flatnonzero(features.y == label)
        chosen.append(generator.choice(indices, min(shots, len(indices)), replace=False))
    rows = np.concatenate(chosen)
    return Features(features.x[rows].astype(np.float64), features.y[rows])


def fit(train: Features, c: float) -> LogisticRegression:
    """Multinomial logistic regression with an L2 penalty of inverse strength `c`."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # the procedure stops after its iterations, converged or not
        return LogisticRegression(solver="lbfgs", max_iter=MAX_ITERATIONS, C=c).fit(train.x, train.y)


def accuracy(classifier: LogisticRegression, features: Features) -> float:
    """Share of right answers, in percent."""
    return 100 * float(np.mean(classifier.predict(features.x) == features.y))


def search(train: Features, val: Features) -> tuple[float, LogisticRegression]:
    """The C that does best on `val`, and its classifier.

    A sweep over powers of 100 (the first best is the peak), then interval halving in log10 between a tenth and ten
    times the peak: of the two ends the better one is kept, the lower on ties, and the other moves to the middle.
    """

    @cache
    def tried(exponent: float) -> tuple[float, LogisticRegression]:
        classifier = fit(train, 10.0**exponent)
        return accuracy(classifier, val), classifier

    peak = max(SWEEP, key=lambda exponent: tried(exponent)[0])
    low, high = peak - 1.0, peak + 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if tried(low)[0] < tried(high)[0]:
            kept, low = high, middle
        else:
            kept, high = low, middle
    return 10.0**kept, tried(kept)[1]


def probe(features: dict[str, Features], shots: int, seed: int) -> Probe:
    """One run: draw the training shots, then up to 4 validation shots, search, and measure on the test list."""
    generator = np.random.RandomState(seed)  # the stream of the official draws
    train = draw(features["train"], shots, generator)
    val = draw(features["val"], min(shots, MAX_VAL_SHOTS), generator)
    c, classifier = search(train, val)
    return Probe(c, accuracy(classifier, features["test"]))
