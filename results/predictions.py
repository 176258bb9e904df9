"""The answers to each image that runs kept (`predictions.npz`): the one place where results read them.

    from results.predictions import read_predictions
    answers = read_predictions("output/.../seed1/predictions.npz")
    answers.paths, answers.labels, answers.classnames, answers.predicted, answers.logits

What is in a file, also where only the largest logits of each image are kept, says `Predictions`.
"""

import os
from typing import NamedTuple

from dassl.evaluation.predictions import NAME, VAL_NAME, Predictions, read_predictions
from results.records import Record

__all__ = ["NAME", "Predictions", "Source", "predictions_of", "read_predictions", "source_of", "why_without"]


class Source(NamedTuple):
    """A file of predictions, and the digest that the `metrics.json` beside it has for it."""

    path: str
    digest: str

    def read(self) -> Predictions:
        """The predictions; ValueError where they are not there, damaged, or of another evaluation."""
        try:
            return read_predictions(self.path, self.digest)
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} is not there, though the metrics.json beside it says so") from error


def why_without(record: Record) -> str:
    """Why a run has no predictions, as far as its `metrics.json` says; "" if it says that it has."""
    if not record.metrics:
        return "no result"
    said = record.metrics.get(
        "predictions", {"not_kept": "known by its log alone, or made by a version that kept none"}
    )
    return "" if "digest" in said else said.get("not_kept", "its record does not say which they are")


def source_of(record: Record, validation: bool = False) -> Source:
    """Where the predictions of a run are; those of its validation images, if asked for.

    Raises:
        ValueError: it has none; the sentence says why.
    """
    reason = why_without(record)
    if not reason and validation and "val_digest" not in (said := record.metrics["predictions"]):
        unsaid = "those of validation images are kept with TEST.KEEP_VAL_PREDICTIONS True, where there are such images"
        reason = said.get("val_not_kept", unsaid)
    if reason:
        raise ValueError(reason)
    digest = record.metrics["predictions"]["val_digest" if validation else "digest"]
    return Source(os.path.join(record.path, VAL_NAME if validation else NAME), digest)


def predictions_of(record: Record) -> Predictions:
    """The predictions of a run, which belong to its `metrics.json`.

    Raises:
        ValueError: there are none, or they are damaged, or of another evaluation; the sentence says which.
    """
    try:
        return source_of(record).read()
    except ValueError as error:
        raise ValueError(f"{record.path}: no predictions ({error})") from error
