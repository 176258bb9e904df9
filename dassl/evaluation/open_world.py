"""Evaluators of lists on which not only the trained classes occur: the union of base and new classes, and outliers.

Shapes: B samples in a batch, C classes, of which the first J are the base classes.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.evaluation.build import EVALUATOR_REGISTRY
from dassl.evaluation.detection import auroc, false_positive_rate, openworld_auc
from dassl.evaluation.evaluator import Classification

logger = logging.getLogger(__name__)


class _ScoredClassification(Classification):
    """Keeps numbers of each sample beside what is counted."""

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg, lab2cname, **kwargs)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._kept: list[Tensor] = []

    def kept(self) -> Any:
        """Return what was kept of all samples, one row of numbers each; ValueError if there is none."""
        if not self._kept:
            raise ValueError("there is nothing to evaluate: no batch was processed")
        return torch.cat(self._kept).cpu().numpy()


@EVALUATOR_REGISTRY.register()
class OpenWorld(_ScoredClassification):
    """Base and new classes in one list: what ``Classification`` says, and how base and new images come out.

    The base classes are the first half of the labels, the larger one if they are odd (``DATASET.SUBSAMPLE_CLASSES``).
    An image's score for being of a base class is its largest probability of one, in the softmax over all classes.

    Raises:
        ValueError: the list is not one of all classes.
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg, lab2cname, **kwargs)
        if self.cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise ValueError(
                f"TEST.EVALUATOR OpenWorld needs base and new classes in one list, but DATASET.SUBSAMPLE_CLASSES is "
                f"{self.cfg.DATASET.SUBSAMPLE_CLASSES!r}"
            )

    def process(self, mo: Tensor | Sequence[Any], gt: Tensor) -> None:
        """Add a batch of scores (B, C) and labels (B,)."""
        super().process(mo, gt)
        scores: Any = mo[0] if isinstance(mo, tuple | list) else mo
        scores, labels = scores.detach().double(), gt.to(scores.device)
        base = (scores.shape[1] + 1) // 2
        is_base = labels < base
        # right among the classes of its own side, and right among all
        own_side = torch.where(is_base, scores[:, :base].argmax(1), base + scores[:, base:].argmax(1)) == labels
        right = scores.argmax(1) == labels
        score = scores.log_softmax(1)[:, :base].amax(1)
        self._kept.append(torch.stack([score, *(x.double() for x in (is_base, own_side, right))], dim=1))

    def evaluate(self) -> "OrderedDict[str, float]":
        """Log and return the results of ``Classification``, and in percent: ``base_accuracy`` and ``new_accuracy`` over
        all classes, their ``harmonic_mean``, ``base_new_auroc`` and ``openworld_auc``."""
        results = super().evaluate()
        score, is_base, own_side, right = self.kept().T
        base, new = is_base == 1, is_base == 0
        accuracies = [100.0 * float(right[kind].mean()) if kind.any() else 0.0 for kind in (base, new)]
        own = own_side == 1
        results |= {
            "base_accuracy": accuracies[0],
            "new_accuracy": accuracies[1],
            "harmonic_mean": 2 * accuracies[0] * accuracies[1] / (sum(accuracies) or 1.0),
            "base_new_auroc": 100.0 * auroc(score[base], score[new]),
            "openworld_auc": 100.0 * openworld_auc(score[base], own[base], score[new], own[new]),
        }
        _log(results, ("base_accuracy", "new_accuracy", "harmonic_mean", "base_new_auroc", "openworld_auc"))
        return results


@EVALUATOR_REGISTRY.register()
class OutOfDistribution(_ScoredClassification):
    """Images of other classes, with label -1, among those of the classes: can the model tell them?

    Accuracy and what goes with it are of the images that have one of the classes. Two scores say how much one does:

    - MCM: the largest probability of a softmax over the cosines, at temperature 1 (Ming et al., NeurIPS 2022);
    - energy: the log of the sum of the exponentials of the logits (Liu et al., NeurIPS 2020).
    """

    def process(self, mo: Tensor | Sequence[Any], gt: Tensor) -> None:
        """Add a batch of scores (B, C) and labels (B,), -1 for images of none of the classes."""
        scores: Any = mo[0] if isinstance(mo, tuple | list) else mo
        known = (gt >= 0).to(scores.device)
        super().process(scores[known], gt[gt >= 0])
        logits = scores.detach().double()
        mcm = (logits / self.logit_scale).log_softmax(1).amax(1)
        self._kept.append(torch.stack([mcm, logits.logsumexp(1), known.double()], dim=1))

    def evaluate(self) -> "OrderedDict[str, float]":
        """Log and return the results of ``Classification``, ``num_ood``, the number of other images, and in percent
        ``mcm_auroc``, ``mcm_fpr95``, ``energy_auroc`` and ``energy_fpr95``.

        Raises:
            ValueError: there is no image of one of the classes, or none of another.
        """
        mcm, energy, known = self.kept().T
        inside, outside = known == 1, known == 0
        if not inside.any() or not outside.any():
            raise ValueError(
                f"{inside.sum()} images of the classes and {outside.sum()} of others were evaluated, but both are "
                "needed: DATASET.OOD adds others"
            )
        results = super().evaluate()
        results["num_ood"] = float(outside.sum())
        for name, score in (("mcm", mcm), ("energy", energy)):
            results[f"{name}_auroc"] = 100.0 * auroc(score[inside], score[outside])
            results[f"{name}_fpr95"] = 100.0 * false_positive_rate(score[inside], score[outside])
        _log(results, ("mcm_auroc", "mcm_fpr95", "energy_auroc", "energy_fpr95"))
        return results


def _log(results: "OrderedDict[str, float]", names: Sequence[str]) -> None:
    logger.info("%s", "\n".join(f"* {name}: {results[name]:.2f}%" for name in names))
