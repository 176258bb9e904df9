"""What is computed from scores and labels.

Shapes: B samples in a batch, C classes.
"""

import logging
import os
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.config import with_defaults
from dassl.evaluation.build import EVALUATOR_REGISTRY
from dassl.output import clean
from dassl.utils import atomic_write

logger = logging.getLogger(__name__)


class EvaluatorBase:
    """Collects batches, then answers.

    Args:
        cfg: the configuration.

    Attributes:
        logit_scale: what the model multiplies cosines with to get its scores; the trainer sets it.
    """

    logit_scale = 1.0

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: Any, gt: Tensor) -> None:
        """Add a batch: what the model returned, such as scores (B, C), and the labels (B,)."""
        raise NotImplementedError

    def evaluate(self) -> "OrderedDict[str, float]":
        """Log and return the results, the most important one first."""
        raise NotImplementedError

    def per_class(self) -> list[dict[str, Any]]:
        """Return a row per class that occurred, if the evaluator knows classes."""
        return []


class _Collected:
    """An attribute that counts all batches: reading it collects those that are still on the device."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, evaluator: Any, owner: type) -> Any:
        if evaluator is None:
            return self
        if evaluator.__dict__.get("_pending"):
            evaluator.collect()
        if self._name not in evaluator.__dict__:
            raise AttributeError(f"{owner.__name__!r} has no attribute {self._name!r} before reset()")
        return evaluator.__dict__[self._name]

    def __set__(self, evaluator: Any, value: Any) -> None:
        if evaluator.__dict__.get("_pending"):
            evaluator.collect()
        evaluator.__dict__[self._name] = value


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1, in percent.

    A subclass may replace ``reset`` and ``process``, and keep only some of the attributes: what would be computed from
    the others is left out.

    Args:
        cfg: ``TEST.PER_CLASS_RESULT`` and ``TEST.COMPUTE_CMAT`` are read.
        lab2cname: class name of each label.

    Attributes:
        _correct: number of right predictions so far.
        _total: number of samples so far.
        _y_true: label of each sample so far.
        _y_pred: predicted label of each sample so far, -1 where a score is NaN.
        _per_class_res: for each label, 1 or 0 for each sample, as it was right or wrong; None unless
            ``TEST.PER_CLASS_RESULT``.
    """

    _correct = _Collected()
    _total = _Collected()
    _y_true = _Collected()
    _y_pred = _Collected()
    _per_class_res = _Collected()

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(with_defaults(cfg))
        self._lab2cname = lab2cname or {}
        Classification.reset(self)  # a subclass is not ready for its own

    def reset(self) -> None:
        """Forget all batches."""
        self._pending: list[Tensor] = []  # labels and predictions (2, B) of batches, on their device
        self._num_classes = 0
        self._correct, self._total, self._y_true, self._y_pred = 0, 0, [], []
        self._per_class_res = defaultdict(list) if self.cfg.TEST.PER_CLASS_RESULT else None

    def process(self, mo: Tensor | Sequence[Any], gt: Tensor) -> None:
        """Add a batch of scores (B, C) and labels (B,), on any device.

        Args:
            mo: the scores, or several outputs of which they are the first.
            gt: the labels.

        Raises:
            ValueError: the shapes do not fit.
        """
        scores: Any = mo[0] if isinstance(mo, tuple | list) else mo
        if scores.dim() != 2 or gt.shape != scores.shape[:1]:
            raise ValueError(f"expected scores (B, C) and labels (B,), got {tuple(scores.shape)} and {tuple(gt.shape)}")
        predictions = scores.max(1).indices.masked_fill(scores.isnan().any(1), -1)
        self._pending.append(torch.stack([gt.to(predictions.device, non_blocking=True), predictions]))
        self._num_classes = max(self._num_classes, scores.shape[1])

    def collect(self) -> None:
        """Count the batches that were added since the last time; the first that waits for the device.

        Whoever reads one of the attributes calls it.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        labels, predictions = torch.cat(pending, dim=1).tolist()
        right = [int(one == other) for one, other in zip(labels, predictions, strict=True)]
        self._correct += sum(right)
        self._total += len(right)
        self._y_true.extend(labels)
        self._y_pred.extend(predictions)
        if self._per_class_res is not None:
            for label, hit in zip(labels, right, strict=True):
                self._per_class_res[label].append(hit)

    def confusion(self) -> np.ndarray:
        """Return the counts (C, C) of samples with a label (row) and a prediction (column).

        Raises:
            ValueError: nothing was processed, or a label is none of the C classes.
            FloatingPointError: a score was not a number.
        """
        if not len(self._y_true):
            raise ValueError("there is nothing to evaluate: no batch was processed")
        labels, predictions = np.asarray(self._y_true), np.asarray(self._y_pred)
        if (predictions < 0).any():
            raise FloatingPointError(f"the scores of {(predictions < 0).sum()} of {len(labels)} samples are NaN")
        size = self._num_classes or int(max(labels.max(), predictions.max())) + 1  # as a subclass does not keep it
        if labels.min() < 0 or labels.max() >= size:
            raise ValueError(f"labels from {labels.min()} to {labels.max()} do not fit scores for {size} classes")
        return np.bincount(labels * size + predictions, minlength=size * size).reshape(size, size)

    def evaluate(self) -> "OrderedDict[str, float]":
        """Log and return ``accuracy``, ``error_rate``, ``macro_f1`` and, if asked for, ``perclass_accuracy``.

        Macro F1 is the mean over the classes that occur among the labels.
        """
        confusion = self.confusion() if len(self._y_true) or not self._total else None
        accuracy = 100.0 * self._correct / self._total
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy)
        lines = ["=> result", f"* total: {self._total:,}", f"* correct: {self._correct:,}"]
        lines += [f"* accuracy: {accuracy:.2f}%", f"* error: {results['error_rate']:.2f}%"]
        if confusion is not None:
            f1 = 2.0 * np.diag(confusion) / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
            results["macro_f1"] = 100.0 * float(f1[confusion.sum(1) > 0].mean())
            lines.append(f"* macro_f1: {results['macro_f1']:.2f}%")
        logger.info("%s", "\n".join(lines))
        if confusion is not None and self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._log_per_class()
        if confusion is not None and self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion(confusion)
        return results

    def per_class(self) -> list[dict[str, Any]]:
        """Return label, class name, total, correct, accuracy (percent) of each class that occurs among the labels.

        There are no rows where a subclass does not keep the labels.
        """
        if not len(self._y_true):
            return []
        confusion = self.confusion()
        rows = []
        for label, total in enumerate(confusion.sum(1).tolist()):
            if total:
                correct = int(confusion[label, label])
                row = {"label": label, "classname": self._lab2cname.get(label, ""), "total": total, "correct": correct}
                rows.append(row | {"accuracy": 100.0 * correct / total})
        return rows

    def _log_per_class(self) -> float:
        """Log a line per class; return the mean of the accuracies."""
        rows = self.per_class()
        lines = ["=> per-class result"]
        for row in rows:
            counts = f"total: {row['total']:,}\tcorrect: {row['correct']:,}\tacc: {row['accuracy']:.2f}%"
            lines.append(f"* class: {row['label']} ({clean(row['classname'])})\t{counts}")
        average = float(np.mean([row["accuracy"] for row in rows]))
        logger.info("%s", "\n".join([*lines, f"* average: {average:.2f}%"]))
        return average

    def _save_confusion(self, confusion: np.ndarray) -> None:
        """Save the confusion matrix as shares of each row."""
        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        with atomic_write(path, "wb") as file:
            torch.save(torch.from_numpy(confusion / np.maximum(confusion.sum(1, keepdims=True), 1)), file)
        logger.info("Confusion matrix is saved to %s", path)
