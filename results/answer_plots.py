"""Figures of stored answers: reliability diagrams, risk over coverage, confusion matrices."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dassl.output import clean
from results.answers import Measured, measured
from results.by_image import Confusion
from results.layout import known_roles
from results.measures import BINS, COVERAGES
from results.plots import add_legend, make_axes, method_styles
from results.records import Record
from results.rows import Method, method_names, method_of, methods_in_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED_CLASSES = 25  # that still fit beside a matrix
MATRICES = 12  # in a report
SMALLEST, LARGEST = 3.0, 8.0  # points: markers of bins with no images and with all


def answer_figures(records: Sequence[Record]) -> "dict[str, tuple[Figure, str]]":
    """Figures with their captions by name, for each list of classes that runs with predictions have."""
    sound = [record for record in records if not record.problem]
    by_role: dict[str, dict[Method, list[Measured]]] = {}
    for record, own in zip(sound, measured(sound), strict=True):
        if isinstance(own, Measured):
            by_role.setdefault(record.place.role, {}).setdefault(method_of(record), []).append(own)
    figures = {}
    for role in (name for name in known_roles() if name in by_role):
        groups = by_role[role]
        about = f"{role} classes, all data sets and seeds"
        figures[f"reliability_{role}"] = (
            reliability(records, groups),
            f"Accuracy over confidence, {BINS} bins of equal width, larger markers for more images; {about}.",
        )
        figures[f"risk_coverage_{role}"] = (
            risk_over_coverage(records, groups),
            f"Error rate among the most confident images, over the share of images that are answered; {about}.",
        )
    return figures


def reliability(records: Sequence[Record], groups: Mapping[Method, Sequence[Measured]]) -> "Figure":
    """Accuracy against mean confidence of each bin, a line per method; the diagonal is calibrated."""
    figure, axes = make_axes("confidence", "accuracy")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, zorder=0)
    for method, name, style in _in_order(records, groups):
        bins = functools.reduce(operator.add, (own.bins for own in groups[method]))
        there = bins.count > 0
        x, y = bins.confidence[there] / bins.count[there], bins.correct[there] / bins.count[there]
        share = np.sqrt(bins.count[there] / bins.count.sum())
        axes.plot(x, y, linewidth=0.8, color=style["color"])
        sizes = (SMALLEST + (LARGEST - SMALLEST) * share) ** 2
        label = f"{name} (ECE {bins.expected_error():.1f})"
        axes.scatter(x, y, sizes, label=label, color=style["color"], marker=style["marker"])
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    add_legend(axes)
    return figure


def risk_over_coverage(records: Sequence[Record], groups: Mapping[Method, Sequence[Measured]]) -> "Figure":
    """Error rate against coverage, in percent, the mean over runs; a line per method."""
    figure, axes = make_axes("coverage (%)", "error rate (%)")
    for method, name, style in _in_order(records, groups):
        risk = 100 * np.mean([own.risk for own in groups[method]], axis=0)
        axes.plot(100 * COVERAGES, risk, linewidth=1, label=name, color=style["color"])
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return figure


def _in_order(records: Sequence[Record], groups: Mapping[Method, object]) -> list[tuple[Method, str, dict]]:
    """The methods with their names and styles."""
    methods = methods_in_order(groups)
    names, styles = method_names(methods), method_styles(records, methods)
    return [(method, clean(names[method]), style) for method, style in zip(methods, styles, strict=True)]


def confusion_matrix(confusion: Confusion) -> "Figure":
    """Share of the images of each class (row) that got each answer (column)."""
    figure, axes = make_axes("answer", "true class")
    shares = confusion.counts / np.maximum(confusion.counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)
    if len(shares) <= NAMED_CLASSES:
        names = [clean(str(name)) for name in confusion.classnames]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
        axes.set_yticks(range(len(names)), names, fontsize=5)
    return figure


def confusion_figures(found: Mapping[tuple[str, str, Method], Confusion]) -> "dict[str, tuple[Figure, str]]":
    """The first `MATRICES` matrices, with their captions, by name."""
    names = method_names(method for _, _, method in found)
    figures = {}
    for number, ((role, dataset, method), own) in enumerate(list(found.items())[:MATRICES], 1):
        caption = (
            f"Confusions of {clean(names[method])} on {clean(dataset)}, {role} classes, in shares of the true class."
        )
        figures[f"confusions_{number}"] = confusion_matrix(own), caption
    return figures
