"""CLIP-Adapter: a bottleneck MLP on the image features, mixed with them by a fixed ratio.

Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024 (arXiv 2110.04544).

Shape legend: B images, C classes, E embedding width.
"""

from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.dept import DEPT, with_dept
from adaptation.method import Method
from adaptation.templates import template_of
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from clip.precision import autocast_disabled
from dassl.engine import TRAINER_REGISTRY
from trainers.zsclip import ZeroshotMethod

REDUCTION = 4  # the bottleneck is this many times narrower than the features


class CLIPAdapterMethod(ZeroshotMethod):
    """Adapted image features against the zero-shot class features of one template.

    Learned: `adapter`, two linear maps without biases, E -> E / 4 -> E, each followed by a ReLU.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of a class.
        ratio: share of the adapter's output in the features, in [0, 1].

    Raises:
        ValueError: a ratio out of range.
    """

    checkpoint_names = {"adapter.*.weight": "adapter.fc.*.weight"}

    def __init__(self, backbone: Backbone, classnames: list[str], template: str, ratio: float = 0.2):
        if not 0 <= ratio <= 1:
            raise ValueError(f"TRAINER.CLIP_ADAPTER.RATIO is {ratio}, but must lie in [0, 1]")
        super().__init__(backbone, classnames, [template])
        self.ratio = ratio
        width = backbone.embed_dim
        self.adapter = nn.Sequential(
            nn.Linear(width, width // REDUCTION, bias=False),
            nn.ReLU(),
            nn.Linear(width // REDUCTION, width, bias=False),
            nn.ReLU(),
        )

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E): the adapter's output and its input, mixed (paper, equation 6)."""
        z = super().image_features(images)
        with autocast_disabled(z):
            return self.ratio * self.adapter(z) + (1 - self.ratio) * z


@TRAINER_REGISTRY.register()
class CLIP_Adapter(MethodTrainer):
    """Trains CLIP-Adapter."""

    checkpoint_dir = "clip_adapter"
    CONFIG = {"CLIP_ADAPTER": CfgNode({"RATIO": 0.2, "PREC": "fp32"}), **DEPT}

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """CLIP-Adapter as the keys say."""
        method = CLIPAdapterMethod(backbone, classnames, template_of(self.dm.dataset), self.settings.RATIO)
        return with_dept(method, self.cfg.TRAINER.DEPT)
