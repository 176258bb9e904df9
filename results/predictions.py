"""The answers to each image that runs kept (`predictions.npz`): the one place where results read them.

    from results.predictions import read_predictions
    answers = read_predictions("output/.../seed1/predictions.npz")
    answers.paths, answers.labels, answers.classnames, answers.predicted, answers.logits

What is in a file, also where only the largest logits of each image are kept, says `Predictions`.
"""

import os
from collections.abc import Mapping

from dassl.evaluation.predictions import NAME, Predictions, read_predictions
from results.records import Record

__all__ = ["NAME", "Predictions", "predictions_of", "read_predictions", "why_without"]


def why_without(record: Record) -> str:
    """Why a run has no predictions, as far as its `metrics.json` says; "" if it says that it has."""
    if not record.metrics:
        return record.problem or "known by its log alone"
    said = record.metrics.get("predictions")
    if said is None:
        return "made by a version that kept none"
    return "" if "digest" in said else f"{said.get('not_kept', 'its record does not say where they are')}"


def predictions_of(record: Record) -> Predictions:
    """The predictions of a run, which belong to its `metrics.json`.

    Raises:
        ValueError: there are none, or they are damaged, or of another evaluation; the sentence says which.
    """
    if reason := why_without(record):
        raise ValueError(f"{record.path} has no predictions ({reason})")
    said: Mapping[str, str] = record.metrics["predictions"]
    try:
        return read_predictions(os.path.join(record.path, NAME), said["digest"])
    except FileNotFoundError as error:
        raise ValueError(f"{record.path} has no {NAME}, of which its metrics.json speaks") from error
