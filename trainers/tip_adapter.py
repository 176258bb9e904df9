"""Tip-Adapter: cached features of the training images vote beside zero-shot CLIP. Tip-Adapter-F trains the cache.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022 (arXiv 2111.03930).

Two strengths are searched on the validation images, never on the test images; without validation images of its own a
data set keeps the initial ones, and the result says so.

Shape legend: B images, C classes, E embedding width, N cached training images.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from adaptation.method import Method
from adaptation.support import SupportTrainer
from adaptation.templates import select_templates
from clip.backbone import Backbone
from clip.precision import autocast_disabled
from dassl.engine import TRAINER_REGISTRY, ClassTransfer
from trainers.zsclip import ZeroshotMethod

logger = logging.getLogger(__name__)


class SearchRange(NamedTuple):
    """Initial alpha, and the ends of the search for beta and alpha."""

    alpha: float
    beta_end: float
    alpha_end: float


# the released settings by data set; a set that is not here has ImageNet's
STARTS = {
    "ImageNet": SearchRange(1.17, 7, 3),
    "Caltech101": SearchRange(3, 12, 5),
    "DescribableTextures": SearchRange(2, 13, 13),
    "EuroSAT": SearchRange(2, 12, 10),
    "FGVCAircraft": SearchRange(5, 30, 30),
    "Food101": SearchRange(1.17, 10, 10),
    "OxfordFlowers": SearchRange(10, 50, 50),
    "OxfordPets": SearchRange(1.17, 7, 3),
    "StanfordCars": SearchRange(3, 20, 10),
    "SUN397": SearchRange(1.17, 12, 10),
    "UCF101": SearchRange(3, 7, 3),
}
SEARCH_START, BETA_STEPS, ALPHA_STEPS = 0.1, 200, 20


def steps(end: float, count: int) -> list[float]:
    """`count` equally spaced values from `SEARCH_START`, not reaching `end`."""
    return [SEARCH_START + i * (end - SEARCH_START) / count for i in range(count)]


class TipAdapterMethod(ZeroshotMethod):
    """Zero-shot logits plus the votes of cached training images.

    State: `keys` (N, E), `cache_labels` (N,); scalars `alpha` (weight of the votes), `beta` (their sharpness) and
    `searched` (whether validation images chose these two). The keys are trained where `trainable`.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        templates: the sentences of a class, averaged.
        images: N.
        alpha: initial weight. beta: initial sharpness.
        trainable: whether the keys receive gradient (Tip-Adapter-F).
    """

    checkpoint_names = {"keys": "adapter.weight"}
    cache_labels: Tensor
    alpha: Tensor
    beta: Tensor
    searched: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        templates: Sequence[str],
        images: int,
        alpha: float = 1.17,
        beta: float = 1.0,
        trainable: bool = False,
    ):
        super().__init__(backbone, classnames, templates)
        self.keys = nn.Parameter(self.features.new_zeros(images, backbone.embed_dim), requires_grad=trainable)
        self.register_buffer("cache_labels", backbone.tokenize([""]).new_zeros(images))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))
        self.register_buffer("searched", torch.tensor(False))

    @torch.no_grad()
    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Put training images into the cache: features (N, E), not normalised, and labels (N,)."""
        self.keys.copy_(F.normalize(features, dim=-1))
        self.cache_labels.copy_(labels)

    def votes(self, z: Tensor, beta: Tensor | float) -> Tensor:
        """What the cache says (B, C) of image features (B, E): `exp(-beta (1 - f K^T)) V` (paper, equation 5)."""
        with autocast_disabled(z):
            affinity = torch.exp(-beta * (1 - F.normalize(z, dim=-1) @ self.keys.T))
        return z.new_zeros(len(z), len(self.classnames)).index_add(1, self.cache_labels, affinity)

    def logits(self, z: Tensor, t: Tensor) -> Tensor:
        """Zero-shot logits (B, C) plus alpha times the votes (paper, equation 6)."""
        return super().logits(z, t) + self.alpha * self.votes(z, self.beta)

    @torch.no_grad()
    def search(self, z: Tensor, labels: Tensor, start: SearchRange) -> float:
        """Set alpha and beta to the pair that is most accurate, the first of equals; returns the accuracy in percent.

        Args:
            z: image features (B, E) of validation images.
            labels: (B,).
            start: the ends of the search.
        """
        zero_shot = super().logits(z, self.features)
        best = -1.0
        for beta in steps(start.beta_end, BETA_STEPS):
            votes = self.votes(z, beta)
            for alpha in steps(start.alpha_end, ALPHA_STEPS):
                predicted = (zero_shot + alpha * votes).argmax(dim=1)
                accuracy = 100 * (predicted == labels).sum().item() / len(labels)
                if accuracy > best:
                    best = accuracy
                    self.alpha.fill_(alpha)
                    self.beta.fill_(beta)
        self.searched.fill_(True)
        return best

    def report(self) -> dict:
        """The two strengths, and where they come from."""
        source = "searched on the validation images" if self.searched else "initial"
        return {"tip_adapter": {"alpha": self.alpha.item(), "beta": self.beta.item(), "strengths": source}}

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> None:
        """As for every method; the cache may hold another number of images."""
        cached = state.get("cache_labels")
        if cached is not None and len(cached) != len(self.keys):
            self.keys.data = self.keys.new_zeros(len(cached), self.keys.shape[1])
            self.cache_labels = self.cache_labels.new_zeros(len(cached))
        super().load_state_dict(state)


class CacheTrainer(SupportTrainer):
    """What both Tip-Adapters share: the cache is filled before training, the strengths are searched after it.

    Class attributes:
        trains_keys: whether the cached keys are trained.
    """

    model: TipAdapterMethod
    checkpoint_dir = "tip_adapter"
    trains_keys = False
    # ALPHA -1: by data set. AUGMENT_EPOCHS: augmented passes whose features are averaged.
    # ADAM_EPS: of AdamW, where the keys are trained
    CONFIG = {
        "TIPADAPTER": CfgNode(
            {"ALPHA": -1.0, "BETA": 1.0, "AUGMENT_EPOCHS": 10, "SEARCH": True, "ADAM_EPS": 1e-4, "PREC": "fp16"}
        )
    }

    @classmethod
    def class_transfer(cls, cfg: CfgNode) -> ClassTransfer:
        """The cache holds images of its classes alone."""
        return "none"

    @property
    def start(self) -> SearchRange:
        """Initial alpha and ends of the search for this data set."""
        return STARTS.get(self.cfg.DATASET.NAME, STARTS["ImageNet"])

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """Tip-Adapter as the keys say, with an empty cache."""
        keys, dataset = self.settings, self.dm.dataset
        templates = select_templates(dataset, self.cfg.DATASET.NAME)
        alpha = self.start.alpha if keys.ALPHA < 0 else keys.ALPHA
        images = len(dataset.train_x)
        return TipAdapterMethod(backbone, classnames, templates, images, alpha, keys.BETA, self.trains_keys)

    def before_train(self) -> None:
        """Resume, or fill the cache with features that are averaged over augmented passes."""
        super().before_train()
        if not self.resumed and not self.cfg.MODEL.INIT_WEIGHTS:
            count = self.settings.AUGMENT_EPOCHS
            self.model.fill(sum(self.support_passes(count)) / count, self.support_labels)

    def after_epoch(self) -> None:
        """After the last epoch search the strengths, before the checkpoint is written."""
        if self.epoch + 1 == self.max_epoch and self.settings.SEARCH:
            self.search()
        super().after_epoch()

    @torch.no_grad()
    def search(self) -> None:
        """Search the strengths on the validation images, unless these are test images or there are none."""
        self.set_model_mode("eval")
        validation = self.validation_features()
        if validation is None:
            logger.info("There are no validation images beside the test images: alpha and beta stay the initial ones")
            return
        accuracy = self.model.search(*validation, self.start)
        alpha, beta = self.model.alpha.item(), self.model.beta.item()
        logger.info("Searched on validation images: alpha %.3f, beta %.3f (accuracy %.2f)", alpha, beta, accuracy)


@TRAINER_REGISTRY.register()
class TipAdapter(CacheTrainer):
    """Fills the cache and searches the strengths; nothing is trained."""

    def build_model(self) -> None:
        """As always; one epoch stands for the filling of the cache."""
        super().build_model()
        self.max_epoch = 1

    def run_epoch(self) -> None:
        """There are no steps."""
        self.history.append({"epoch": self.epoch + 1, "lr": self.get_current_lr()})


@TRAINER_REGISTRY.register()
class TipAdapterF(CacheTrainer):
    """Tip-Adapter-F: trains the keys of the cache; the learning rate follows the steps."""

    trains_keys = True
    lr_per_step = True

    def build_optim(self, trainable: list[nn.Parameter]) -> tuple[Optimizer, LRScheduler | None]:
        """As OPTIM says, with the method's own epsilon for Adam and its kind."""
        optim, sched = super().build_optim(trainable)
        for group in optim.param_groups:
            if "betas" in group:
                group["eps"] = self.settings.ADAM_EPS
        return optim, sched
