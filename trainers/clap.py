"""ZS-LP: class prototypes that start as zero-shot CLIP's text features. CLAP holds them near their start.

Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024
(arXiv 2312.12730). Nothing is chosen on validation images.

Shape legend: N training images, V augmented views of each, B images of a batch, C classes, E embedding width.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import Method, percent_correct, rows_of_classes
from adaptation.support import SupportTrainer
from adaptation.templates import select_templates
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY, ClassTransfer
from dassl.utils import stream_seed
from trainers.zsclip import mean_features


class PrototypeMethod(Method):
    """Cosine logits against learned prototypes, with a penalty on their distance to the text features.

    Learned: `prototypes` (C, E), from the text features, not normalised: at the start the method is zero-shot CLIP.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        templates: the sentences of a class; the mean of their features is the start.
    """

    features: Tensor
    multipliers: Tensor

    def __init__(self, backbone: Backbone, classnames: list[str], templates: Sequence[str]):
        super().__init__(backbone, classnames)
        self.register_buffer("features", mean_features(backbone, templates, classnames), persistent=False)
        self.register_buffer("multipliers", self.features.new_zeros(len(classnames)), persistent=False)
        self.prototypes = nn.Parameter(self.features.clone())

    @torch.no_grad()
    def constrain(self, features: Tensor, labels: Tensor) -> None:
        """Set the multiplier of each class (lambda in the paper): the mean probability that zero-shot CLIP gives to it
        for its images.

        Args:
            features: of the views of the training images, (N V, E).
            labels: (N V,).
        """
        probabilities = self.logits(features, self.features).softmax(dim=-1)
        right = probabilities.gather(1, labels[:, None])[:, 0]
        of_class = torch.zeros_like(self.multipliers).index_add(0, labels, right)
        self.multipliers.copy_(of_class / torch.bincount(labels, minlength=len(of_class)).clamp(min=1))

    def text_features(self) -> Tensor:
        """The prototypes (C, E)."""
        return self.prototypes

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of *features* (B, E), which stand for the images in training, plus the mean over the classes
        of multiplier times squared distance to the start."""
        logits = self.logits(images, self.prototypes)
        distances = (self.prototypes - self.features).square().sum(dim=-1)
        loss = F.cross_entropy(logits, labels) + (self.multipliers * distances).mean()
        return loss, {"loss": loss, "acc": percent_correct(logits, labels)}

    def select_classes(self, state: Mapping[str, Tensor], trained: list[str]) -> Mapping[str, Tensor]:
        """The rows of this method's classes, all of which are among the trained ones (ImageNet-A, ImageNet-R)."""
        return {**state, "prototypes": rows_of_classes(state["prototypes"], trained, self.classnames)}


@TRAINER_REGISTRY.register()
class ZSLP(SupportTrainer):
    """Trains ZS-LP on features of several augmented views of each image.

    Class attributes:
        constrained: whether the prototypes are held near their start.
    """

    model: PrototypeMethod
    checkpoint_dir = "adapter"
    constrained = False
    CONFIG = {"ADAPTER": CfgNode({"AUGMENT_EPOCHS": 20, "PREC": "fp32"})}

    @classmethod
    def class_transfer(cls, cfg: CfgNode) -> ClassTransfer:
        """Each class has its prototype: the variants of ImageNet have some of ImageNet's classes."""
        return "subset"

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """Prototypes of the data set's sentences; ImageNet has the seven selected ones beside its own."""
        templates = select_templates(self.dm.dataset, self.cfg.DATASET.NAME, with_own=True)
        return PrototypeMethod(backbone, classnames, templates)

    def before_train(self) -> None:
        """Resume, if there is something; encode the images."""
        super().before_train()
        views = self.settings.AUGMENT_EPOCHS
        self.support = torch.cat([*self.support_passes(views)]), self.support_labels.repeat(views)
        if self.constrained:
            self.model.constrain(*self.support)

    def epoch_batches(self) -> tuple[int, Iterable[Mapping[str, Tensor]]]:
        """As many batches as the images make, out of all views in an order that is a function of seed and epoch."""
        features, labels = self.support
        generator = None
        if self.cfg.SEED >= 0:
            generator = torch.Generator().manual_seed(stream_seed(self.cfg.SEED, "support", self.epoch))
        rows = torch.randperm(len(labels), generator=generator).to(labels.device)
        batches = rows.split(self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)[: len(self.train_loader_x)]
        return len(batches), ({"img": features[own], "label": labels[own]} for own in batches)


@TRAINER_REGISTRY.register()
class CLAP(ZSLP):
    """Trains ZS-LP with class-adaptive multipliers of the distance to the start, which do not change in training."""

    constrained = True
