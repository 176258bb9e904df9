"""PromptSRC: prompts in both towers that are kept near the frozen CLIP, and averaged over the epochs.

Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023
(arXiv 2307.06948).

Shape legend: B images, C classes, E embedding width.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from adaptation.dept import DEPT, with_dept
from adaptation.method import Method
from adaptation.templates import imagenet_templates
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY
from trainers.ivlp import IVLPMethod, prompt_sizes
from trainers.zsclip import mean_features

TEMPLATES = 60  # so many of the ImageNet templates describe a class to the frozen text tower


def epoch_weights(epochs: int, mean: float, std: float) -> Tensor:
    """The weight (epochs,) of each epoch's prompts in their average: a Gaussian over epochs 1, 2, ..., of sum 1."""
    return torch.softmax(-((torch.arange(1, epochs + 1) - mean) ** 2) / (2 * std**2), dim=0)


class PromptSRCMethod(IVLPMethod):
    """IVLP with three losses that hold features and logits near those of the frozen CLIP.

    Learned: as IVLP.

    Args:
        text_weight: of the distance of text features. image_weight: of the distance of image features.
        arguments: IVLP's.
    """

    def __init__(self, *arguments, text_weight: float = 25.0, image_weight: float = 10.0, **options):
        super().__init__(*arguments, **options)
        self.text_weight = text_weight
        self.image_weight = image_weight
        self.register_buffer("frozen", None, persistent=False)

    def begin_training(self) -> None:
        """Encode the descriptions of the classes: normalised means (C, E) over the templates."""
        features = mean_features(self.backbone, imagenet_templates()[:TEMPLATES], self.classnames)
        self.frozen = F.normalize(features, dim=-1)

    @torch.no_grad()
    def frozen_image_features(self, images: Tensor) -> Tensor:
        """Normalised features (B, E) of images without prompts."""
        return F.normalize(self.backbone.encode_image(images), dim=-1)

    def extra_loss(self, images: Tensor, z: Tensor, t: Tensor, logits: Tensor) -> Tensor:
        """L1 distances of both sides' features, KL divergence of the logits (paper, equation 4)."""
        z, t = F.normalize(z, dim=-1), F.normalize(t, dim=-1)
        z_frozen = self.frozen_image_features(images)
        ours, theirs = (F.log_softmax(x, dim=-1) for x in (logits, self.logits(z_frozen, self.frozen)))
        # the released code divides the divergence by the number of logits, not of images
        divergence = F.kl_div(ours, theirs, reduction="sum", log_target=True) / logits.numel()
        text_distance, image_distance = F.l1_loss(t, self.frozen), F.l1_loss(z, z_frozen)
        return self.text_weight * text_distance + self.image_weight * image_distance + divergence


@TRAINER_REGISTRY.register()
class PromptSRC(MethodTrainer):
    """Trains PromptSRC. After the last epoch the average of the prompts over the epochs takes their place.

    Attributes:
        average: the sum so far of each epoch's weights times the learned state, by name.
    """

    checkpoint_dir = "VLPromptLearner"
    code_version = 2
    average: Mapping[str, Tensor] = {}
    CONFIG = {
        "PROMPTSRC": CfgNode(
            {
                "N_CTX_VISION": 4,
                "N_CTX_TEXT": 4,
                "CTX_INIT": "a photo of a",
                "PREC": "fp16",
                "PROMPT_DEPTH_VISION": 9,
                "PROMPT_DEPTH_TEXT": 9,
                "TEXT_LOSS_WEIGHT": 25.0,
                "IMAGE_LOSS_WEIGHT": 10.0,
                "GPA_MEAN": 15.0,
                "GPA_STD": 1.0,
            }
        ),
        **DEPT,
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """PromptSRC as the keys say."""
        weights = {"text_weight": self.settings.TEXT_LOSS_WEIGHT, "image_weight": self.settings.IMAGE_LOSS_WEIGHT}
        method = PromptSRCMethod(backbone, classnames, **prompt_sizes(self.settings), **weights)
        return with_dept(method, self.cfg.TRAINER.DEPT)

    def after_epoch(self) -> None:
        """Add to the average; after the last epoch deploy it, before the checkpoint is written."""
        weight = epoch_weights(self.max_epoch, self.settings.GPA_MEAN, self.settings.GPA_STD)[self.epoch].item()
        state = self.model.state_dict()
        self.average = {name: self.average.get(name, 0) + weight * value for name, value in state.items()}
        if self.epoch + 1 == self.max_epoch:
            self.model.load_state_dict(self.average)
        super().after_epoch()

    def progress(self) -> dict[str, Any]:
        """The average belongs to what an interrupted run goes on with."""
        return {**super().progress(), "average": dict(self.average)}

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Take over the average."""
        super().restore_progress(progress)
        self.average = {name: value.to(self.device) for name, value in progress.get("average", {}).items()}
