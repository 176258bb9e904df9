"""LP++: a linear classifier on image features, blended with zero-shot CLIP by a factor for each class.

Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024 (arXiv 2404.02285).

The step sizes follow from the features of the training images, so that no learning rate is chosen. The epoch whose
state is deployed is chosen on validation images, never on test images; without validation images of its own a data set
keeps the last epoch's, and the result says so.

Shape legend: N training images, B images of a batch, C classes, E embedding width.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR, LRScheduler
from yacs.config import CfgNode

from adaptation.method import Method, percent_correct
from adaptation.support import SupportTrainer
from adaptation.templates import select_templates
from clip.backbone import Backbone
from clip.precision import autocast_disabled
from dassl.engine import TRAINER_REGISTRY, ClassTransfer
from trainers.zsclip import ZeroshotMethod

MOMENTUM = 0.9
PERIOD = 10  # epochs between two steps of the blending factors


class LPPlusPlusMethod(ZeroshotMethod):
    """Logits `f W^T + b + a * (f T^T)` of normalised image features f and class features T; no temperature.

    Learned: `classifier.weight` W (C, E), `classifier.bias` b (C,), `alpha` a (C,). State: `chosen_epoch`, the epoch
    after which they were taken if validation images chose it, else 0.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        templates: the sentences of a class, averaged.
        alpha_scale: the initial blending factor is this many times the mean similarity of images and their class.
    """

    chosen_epoch: Tensor

    def __init__(self, backbone: Backbone, classnames: list[str], templates: Sequence[str], alpha_scale: float = 250.0):
        super().__init__(backbone, classnames, templates)
        self.alpha_scale = alpha_scale
        self.classifier = nn.Linear(backbone.embed_dim, len(classnames))
        self.alpha = nn.Parameter(torch.zeros(len(classnames)))
        self.register_buffer("chosen_epoch", torch.tensor(0))

    @torch.no_grad()
    def start(self, features: Tensor, labels: Tensor) -> None:
        """Set the initial weights, sums of each class's features, and the initial blending factor, one for all classes.

        Args:
            features: of the training images, normalised, (N, E).
            labels: (N,).
        """
        self.classifier.weight.zero_().index_add_(0, labels, features)
        similarity = (features * self.features[labels]).sum(dim=1)
        of_class = torch.zeros_like(self.alpha).index_add(0, labels, similarity)
        images = torch.bincount(labels, minlength=len(self.alpha))
        self.alpha.fill_(self.alpha_scale * (of_class / images)[images > 0].mean())

    @torch.no_grad()
    def step_sizes(self, features: Tensor) -> tuple[float, float]:
        """Inverse bounds of the curvature of the mean cross-entropy of features (N, E): for W and b, and for a."""
        for_weight = 4 * len(features) / torch.linalg.eigvalsh(features.T @ features)[-1]
        for_alpha = len(features) / (4 * (features @ self.features.T).square().sum(dim=0).max())
        return for_weight.item(), for_alpha.item()

    def logits(self, z: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C) of image features (B, E) and normalised class features (C, E)."""
        with autocast_disabled(z):
            f = F.normalize(z, dim=-1)
            return self.classifier(f) + self.alpha * (f @ t.T)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of *features* (B, E), which stand for the images in training."""
        logits = self.logits(images, self.features)
        loss = F.cross_entropy(logits, labels)
        return loss, {"loss": loss, "acc": percent_correct(logits, labels)}

    def report(self) -> dict:
        """Which epoch's state it is."""
        epoch = self.chosen_epoch.item()
        chosen = {"epoch": epoch, "chosen": "on the validation images"} if epoch else {"chosen": "the last epoch"}
        return {"lp_plus_plus": {**chosen, "alpha": self.alpha.mean().item()}}


class BlockwiseSGD(SGD):
    """Gradient descent with momentum, and groups with `period`, which every so many steps move along the sum of all
    their gradients since the first step (the released code never resets that sum)."""

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]  # the closure's value is not needed
        """Take a step of the ordinary groups, and of the others where it is due."""
        for group in (group for group in self.param_groups if group.get("period")):
            for parameter in group["params"]:
                state = self.state[parameter]
                state["sum"] = state.get("sum", 0) + parameter.grad
                state["steps"] = state.get("steps", 0) + 1
                if state["steps"] % group["period"] == 0:
                    parameter.sub_(group["lr"] * state["sum"])
                parameter.grad = None  # not a parameter of the ordinary step
        super().step(closure)


@TRAINER_REGISTRY.register()
class LPPlusPlus(SupportTrainer):
    """Trains LP++: each epoch is one step on the features of all training images.

    Attributes:
        best: accuracy in percent on the validation images and learned state of the epoch chosen so far.
    """

    model: LPPlusPlusMethod
    checkpoint_dir = "lp_plus_plus"
    best: tuple[float, Mapping[str, Tensor]] = (-1.0, {})
    CONFIG = {"LPPLUSPLUS": CfgNode({"ALPHA_SCALE": 250.0, "SELECT": True, "PREC": "fp16"})}

    @classmethod
    def class_transfer(cls, cfg: CfgNode) -> ClassTransfer:
        """The classifier has rows for its classes alone."""
        return "none"

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """LP++ as the keys say."""
        templates = select_templates(self.dm.dataset, self.cfg.DATASET.NAME)
        return LPPlusPlusMethod(backbone, classnames, templates, self.settings.ALPHA_SCALE)

    def build_optim(self, trainable: list[nn.Parameter]) -> tuple[BlockwiseSGD, LRScheduler]:
        """Gradient descent on two blocks; `before_train` sets their step sizes, which do not change."""
        alpha = self.model.alpha
        rest = [parameter for parameter in trainable if parameter is not alpha]
        optim = BlockwiseSGD([{"params": rest, "momentum": MOMENTUM}, {"params": [alpha], "period": PERIOD}])
        return optim, ConstantLR(optim, factor=1.0)

    @torch.no_grad()
    def before_train(self) -> None:
        """Encode the images, then resume, or start from their features."""
        super().before_train()
        features = F.normalize(next(self.support_passes(1)), dim=-1)
        self.support = {"img": features, "label": self.support_labels}
        self.validation = self.validation_features() if self.settings.SELECT else None
        if not self.resumed:
            if not self.cfg.MODEL.INIT_WEIGHTS:
                self.model.start(features, self.support_labels)
            for group, size in zip(self.optim.param_groups, self.model.step_sizes(features), strict=True):
                group["lr"] = size

    def epoch_batches(self) -> tuple[int, Iterable[Mapping[str, Tensor]]]:
        """The whole training set as one batch of features."""
        return 1, [self.support]

    @torch.no_grad()
    def after_epoch(self) -> None:
        """Note the state if it is as good on the validation images as any before; after the last epoch deploy the one
        that was noted, before the checkpoint is written."""
        if self.validation is not None:
            z, labels = self.validation
            accuracy = percent_correct(self.model.logits(z, self.model.features), labels).item()
            if accuracy >= self.best[0]:
                self.model.chosen_epoch.fill_(self.epoch + 1)
                self.best = accuracy, {name: value.clone() for name, value in self.model.state_dict().items()}
            if self.epoch + 1 == self.max_epoch:
                self.model.load_state_dict(self.best[1])
        super().after_epoch()

    def progress(self) -> dict[str, Any]:
        """The chosen state belongs to what an interrupted run goes on with."""
        return {**super().progress(), "best": [self.best[0], dict(self.best[1])]}

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Take over the chosen state."""
        super().restore_progress(progress)
        accuracy, state = progress.get("best", self.best)
        self.best = accuracy, {name: value.to(self.device) for name, value in state.items()}
