"""FeatureGain: a learned factor for each dimension of the image features. The example of docs/EXTENDING.md.

Shape legend: B images, C classes, E embedding width.
"""

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import Method
from adaptation.templates import template_of
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY
from trainers.zsclip import ZeroshotMethod


class FeatureGainMethod(ZeroshotMethod):
    """Zero-shot CLIP whose image features are stretched along their dimensions.

    Learned: `gain` (E,), from ones: at the start the method is zero-shot CLIP.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of a class.
        weight: of the mean squared distance of the gain to one.
    """

    def __init__(self, backbone: Backbone, classnames: list[str], template: str, weight: float = 0.1):
        super().__init__(backbone, classnames, [template])
        self.gain = nn.Parameter(torch.ones(backbone.embed_dim))
        self.weight = weight

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W)."""
        return self.gain * super().image_features(images)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy plus the weighted distance of the gain to one."""
        loss, summary = super().loss(images, labels)
        distance = (self.gain - 1).square().mean()
        return loss + self.weight * distance, {**summary, "distance": distance}


@TRAINER_REGISTRY.register()
class FeatureGain(MethodTrainer):
    """Trains FeatureGain."""

    checkpoint_dir = "feature_gain"
    CONFIG = {"FEATUREGAIN": CfgNode({"PENALTY": 0.1, "PREC": "fp32"})}

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """FeatureGain as the keys say."""
        return FeatureGainMethod(backbone, classnames, template_of(self.dm.dataset), self.settings.PENALTY)
