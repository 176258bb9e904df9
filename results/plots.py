"""Figures from stored runs, for half a page's width: PNG and PDF by matplotlib.

Each function takes records and returns a figure, or None where the records hold nothing that it shows.
"""

import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from dassl.output import clean
from results.layout import ZERO_SHOT
from results.published import facts
from results.records import Record
from results.rows import Method, few_shot_rows, in_order, method_names, method_of, methods_in_order, pairs_of
from results.statistics import harmonic_mean
from results.tables import mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (3.4, 2.8)  # inches: a column of a two-column page
STYLE: dict[Any, Any] = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
MARKERS = "osD^vPXh<>"
POINT = 36  # size of a point that a number is written into


def make_axes(x: str, y: str) -> "tuple[Figure, Axes]":
    """An empty figure with its axes named."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot(xlabel=x, ylabel=y)
    return figure, axes


def _base_new(records: Iterable[Record]) -> dict[tuple[str, Method], tuple[float, float]]:
    """Mean base and new accuracy by data set and method."""
    means = {}
    for key, pair in pairs_of(records).items():
        if pair.seeds:
            base, new, _ = pair.summaries()
            means[key] = base.mean, new.mean
    return means


def difficulty(records: Sequence[Record]) -> dict[str, tuple[float, str]]:
    """Relative transfer difficulty by data set, `1 / (classes * accuracy of zero-shot CLIP)`, and where it is from.

    Zero-shot on all classes where there is such a run; else the published value; else the run on new classes.
    """
    found: dict[str, tuple[float, str]] = {}
    published = facts()["relative_transfer_difficulty"]
    for role, origin in (("zeroshot", "all classes"), ("published", "published"), ("new", "new classes")):
        for record in records:
            place = record.place
            if place.dataset in found or record.problem or not record.metrics:
                continue
            if role == "published" and place.dataset in published:
                found[place.dataset] = published[place.dataset], origin
            elif place.role == role and _is_zero_shot(method_of(record)) and record.metrics.get("num_classes"):
                found[place.dataset] = 100 / (record.metrics["num_classes"] * max(record.accuracy, 0.01)), origin
    return found


def gain_over_difficulty(records: Sequence[Record]) -> "Figure | None":
    """Gain of the harmonic mean over zero-shot CLIP against relative transfer difficulty, a point per data set."""
    means, hard = _base_new(records), difficulty(records)
    references = sorted((key for key in means if _is_zero_shot(key[1])), reverse=True)  # ZeroshotCLIP last: it counts
    zero = {dataset: harmonic_mean(*means[dataset, method]) for dataset, method in references}
    learned = [key for key in means if not _is_zero_shot(key[1]) and key[0] in zero and key[0] in hard]
    if not learned:
        return None
    figure, axes = make_axes("relative transfer difficulty", "gain in HM over zero-shot (points)")
    methods = methods_in_order({method for _, method in learned})
    gain = {(d, m): (hard[d][0], harmonic_mean(*means[d, m]) - zero[d]) for d, m in learned}
    for (method, name), style in zip(method_names(methods).items(), method_styles(records, methods), strict=True):
        points = [point for (_, own), point in gain.items() if own == method]
        axes.scatter(*zip(*points, strict=True), s=POINT, label=_label(name), **style)
    _number_sets(axes, gain)
    _log_ticks(axes, [hard[dataset][0] for dataset, _ in learned])
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    add_legend(axes)
    return figure


def _log_ticks(axes: "Axes", values: Sequence[float]) -> None:
    """A logarithmic x axis with plain numbers, as many as fit."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) > 5 * min(values) else (1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def add_legend(axes: "Axes") -> None:
    """The names of the methods above the figure, where they hide nothing."""
    axes.legend(
        fontsize=6.5, ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0), frameon=False,
        columnspacing=1.0, handletextpad=0.3,
    )  # fmt: skip


def _label(name: str) -> str:
    """A name in a figure: clean, and no formula to matplotlib."""
    return clean(name).replace("$", r"\$")


def _is_zero_shot(method: Method) -> bool:
    return method[0].startswith(ZERO_SHOT)


def method_styles(records: Iterable[Record], methods: Iterable[Method]) -> list[dict[str, Any]]:
    """Colour and marker of each method of a figure.

    A trainer has the same ones in all figures of these records; only where a figure shows several of its
    configurations, the second and further ones have other markers.
    """
    trainers = in_order(record.place.trainer for record in records)
    styles: list[dict[str, Any]] = []
    count: Counter[str] = Counter()
    for trainer, _, _ in methods:
        rank = trainers.index(trainer)
        styles.append({"color": f"C{rank % 10}", "marker": MARKERS[(rank + count[trainer]) % len(MARKERS)]})
        count[trainer] += 1
    return styles


def _number_sets(axes: "Axes", points: Mapping[tuple[str, Method], tuple[float, float]]) -> None:
    """Write the number of its data set into each point, and below the figure which number is which."""
    numbers = {dataset: number for number, dataset in enumerate(in_order(dataset for dataset, _ in points), 1)}
    for (dataset, _), point in points.items():
        axes.annotate(str(numbers[dataset]), point, fontsize=4.5, color="white", ha="center", va="center_baseline")
    key = "   ".join(f"{number}\N{NO-BREAK SPACE}{_label(dataset)}" for dataset, number in numbers.items())
    axes.figure.supxlabel(fill(key, 75, break_on_hyphens=False), fontsize=6)


def transfer_weights(records: Sequence[Record]) -> "Figure | None":
    """APEX's alpha of each new class, with the distances that it comes from; first seed of each data set."""
    found = {
        record.place.dataset: record.metrics["apex"]
        for record in reversed(records)
        if record.place.role == "new" and "apex" in record.metrics and not record.problem
    }
    if not found:
        return None
    figure, axes = make_axes("new classes, by data set", "alpha and distances")
    start = 0
    for dataset in in_order(found):
        values = found[dataset]
        order = sorted(range(len(values["alpha"])), key=lambda i: values["alpha"][i])
        places = range(start, start + len(order))
        first = start == 0
        axes.bar(places, [values["alpha"][i] for i in order], color="0.8", width=1.0, label="alpha" if first else None)
        for key, color in (("d_nn", "C0"), ("d_avg", "C1")):
            axes.plot(places, [values[key][i] for i in order], ".", ms=3, color=color, label=key if first else None)
        middle = start + len(order) / 2
        axes.annotate(
            _label(dataset), (middle, 1.02), fontsize=6, ha="center", xycoords=("data", "axes fraction"), rotation=20
        )
        start += len(order) + 2
    axes.set_xticks([])
    axes.set_ylim(0, 1.05)
    axes.legend(fontsize=6.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    return figure


def accuracy_over_shots(records: Sequence[Record]) -> "Figure | None":
    """Accuracy on all classes against shots, the mean over the sets that have all of a method's numbers of shots."""
    lines, methods = {}, []
    for name, own in few_shot_rows(records).items():
        by_set: dict[str, dict[int, list[float]]] = {}
        for record in own:
            if not record.problem:
                by_set.setdefault(record.place.dataset, {}).setdefault(record.place.shots, []).append(record.accuracy)
        shots = sorted({n for by_shots in by_set.values() for n in by_shots})
        complete = [by_shots for by_shots in by_set.values() if len(by_shots) == len(shots)]
        if len(shots) > 1 and complete:
            label = f"{name} ({len(complete)} set{'' if len(complete) == 1 else 's'})"
            lines[label] = shots, [mean_of(mean_of(by_shots[n]) for by_shots in complete) for n in shots]
            methods.append(method_of(own[0]))
    if not lines:
        return None
    figure, axes = make_axes("training images per class", "accuracy (%)")
    for (label, line), style in zip(lines.items(), method_styles(records, methods), strict=True):
        axes.plot(*line, ms=4, linewidth=1, label=_label(label), **style)
    axes.set_xscale("log", base=2)
    ticks = sorted({n for shots, _ in lines.values() for n in shots})
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    add_legend(axes)
    return figure


def base_against_new(records: Sequence[Record]) -> "Figure | None":
    """New against base accuracy, a point per method and data set, over curves of equal harmonic mean."""
    means = _base_new(records)
    if not means:
        return None
    figure, axes = make_axes("base accuracy (%)", "new accuracy (%)")
    methods = methods_in_order({method for _, method in means})
    for (method, name), style in zip(method_names(methods).items(), method_styles(records, methods), strict=True):
        points = [pair for (_, own), pair in means.items() if own == method]
        axes.scatter(*zip(*points, strict=True), s=POINT, label=_label(name), **style)
    _number_sets(axes, means)
    low = max(math.floor(min(min(pair) for pair in means.values()) / 10) * 10 - 5, 1)
    for level in range(10, 100, 10):
        base = [level / 2 + 0.5 * step for step in range(1, 200) if low <= level / 2 + 0.5 * step <= 100]
        new = [level * b / (2 * b - level) for b in base]
        inside = [(b, n) for b, n in zip(base, new, strict=True) if low <= n <= 100]
        if inside:
            axes.plot(*zip(*inside, strict=True), color="0.85", linewidth=0.7, zorder=0)
            white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            label = f"HM {level}" if level == 90 else str(level)
            axes.annotate(label, inside[0], fontsize=6, color="0.4", ha="center", va="top", bbox=white, zorder=0)
    axes.set_xlim(low, 103)
    axes.set_ylim(low, 103)
    add_legend(axes)
    return figure


FIGURES: dict[str, Callable[[Sequence[Record]], "Figure | None"]] = {
    "gain_over_difficulty": gain_over_difficulty,
    "transfer_weights": transfer_weights,
    "accuracy_over_shots": accuracy_over_shots,
    "base_against_new": base_against_new,
}
CAPTIONS = {name: make.__doc__.splitlines()[0] for name, make in FIGURES.items()}


def draw(records: Sequence[Record]) -> "dict[str, Figure]":
    """All figures that the records have something for, by name.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("figures need the package matplotlib: python -m pip install matplotlib") from error
    figures = {name: make(records) for name, make in FIGURES.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def save(figures: "Mapping[str, Figure]", folder: str) -> list[str]:
    """Write each figure as PNG and PDF; returns the paths."""
    from dassl.utils import atomic_write

    paths = []
    for name, figure in figures.items():
        for kind in ("png", "pdf"):
            path, drawn = os.path.join(folder, f"{name}.{kind}"), io.BytesIO()
            figure.savefig(drawn, format=kind, dpi=300)
            with atomic_write(path, "wb") as file:
                file.write(drawn.getbuffer())
            paths.append(path)
    return paths
