"""Two methods on the same images: McNemar's test, the images on which they differ; what a method takes for what.

Shape legend: N images, S seeds, C classes.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from results.layout import known_roles
from results.paired import paired
from results.predictions import Predictions, predictions_of, why_without
from results.records import Record
from results.rows import Method, in_order, method_names, method_of, methods_in_order
from results.seeds import seeds_name
from results.tables import Difference, Probability, Table, Value

SHOWN_PAIRS = 3  # most confused pairs of classes in a row of the table

Answers = NDArray[np.intp]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Matched:
    """The answers of two methods to the same images.

    Attributes:
        dataset: its name.
        role: which classes it was tested on.
        root: folder of the data sets, as the record says; "" where it does not.
        seeds: S pairs of a seed of the first and of the second; equal ones, unless a method learns nothing.
        paths: (N,) of the images.
        classnames: (C,).
        truth: (N,) true classes.
        first: (N, S) answers of the first method.
        second: (N, S) of the second.
    """

    dataset: str
    role: str
    root: str
    seeds: tuple[tuple[int, int], ...]
    paths: NDArray[np.str_]
    classnames: NDArray[np.str_]
    truth: Answers
    first: Answers
    second: Answers

    @functools.cached_property
    def lead(self) -> Answers:
        """(N,) with how many seeds more the second method is right than the first, from -S to S."""
        right = (answers == self.truth[:, None] for answers in (self.first, self.second))
        first, second = (own.sum(axis=1) for own in right)
        return second - first

    @functools.cached_property
    def usual(self) -> tuple[Answers, Answers]:
        """(N,) the most frequent answer over seeds of the first and of the second; of equally frequent ones any."""
        from scipy.stats import mode

        return mode(self.first, axis=1).mode, mode(self.second, axis=1).mode


def match(records: Iterable[Record], first: str, second: str) -> tuple[list[Matched], list[str]]:
    """The answers of two methods to the images that both have, and sentences about runs that cannot be matched.

    Args:
        records: those with a problem are passed over.
        first: a method, as the tables call it.
        second: another one.

    Raises:
        ValueError: there is no such method; the sentence names those that there are.
    """
    records = list(records)
    names = {name: method for method, name in method_names(map(method_of, records)).items()}
    for name in (first, second):
        if name not in names:
            raise ValueError(f"--paired: no method {name!r}; there are: {', '.join(sorted(names)) or 'none'}")
    runs: dict[tuple[str, str], dict[Method, dict[int, Record]]] = {}
    for record in (record for record in records if not record.problem):
        own = runs.setdefault((record.place.role, record.place.dataset), {})
        own.setdefault(method_of(record), {})[record.place.seed] = record
    found, notes, lacking = [], [], []
    for role, dataset in sorted(runs, key=lambda key: (list(known_roles()).index(key[0]), key[1])):
        a, b = (runs[role, dataset].get(names[name], {}) for name in (first, second))
        pairs = [(a[s], b[t]) for s, t in _pairs(a, b)]
        whole = [pair for pair in pairs if not any(map(why_without, pair))]
        if len(whole) < len(pairs):
            without = [x.place.seed if x.learns else y.place.seed for x, y in pairs if (x, y) not in whole]
            lacking.append(f"{dataset}, {role}, {seeds_name(without)}")
        try:
            found += [_matched(role, dataset, whole)] if whole else []
        except ValueError as error:
            notes.append(f"not compared by image: {dataset}, {role}: {error}")
    if lacking:
        notes.append(f"not compared by image, for a run has no predictions: {'; '.join(lacking)}")
    return found, notes


def _pairs(a: dict[int, Record], b: dict[int, Record]) -> list[tuple[int, int]]:
    """Seeds that both have; the one of a method that learns nothing goes with each of the other's."""
    constant = [runs for runs in (a, b) if len(runs) == 1 and not next(iter(runs.values())).learns]
    if not a or not b or not constant:
        return [(seed, seed) for seed in sorted(a.keys() & b.keys())]
    seeds = sorted(a if len(a) > len(b) else b)
    return [(s if s in a else next(iter(a)), s if s in b else next(iter(b))) for s in seeds]


def _matched(role: str, dataset: str, pairs: Sequence[tuple[Record, Record]]) -> Matched:
    """The answers of pairs of runs; ValueError where they have none, or not to the same images and classes."""
    like = predictions_of(pairs[0][0])
    columns = [[_answers(predictions_of(run), like, run) for run in pair] for pair in pairs]
    first, second = (np.stack(own, axis=1) for own in zip(*columns, strict=True))
    config = pairs[0][0].metrics.get("config", {})
    root = str(config.get("DATASET", {}).get("ROOT", ""))
    seeds = tuple((a.place.seed, b.place.seed) for a, b in pairs)
    truth = like.labels.astype(np.intp)
    return Matched(dataset, role, root, seeds, like.paths, like.classnames, truth, first, second)


def _answers(own: Predictions, like: Predictions, run: Record) -> Answers:
    """The answers (N,) of a run in the order of images and classes of another."""
    if not np.array_equal(own.paths, like.paths):
        raise ValueError(f"{run.path} is of other images than the others, or in another order")
    if not np.array_equal(own.classnames, like.classnames) or not np.array_equal(own.labels, like.labels):
        raise ValueError(f"{run.path} is of other classes than the others")
    return own.predicted.astype(np.intp)


def mcnemar(lead: Answers) -> tuple[int, int, float | None]:
    """McNemar's exact test: images for the first, for the second, and the two-sided p; None where there are none.

    With several seeds it is the sign test over images of which method is right with more of them: images are
    independent of each other, seeds on one image are not.

    Args:
        lead: (N,) with how many seeds more the second method is right.
    """
    from scipy.stats import binomtest

    first, second = int((lead < 0).sum()), int((lead > 0).sum())
    return first, second, float(binomtest(second, first + second).pvalue) if first + second else None


def comparison(records: Sequence[Record], first: str, second: str) -> tuple[dict[str, Table], list[Matched]]:
    """Tables of two methods, by names for their files, and their answers to the same images.

    `paired`, the tests over seeds, is of base and new classes; `paired_images` is McNemar's test.

    Raises:
        ValueError: as `match`.
    """
    matched, notes = match(records, first, second)
    tables = {}
    if any(record.place.role in ("base", "new") for record in records):
        tables["paired"] = paired(records, first, second)
    if matched or not tables:
        tables["paired_images"] = mcnemar_table(matched, notes, first, second)
    else:
        tables["paired"].notes += notes
    return tables, matched


def mcnemar_table(matched: Sequence[Matched], notes: Sequence[str], first: str, second: str) -> Table:
    """A row per data set and list of classes, and one over all data sets for each list of classes."""
    columns = ["data set", "classes", "n", "images", f"for {first}", f"for {second}", "difference", "p (McNemar)"]
    table = Table(f"{second} less {first}, by image", columns)
    for role in dict.fromkeys(own.role for own in matched):
        parts = [own for own in matched if own.role == role]
        for own in parts:
            table.rows.append([own.dataset, role, len(own.seeds), *_mcnemar_cells([own])])
        if len(parts) > 1:
            table.rows.append(["all", role, None, *_mcnemar_cells(parts)])
    table.notes = [
        "images that the one method answers rightly with more of the n seeds than the other; difference: of the "
        "accuracies over these images and seeds, in points",
        "p: two-sided, McNemar's exact test (for several seeds the sign test over images), not corrected for the number"
        " of rows: whether these trained models differ on images like these; the test over seeds says whether the "
        "methods do",
        *notes,
    ]
    return table


def _mcnemar_cells(parts: Sequence[Matched]) -> list[Value]:
    lead = np.concatenate([own.lead for own in parts])
    share = np.concatenate([own.lead / len(own.seeds) for own in parts])
    first, second, p = mcnemar(lead)
    return [len(lead), first, second, Difference(100 * share.mean()), None if p is None else Probability(p)]


def differences(matched: Sequence[Matched], first: str, second: str) -> Table:
    """The images on which the usual answers of two methods differ; those where most seeds agree with that first."""
    columns = ["data set", "classes", "image", "truth", first, second, "lead"]
    table = Table(f"Images on which {first} and {second} differ", columns)
    for own in matched:
        names, lead = [own.classnames[which] for which in (own.truth, *own.usual)], own.lead
        for row in differing(own):
            said = [str(column[row]) for column in names]
            table.rows.append([own.dataset, own.role, str(own.paths[row]), *said, int(lead[row])])
    table.notes.append(f"answers: the most frequent over seeds; lead: with how many seeds more {second} is right")
    return table


def differing(own: Matched) -> Answers:
    """The images on which the usual answers differ, by falling difference in how often the methods are right."""
    a, b = own.usual
    rows = np.flatnonzero(a != b)
    return rows[np.argsort(-np.abs(own.lead[rows]), kind="stable")]


# -- confusions


@dataclass(frozen=True)
class Confusion:
    """What a method takes for what on one data set.

    Attributes:
        counts: (C, C) images with a true class (row) and an answer (column), summed over seeds.
        classnames: (C,).
        seeds: of the runs.
    """

    counts: NDArray[np.int64]
    classnames: NDArray[np.str_]
    seeds: tuple[int, ...]

    def pairs(self, count: int = SHOWN_PAIRS) -> list[tuple[str, str, int, float]]:
        """The most frequent wrong answers: true class, answer, images over all seeds, their percentage of the class."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        places = (np.unravel_index(place, wrong.shape) for place in order)
        names = self.classnames
        return [
            (str(names[t]), str(names[a]), int(wrong[t, a]), 100 * float(wrong[t, a] / self.counts[t].sum()))
            for t, a in places
            if wrong[t, a]
        ]


def confusion_counts(predictions: Predictions) -> NDArray[np.int64]:
    """(C, C) images with a true class (row) and an answer (column)."""
    size = predictions.num_classes
    return np.bincount(predictions.labels * size + predictions.predicted, minlength=size * size).reshape(size, size)


def confusions(records: Iterable[Record]) -> tuple[dict[tuple[str, str, Method], Confusion], list[str]]:
    """The confusions of each role, data set and method, and sentences about runs without predictions."""
    found: dict[tuple[str, str, Method], Confusion] = {}
    notes = []
    for record in (record for record in records if not record.problem):
        key = record.place.role, record.place.dataset, method_of(record)
        try:
            own = predictions_of(record)
        except ValueError as error:
            notes.append(str(error))
            continue
        counts, there = confusion_counts(own), found.get(key)
        if there and not np.array_equal(there.classnames, own.classnames):
            notes.append(f"{record.path} is of other classes than the others")
            continue
        if there:
            counts = counts + there.counts
        found[key] = Confusion(counts, own.classnames, (*(there.seeds if there else ()), record.place.seed))
    return {key: found[key] for key in _in_order(found)}, notes


def _in_order(keys: Iterable[tuple[str, str, Method]]) -> list[tuple[str, str, Method]]:
    """Roles, data sets and methods in the order of the tables."""
    keys = list(keys)
    roles, datasets = list(known_roles()), in_order(dataset for _, dataset, _ in keys)
    methods = methods_in_order(method for *_, method in keys)
    return sorted(keys, key=lambda key: (roles.index(key[0]), datasets.index(key[1]), methods.index(key[2])))


def confusion_tables(found: dict[tuple[str, str, Method], Confusion]) -> dict[str, Table]:
    """The whole matrices, summed over seeds, by names for their files."""
    tables = {}
    for (role, dataset, (trainer, config, shots)), own in found.items():
        name = f"confusions/{role}_{dataset}_{trainer}_{config.replace('/', '_')}_{shots}shots"
        title = f"Images of each class (row) by answer: {trainer} on {dataset}, {role} classes, {seeds_name(own.seeds)}"
        names = [str(name) for name in own.classnames]
        rows: list[list[Value]] = [[name, *map(int, row)] for name, row in zip(names, own.counts, strict=True)]
        tables[name] = Table(title, ["true class", *names], rows)
    return tables


def confusion_table(found: dict[tuple[str, str, Method], Confusion], notes: Sequence[str]) -> Table:
    """The most confused pairs of classes of each data set and method."""
    table = Table(
        "Most confused classes", ["data set", "classes", "method", "truth", "answer", "images", "% of the class"]
    )
    named = method_names(method for *_, method in found)
    for role, dataset, method in found:
        for pair in found[role, dataset, method].pairs():
            table.rows.append([dataset, role, named[method], *pair])
    seeds = {seeds_name(own.seeds) for own in found.values()}
    table.notes.append(f"images and percentages over all seeds of a row ({'; '.join(sorted(seeds))})")
    table.notes += [f"left out: {note}" for note in notes]
    return table
