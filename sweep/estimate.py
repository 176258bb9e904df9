"""How much work a sweep is, and what finished runs say about the time and disk that it takes."""

import math
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from dassl.data.datasets import DATASET_REGISTRY
from dassl.evaluation.predictions import NAME, file_bytes
from datasets.fewshot import Counts
from results.records import Record
from results.tree import read_records
from sweep.plan import Run
from sweep.state import requested

TRAINING_PASSES = 3  # a training image costs about as much as three that are only evaluated
UNKNOWN_CLASSES, UNKNOWN_TEST = 20, 1000
WIDTH = 1024  # of class features, the widest in use


@dataclass(frozen=True)
class Estimate:
    """Seconds of one worker and bytes on disk; None where no finished run says."""

    seconds: float | None
    disk: float | None  # the predictions included
    predictions: float  # bytes that they take at most, by the numbers of images and classes
    measured: int  # finished runs of the same kind that it rests on


def images(run: Run) -> float:
    """Image passes of a run, a measure of its work: by the counts that its data set declares, if it does."""
    config, counts = requested(run.argv), _counts(run)
    classes, test = (counts.classes, counts.test) if counts else (UNKNOWN_CLASSES, UNKNOWN_TEST)
    part = _part(run)
    evaluated = test * part
    if not run.trains:
        return evaluated
    shots = config["DATASET.NUM_SHOTS"]
    trained = classes * shots if shots > 0 or not counts else counts.train
    return evaluated + TRAINING_PASSES * config["OPTIM.MAX_EPOCH"] * trained * part


def _counts(run: Run) -> Counts | None:
    """The counts that the run's data set declares, if it does."""
    name = requested(run.argv)["DATASET.NAME"]
    known = name in DATASET_REGISTRY.registered_names()
    return getattr(DATASET_REGISTRY.get(name), "counts", None) if known else None


def _part(run: Run) -> float:
    """The part of the classes, and about of the images, that a run has."""
    return 1.0 if requested(run.argv)["DATASET.SUBSAMPLE_CLASSES"] == "all" else 0.5


def predictions(run: Run) -> int:
    """Bytes that the predictions of a run take at most."""
    switched = dict(zip(run.argv, run.argv[1:], strict=False)).get("TEST.KEEP_PREDICTIONS", "True")
    if switched.lower() == "false":
        return 0
    counts = _counts(run)
    classes, test = (counts.classes, counts.test) if counts else (UNKNOWN_CLASSES, UNKNOWN_TEST)
    return file_bytes(math.ceil(test * _part(run)), math.ceil(classes * _part(run)), WIDTH)


def estimate(runs: Iterable[Run], output: str) -> Estimate:
    """What the runs will take, by the finished runs below `output` of the same trainer, configuration and role.

    Seconds scale with the image passes; the bytes of predictions follow from images and classes, other bytes are taken
    as they are. None for a sum that has a run without precedent.
    """
    runs = list(runs)
    finished = [r for r in read_records(output) if r.metrics] if os.path.isdir(output) else []
    rates, sizes = _measure(finished)
    keys = [(run.place.trainer, run.place.cfg, bool(run.needs)) for run in runs]
    known = all(key in rates for key in keys)
    seconds = sum(rates[key] * images(run) for run, key in zip(runs, keys, strict=True)) if known else None
    kept = sum(map(predictions, runs))
    return Estimate(seconds, kept + sum(sizes[key] for key in keys) if known else None, kept, len(finished))


def _measure(finished: Iterable[Record]) -> tuple[dict, dict]:
    """Median seconds per image pass and median bytes, by trainer, configuration and whether it only evaluates.

    The bytes of predictions are not counted.
    """
    rates: dict[tuple, list[float]] = {}
    sizes: dict[tuple, list[int]] = {}
    for record in finished:
        metrics, epochs = record.metrics, len(record.metrics.get("history", ()))
        evaluates = record.place.kind.part == "test" and record.learns
        passes = metrics.get("num_test", 0) + TRAINING_PASSES * metrics.get("num_train", 0) * epochs
        key = (record.place.trainer, record.place.cfg, evaluates)
        if passes:
            training = metrics.get("train_seconds", 0) / metrics.get("runs_in_process", 1)
            seconds = training + metrics.get("eval_seconds", 0)
            rates.setdefault(key, []).append(seconds / passes)
            sizes.setdefault(key, []).append(sum(e.stat().st_size for e in _files(record.path) if e.name != NAME))
    return tuple({key: statistics.median(values) for key, values in table.items()} for table in (rates, sizes))


def _files(directory: str) -> Iterable[os.DirEntry]:
    """All files below a directory."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        else:
            yield entry
