"""Calibration, selective accuracy and confidence of the answers of one evaluation, from its stored predictions alone.

Shape legend: N images, C classes, E width of class features, K nearest classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dassl.evaluation.predictions import Predictions

BINS = 15  # as in Guo et al. 2017 and most papers since
COVERAGES = np.linspace(0.01, 1, 100)  # at which the curve of risk over coverage is kept
NEAREST = 5  # training classes that the distance of a class is measured to
TEMPERATURES = 0.02, 50.0  # between which the best one is looked for
BLOCK = 4_000_000  # probabilities that are computed at a time, 32 MB

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ImageScores:
    """What the measures need of each image.

    Attributes:
        confidence: (N,) the probability of the answer, the largest of the softmax.
        correct: (N,) 1 or 0.
        nll: (N,) minus the log-probability of the true class, in nats.
        brier: (N,) sum over the classes of the squared difference of probability and truth, from 0 to 2.
    """

    confidence: Array
    correct: Array
    nll: Array
    brier: Array


def image_scores(predictions: Predictions, temperature: float | Array = 1.0) -> ImageScores:
    """The scores of each image, with logits divided by one temperature, or by one of each image (N,)."""
    each = np.broadcast_to(np.asarray(temperature, np.float64), (len(predictions),))
    parts = [_block(predictions.select(rows), each[rows]) for rows in _blocks(predictions)]
    confidence, nll, brier = (np.concatenate(part) for part in zip(*parts, strict=True))
    return ImageScores(confidence, predictions.correct.astype(np.float64), nll, brier)


def _blocks(predictions: Predictions) -> Iterator[slice]:
    """The images in parts whose probabilities fit into memory."""
    size = max(1, BLOCK // predictions.num_classes)
    return (slice(start, start + size) for start in range(0, len(predictions), size))


def _block(predictions: Predictions, temperature: Array) -> tuple[Array, Array, Array]:
    """Confidence, negative log-likelihood and Brier score of some images."""
    logs = predictions.log_probabilities(temperature)
    of_label = np.take_along_axis(logs, predictions.labels[:, None].astype(np.intp), axis=1)[:, 0]
    probabilities = np.exp(logs)
    brier = np.square(probabilities).sum(axis=1) - 2 * np.exp(of_label) + 1
    return probabilities.max(axis=1), -of_label, brier


# -- calibration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bins:
    """Images by their confidence, in bins; those of several evaluations can be added.

    Attributes:
        count: images in each bin.
        confidence: sums of their confidences.
        correct: how many of them are right.
    """

    count: Array
    confidence: Array
    correct: Array

    def __add__(self, other: "Bins") -> "Bins":
        return Bins(self.count + other.count, self.confidence + other.confidence, self.correct + other.correct)

    def gaps(self) -> Array:
        """The difference of mean confidence and accuracy in each bin that has images, in percent, without its sign."""
        there = self.count > 0
        return 100 * np.abs(self.confidence[there] - self.correct[there]) / self.count[there]

    def expected_error(self) -> float:
        """The mean of the gaps, weighted by the images in the bins: percent."""
        return float((self.gaps() * self.count[self.count > 0]).sum() / self.count.sum())


def equal_width_bins(scores: ImageScores, bins: int = BINS) -> Bins:
    """Bins of equal width: the first is [0, 1/bins], the others are open below and closed above."""
    which = np.ceil(scores.confidence * bins).astype(int).clip(1, bins) - 1
    count = np.bincount(which, minlength=bins).astype(np.float64)
    sums = (np.bincount(which, values, bins).astype(np.float64) for values in (scores.confidence, scores.correct))
    return Bins(count, *sums)


def equal_mass_bins(scores: ImageScores, bins: int = BINS) -> Bins:
    """Bins of equally many images (or one more), by rising confidence."""
    order = np.argsort(scores.confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    count = np.array([len(part) for part in parts], np.float64)
    sums = (np.array([values[part].sum() for part in parts]) for values in (scores.confidence, scores.correct))
    return Bins(count, *sums)


def expected_calibration_error(scores: ImageScores) -> float:
    """ECE: the gap of confidence and accuracy, averaged over bins of equal width; percent (Guo et al. 2017)."""
    return equal_width_bins(scores).expected_error()


def maximum_calibration_error(scores: ImageScores) -> float:
    """MCE: the largest gap of any of these bins; percent."""
    return float(equal_width_bins(scores).gaps().max())


def adaptive_calibration_error(scores: ImageScores) -> float:
    """Adaptive ECE: as ECE, over bins of equally many images; percent (Nguyen and O'Connor 2015)."""
    return equal_mass_bins(scores).expected_error()


# -- selective accuracy -----------------------------------------------------------------------------------------------


def risk_coverage(scores: ImageScores) -> Array:
    """Error rate (N,) among the 1, 2, ..., N most confident answers, 0 to 1; equal confidences share their errors."""
    levels, which = np.unique(-scores.confidence, return_inverse=True)
    count = np.bincount(which, minlength=len(levels))
    errors = np.bincount(which, 1 - scores.correct, len(levels)) / count
    return np.cumsum(np.repeat(errors, count)) / np.arange(1, len(which) + 1)


def area_under_risk_coverage(scores: ImageScores) -> float:
    """AURC: the mean of `risk_coverage` over all coverages; percent (Geifman and El-Yaniv 2017)."""
    return 100 * float(risk_coverage(scores).mean())


def auroc(positive: Array, negative: Array) -> float | None:
    """How often a value of the first is above one of the second, ties counting half: percent; None if one is empty."""
    from scipy.stats import rankdata

    if not len(positive) or not len(negative):
        return None
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)].sum()
    return 100 * float((ranks / len(positive) - (len(positive) + 1) / 2) / len(negative))


def confidence_auroc(scores: ImageScores) -> float | None:
    """AUROC of the confidence for right answers against wrong ones: percent; None where there are none of a kind."""
    right = scores.correct > 0
    return auroc(scores.confidence[right], scores.confidence[~right])


# -- temperatures -----------------------------------------------------------------------------------------------------


def best_temperature(predictions: Predictions) -> float:
    """The temperature with the lowest negative log-likelihood on these (validation) images (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(image_scores(predictions, np.exp(log_temperature)).nll.mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def proximity(features: Array, trained: Array, nearest: int = NEAREST) -> Array:
    """How near classes are to the training classes: `exp(-mean distance to the nearest K of them)`, (C,).

    Args:
        features: (C, E), normalised here.
        trained: (J, E) of the training classes.
        nearest: K, at most J.
    """
    own, others = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features, trained))
    squares = np.maximum(2 - 2 * own @ others.T, 0)
    return np.exp(-np.sort(np.sqrt(squares), axis=1)[:, :nearest].mean(axis=1))


def distance_aware_temperatures(predictions: Predictions, trained: Predictions, nearest: int = NEAREST) -> Array:
    """The temperature (N,) of each image by its answer, from how training moved that class away from those trained on.

    The logits of an image are multiplied by `proximity` of the answered class among the features of the method, divided
    by that among the frozen ones; for classes that were trained on by 1. After Wang et al., "Open-Vocabulary
    Calibration for Fine-tuned CLIP" (ICML 2024), with the distances that the stored class features give.

    Args:
        predictions: of classes that were not, or not all, trained on.
        trained: of the training run, on its own classes.
        nearest: K.

    Raises:
        ValueError: one of the two has no class features.
    """
    pairs = []
    for name in ("text_features", "frozen_text_features"):
        own, others = (getattr(part, name) for part in (predictions, trained))
        if own is None or others is None:
            raise ValueError("the method has no class features that are the same for every image")
        pairs.append(proximity(own.astype(np.float64), others.astype(np.float64), nearest))
    factors = np.where(np.isin(predictions.classnames, trained.classnames), 1.0, pairs[0] / pairs[1])
    return 1 / factors[predictions.predicted]


# -- by name ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A measure as tables have it.

    Attributes:
        label: head of its column.
        compute: from the scores of the images; None where there is no such number.
        note: what it is, in a sentence below the table.
    """

    label: str
    compute: Callable[[ImageScores], float | None]
    note: str


MEASURES: dict[str, Measure] = {
    "ece": Measure(
        "ECE", expected_calibration_error, f"expected calibration error in percent, {BINS} bins of equal width"
    ),
    "mce": Measure(
        "MCE", maximum_calibration_error, f"largest calibration error of {BINS} bins of equal width, percent"
    ),
    "ace": Measure(
        "adaptive ECE", adaptive_calibration_error, f"as ECE, over {BINS} bins of equally many images, in percent"
    ),
    "brier": Measure(
        "Brier", lambda s: 100 * float(s.brier.mean()), "Brier score over all classes, times 100 (0 to 200)"
    ),
    "nll": Measure("NLL", lambda s: float(s.nll.mean()), "negative log-likelihood of the true class, in nats"),
    "confidence": Measure("confidence", lambda s: 100 * float(s.confidence.mean()), "mean confidence in percent"),
    "auroc": Measure("AUROC", confidence_auroc, "of the confidence for right against wrong answers, in percent"),
    "aurc": Measure("AURC", area_under_risk_coverage, "area under the curve of risk over coverage, in percent"),
}
