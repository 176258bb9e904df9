"""Zero-shot CLIP: the class sentences' features are the classifier. Learns nothing.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from adaptation.method import Method
from adaptation.templates import ensemble_of, fill, template_of
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY


@torch.no_grad()
def template_features(backbone: Backbone, template: str, classnames: list[str]) -> Tensor:
    """Text features (C, E) of the template's sentences, not normalised."""
    return backbone.encode_text(backbone.tokenize(fill(template, classnames)))


def mean_features(backbone: Backbone, templates: Sequence[str], classnames: list[str]) -> Tensor:
    """Mean (C, E) over the templates' text features; nothing is normalised."""
    each = [template_features(backbone, template, classnames) for template in templates]
    return reduce(torch.add, each) / len(each)


def ensemble_features(backbone: Backbone, templates: Sequence[str], classnames: list[str]) -> Tensor:
    """Normalised text features (C, E): the mean over the templates' normalised features, normalised again."""
    each = [F.normalize(template_features(backbone, template, classnames), dim=-1) for template in templates]
    return F.normalize(torch.stack(each).mean(dim=0), dim=-1)


def class_distances(features: Tensor) -> dict[str, float]:
    """How far the classes are from each other, by normalised text features (C, E): means over the classes.

    Returns:
        `d_nn`, one minus the cosine to the nearest other class; `d_avg`, one minus the mean cosine to the others (Yang
        et al. 2024, section 3.3). Empty for one class.
    """
    count = len(features)
    if count < 2:
        return {}
    cosine = features.float() @ features.float().T
    others = cosine[~torch.eye(count, dtype=torch.bool, device=cosine.device)].view(count, count - 1)
    return {"d_nn": float((1 - others.amax(dim=1)).mean()), "d_avg": float((1 - others.mean(dim=1)).mean())}


class ZeroshotMethod(Method):
    """Fixed class features from one template or several."""

    features: Tensor

    def __init__(self, backbone: Backbone, classnames: list[str], templates: Sequence[str]):
        super().__init__(backbone, classnames)
        self.register_buffer("features", ensemble_features(backbone, templates, classnames), persistent=False)

    def text_features(self) -> Tensor:
        """Normalised features (C, E)."""
        return self.features

    def report(self) -> dict:
        """How far the classes' sentences are from each other."""
        return {"text_distances": class_distances(self.features)}


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(MethodTrainer):
    """Zero-shot CLIP with the data set's own template."""

    learns = False
    CONFIG = {"ZEROSHOTCLIP": CfgNode({"PREC": "fp16"})}

    def templates(self) -> list[str]:
        """The sentences that are averaged."""
        return [template_of(self.dm.dataset)]

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """Class features from `templates()`."""
        with self.precision.autocast():
            return ZeroshotMethod(backbone, classnames, self.templates())


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Zero-shot CLIP with the prompt ensemble: seven templates, and the data set's own unless it is ImageNet."""

    def templates(self) -> list[str]:
        """The sentences that are averaged."""
        return ensemble_of(self.dm.dataset, self.cfg.DATASET.NAME)
