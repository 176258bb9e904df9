"""TaskRes: a learned residual on each class feature of zero-shot CLIP.

Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023 (arXiv 2211.10277).

Shape legend: C classes, E embedding width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import Method, rows_of_classes
from adaptation.templates import select_templates
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY, ClassTransfer
from trainers.zsclip import mean_features


class TaskResMethod(Method):
    """Class features of zero-shot CLIP plus scaled residuals.

    Learned: `residuals` (C, E), from zeros: at the start the method is zero-shot CLIP.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        templates: the sentences of a class; the mean of their features is what the residuals are added to.
        scale: of the residuals (alpha in the paper).
    """

    checkpoint_names = {"residuals": "prompt_learner.text_feature_residuals"}
    features: Tensor

    def __init__(self, backbone: Backbone, classnames: list[str], templates: Sequence[str], scale: float = 0.5):
        super().__init__(backbone, classnames)
        self.scale = scale
        self.register_buffer("features", mean_features(backbone, templates, classnames), persistent=False)
        self.residuals = nn.Parameter(torch.zeros_like(self.features))

    def text_features(self) -> Tensor:
        """Features (C, E): `t + scale * x` (paper, equation 5)."""
        return self.features + self.scale * self.residuals

    def select_classes(self, state: Mapping[str, Tensor], trained: list[str]) -> Mapping[str, Tensor]:
        """The rows of this method's classes, all of which are among the trained ones (ImageNet-A, ImageNet-R)."""
        key = self.official_name("residuals")
        return {**state, key: rows_of_classes(state[key], trained, self.classnames)}


@TRAINER_REGISTRY.register()
class TaskRes(MethodTrainer):
    """Trains TaskRes."""

    CONFIG = {"TaskRes": CfgNode({"RESIDUAL_SCALE": 1.0, "ENHANCED_BASE": "none", "PREC": "fp32"})}

    @classmethod
    def class_transfer(cls, cfg: CfgNode) -> ClassTransfer:
        """Each class has its residual: the variants of ImageNet have some of ImageNet's classes."""
        return "subset"

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what would need projections that are not at hand."""
        super().check_cfg(cfg)
        base = cfg.TRAINER.TaskRes.ENHANCED_BASE
        if base != "none":
            raise ValueError(
                f"TRAINER.TaskRes.ENHANCED_BASE is {base!r}, but must be 'none': the tuned projections of the enhanced "
                "base are not part of this project"
            )

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """TaskRes as the keys say; ImageNet and its variants have the seven selected templates beside their own."""
        templates = select_templates(self.dm.dataset, self.cfg.DATASET.NAME, with_own=True)
        return TaskResMethod(backbone, classnames, templates, self.settings.RESIDUAL_SCALE)
