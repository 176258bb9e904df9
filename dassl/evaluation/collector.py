"""Collects what ``predictions.npz`` keeps of an evaluation, on the device, and checks that it gives the same results.

Shapes: B images of a batch, N of the evaluation, C classes, K classes that are kept of an image.
"""

import logging
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dassl.evaluation.predictions import NAME, TOP, VAL_NAME, Predictions, keeps_all, require_sound, write_predictions
from dassl.utils.torchtools import to_half_precision

logger = logging.getLogger(__name__)


class PredictionCollector:
    """Collects the answers to the batches of one evaluation.

    Nothing is copied to the host before :meth:`collected`; the device holds at most ``FULL_LIMIT`` logits in half
    precision, or ``TOP`` of each image.

    Args:
        images: the list that is evaluated, whose length decides how many logits of an image are kept.
        root: folder to which paths are taken relative.
        logit_scale: what the model multiplies its cosines with.

    Attributes:
        reason: why nothing can be kept of this evaluation; "" if it can.
    """

    def __init__(self, images: Any, root: str, logit_scale: float = 1.0) -> None:
        self.count = operator.length_hint(images)
        self.root = Path(os.path.abspath(root))
        self.logit_scale = logit_scale
        self.reason = ""
        self.paths: list[str] = []
        self._parts: dict[str, list[Tensor]] = {}
        self._widths: set[int] = set()

    def add(self, output: Any, labels: Any, batch: Any) -> None:
        """Add a batch: what the model returned, as ``Classification`` takes it, the labels (B,), and the batch."""
        if self.reason:
            return
        scores = output[0] if isinstance(output, tuple | list) and output else output
        paths = batch.get("impath") if isinstance(batch, Mapping) else None
        self.reason = _unfit(scores, labels, paths)
        if self.reason:
            self._parts.clear()
            return
        self.paths += paths or ()
        self._widths.add(scores.shape[1])
        for name, part in self._kept(scores.detach(), labels).items():
            self._parts.setdefault(name, []).append(part)

    @property
    def num_classes(self) -> int:
        """C, the largest number of scores of an image; 0 if nothing was collected."""
        return max(self._widths, default=0)

    def _kept(self, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What is kept of a batch of scores (B, C), on their device."""
        largest, predicted = scores.max(1)
        predicted = predicted.masked_fill(scores.isnan().any(1), -1)
        relative = scores.float() - largest.float()[:, None]
        kept = {"labels": labels, "predicted": predicted, "largest": largest.float()}
        if keeps_all(self.count or 2**62, scores.shape[1]):
            return {**kept, "relative": to_half_precision(relative)}
        values, top = relative.topk(TOP, dim=1)
        of_label = relative.gather(1, labels.to(top.device).clamp(0, scores.shape[1] - 1)[:, None]).squeeze(1)
        return {
            **kept,
            "relative": to_half_precision(values),
            "top": top.int(),
            "relative_of_label": to_half_precision(of_label),
            "logsumexp": relative.logsumexp(1),
            "logsumexp_cosine": (relative / self.logit_scale).logsumexp(1),
        }

    def collected(self, classnames: list[str], **features: Any) -> Predictions:
        """Return the predictions of all batches.

        Args:
            classnames: C names.
            features: class features of `Predictions`, by name; tensors (C, E) or None.

        Raises:
            ValueError: there are none, or they are no predictions; the sentence says why.
        """
        if self.reason or not self._parts:
            raise ValueError(self.reason or "there was no batch")
        if len(self._widths) > 1:
            raise ValueError("the batches have scores of different numbers of classes")
        arrays: dict[str, Any] = {name: torch.cat(parts).cpu().numpy() for name, parts in self._parts.items()}
        arrays["labels"], arrays["predicted"] = (arrays[name].astype(np.int32) for name in ("labels", "predicted"))
        if "top" in arrays:
            arrays["top"] = arrays["top"].astype(np.min_scalar_type(self.num_classes))
        for name, value in features.items():
            arrays[name] = None if value is None else to_half_precision(value.detach()).cpu().numpy()
        paths = np.array([self._relative(path) for path in self.paths])
        made = Predictions(paths, classnames=np.array(classnames), logit_scale=self.logit_scale, **arrays)
        require_sound(made)
        return made

    def _relative(self, path: str) -> str:
        absolute = Path(os.path.abspath(path))
        return (absolute.relative_to(self.root) if absolute.is_relative_to(self.root) else absolute).as_posix()


def _unfit(scores: Any, labels: Any, paths: Any) -> str:
    """Return why a batch is no scores (B, C) with labels (B,) and paths (B,), or ""."""
    if not isinstance(scores, Tensor) or scores.dim() != 2 or not scores.is_floating_point():
        return "the model returns no scores (images, classes)"
    if not isinstance(labels, Tensor) or labels.shape != scores.shape[:1] or labels.is_floating_point():
        return "the labels are not one class of each image"
    if not isinstance(paths, list | tuple) or len(paths) != len(labels) or not all(isinstance(p, str) for p in paths):
        return "the batches do not say the paths of their images (impath)"
    return ""


def disagreement(predictions: Predictions, record: Mapping[str, Any]) -> str:
    """Return in what the results that an evaluator gave are not those of the predictions, or "".

    Args:
        predictions: of the same evaluation.
        record: its ``metrics.json``: ``accuracy``, ``macro_f1`` (percent) and ``per_class`` are compared.
    """
    if record.get("accuracy") != predictions.accuracy:
        return f"the evaluator's accuracy is {record.get('accuracy')}, that of the scores {predictions.accuracy}"
    size = predictions.num_classes
    confusion = np.bincount(predictions.labels * size + predictions.predicted, minlength=size * size).reshape(size, -1)
    f1 = 2.0 * np.diag(confusion) / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
    macro_f1 = 100.0 * float(f1[confusion.sum(1) > 0].mean())
    if record.get("macro_f1", macro_f1) != macro_f1:
        return f"the evaluator's macro F1 is {record['macro_f1']}, that of the scores {macro_f1}"
    said = {row["label"]: (row["total"], row["correct"]) for row in record.get("per_class") or ()}
    counts = zip(confusion.sum(1).tolist(), np.diag(confusion).tolist(), strict=True)
    own = {label: pair for label, pair in enumerate(counts) if pair[0]}
    return "the evaluator's counts by class are not those of the scores" if said and said != own else ""


def remove_older(folder: str) -> None:
    """Remove the predictions of an older evaluation from a run's folder, if there are any."""
    for name in (NAME, VAL_NAME):
        Path(folder, name).unlink(missing_ok=True)


def keep(path: str, answers: Predictions | str, record: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Write a file of predictions if that can be done; return what ``metrics.json`` says of it.

    Args:
        path: the file.
        answers: the predictions, or why there are none.
        record: of the evaluation, with whose results the predictions have to agree.

    Returns:
        ``file`` and ``digest``, or ``not_kept``: why not.
    """
    reason = answers
    if isinstance(answers, Predictions):
        try:
            reason = disagreement(answers, record) if record else ""
            if not reason:
                return {"file": os.path.basename(path), "digest": write_predictions(path, answers)}
        except Exception as error:  # whatever it is: a finished run is not lost to what could not be kept of it
            reason = f"{type(error).__name__}: {error}"
    logger.info("No predictions are kept: %s", reason)
    return {"not_kept": str(reason)}
