"""Skip Tuning: the upper half of both towers is fine-tuned; what the lower half gives is computed once per epoch, and
classes that are far from a batch are left out of its loss.

Wu et al., "Skip Tuning: Pre-trained Vision-Language Models are Effective and Efficient Adapters Themselves", CVPR 2025
(arXiv 2412.11509).

Shape legend: B images of a batch, N training images, C classes, K classes that are kept, T image tokens, L text tokens,
D_t and D_v tower widths, E embedding width.
"""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from adaptation.learned_weights import LearnedTowers, LearnedTowersTrainer, tower_weights
from adaptation.method import Method
from adaptation.support import augmented_loader
from clip.backbone import Backbone
from dassl.data.data_manager import DatasetWrapper
from dassl.data.samplers import EpochClock
from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import stream_seed

TEMPLATES = {  # of the released code, as far as they are known; another set has its own
    "Caltech101": "itap of a {}.",
    "DescribableTextures": "itap of a {}.",
    "OxfordPets": "a bad photo of a {}, a type of pet.",
    "UCF101": "a photo of a {}, a type of sport.",
    "Food101": "a photo of the nice {}.",
    "ImageNetSketch": "a sketch of a {}.",
    "ImageNetA": "a bad photo of a {}.",
    "ImageNetR": "a rendition of a {}.",
}


def draw_kept_ranks(classes: int, share: float, most: int, scale: float) -> Tensor:
    """Which ranks of similarity are kept, (C,): the first `share` of them, at most `most`, and some of the others.

    A later rank is kept with the probability of an exponential density over [0, 5] of this scale, stretched to [0, 1].
    """
    first = min(math.ceil(share * classes), most)
    density = torch.exp(-torch.linspace(0, 5, classes - first) / scale)
    if len(density) > 1:
        density = (density - density[-1]) / (density[0] - density[-1])
    return torch.cat([torch.ones(first, dtype=torch.bool), torch.rand(len(density)) < density])


def compose_batches(labels: Tensor, size: int, generator: torch.Generator | None) -> list[Tensor]:
    """Rows (size,) of each batch of an epoch, in random order; each batch has one class, if all classes have enough.

    What is left over is left out.

    Args:
        labels: (N,).
        size: B.
        generator: where the order comes from.
    """
    groups = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    if min(map(len, groups)) < size:
        groups = [torch.arange(len(labels))]
    batches = []
    for rows in groups:
        rows = rows[torch.randperm(len(rows), generator=generator)]
        batches += rows.split(size) if len(rows) < size else rows[: len(rows) // size * size].split(size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


class SkipTuningMethod(LearnedTowers):
    """Towers whose upper blocks, and what follows them, learn; in training images are outputs of the lower blocks.

    Learned: as `LearnedTowers`.

    Attributes:
        own_classes: of how many classes the next batch is; None: its labels are looked at, which waits for them.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of a class.
        skipped: share of each tower's blocks that do not learn.
        share: of the classes that are always kept. most: of them. scale: of the density that keeps others.

    Raises:
        ValueError: a share that is none (named), or a ResNet.
    """

    kept_ranks: Tensor
    text_tokens: Tensor
    end: Tensor
    initial_text: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        template: str,
        skipped: float = 0.5,
        share: float = 0.5,
        most: int = 50,
        scale: float = 0.3,
    ):
        for key, value in (("BLOCKS_SKIPPED", skipped), ("CLASSES_KEPT", share)):
            if not 0 < value < 1:
                raise ValueError(f"{key} is {value}, but must lie between 0 and 1")
        image, text = (int(layers * skipped) for layers in (backbone.vision_layers, backbone.text_layers))
        names = tower_weights(backbone, "vision", first_block=image + 1)
        names += tower_weights(backbone, "text", first_block=text + 1)
        super().__init__(backbone, classnames, template, names)
        self._halves = backbone.split(image, text)[0], self.backbone.split(image, text)[1]
        kept = draw_kept_ranks(len(classnames), share, most, scale)
        self.register_buffer("kept_ranks", kept, persistent=False)
        self._kept_ranks = kept.tolist()
        self.own_classes: int | None = None
        for name in ("text_tokens", "end", "initial_text"):
            self.register_buffer(name, None, persistent=False)

    @torch.no_grad()
    def begin_training(self) -> None:
        """Outputs (C, L, D_t) of the lower text blocks, and the class features of the frozen CLIP."""
        lower, frozen = self._halves[0], self.learned.backbone
        self.end = frozen.end_of_text(self.tokens)
        embeddings = frozen.token_embedding(self.tokens[:, : int(self.end.max()) + 1])
        self.text_tokens = lower.run_text(lower.text, embeddings, self.end, ())
        self.initial_text = frozen.encode_text(self.tokens)

    @torch.no_grad()
    def lower_outputs(self, images: Tensor) -> Tensor:
        """Outputs (B, T, D_v) of the lower image blocks for images (B, 3, H, W)."""
        return self._halves[0].run_image(self._halves[0].image, images, ())

    @torch.no_grad()
    def kept_classes(self, z: Tensor, labels: Tensor) -> Tensor:
        """The classes (K,) that count for a batch: its own, and of the others by their rank of similarity to it."""
        nearest = self.logits(z, self.initial_text).amax(dim=0)
        order = nearest.index_fill(0, labels, float("inf")).argsort(descending=True, stable=True)
        own = len(labels.unique()) if self.own_classes is None else self.own_classes
        kept = self.kept_ranks.clone()
        kept[:own] = True
        count = own + sum(self._kept_ranks[own:])
        return order[kept.int().argsort(descending=True, stable=True)[:count]]

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over the classes that are kept.

        Args:
            images: outputs of the lower blocks (B, T, D_v).
            labels: (B,).
        """
        upper = self._halves[1]
        z = upper.encode_image(images)
        kept = self.kept_classes(z, labels)
        logits = self.logits(z, upper.encode_embeddings(self.text_tokens[kept], self.end[kept]))
        own = (kept == labels[:, None]).int().argmax(dim=1)
        loss = F.cross_entropy(logits, own)
        return loss, {"loss": loss, "acc": 100 * (logits.argmax(dim=1) == own).sum() / len(own)}


@TRAINER_REGISTRY.register()
class SkipTuning(LearnedTowersTrainer):
    """Trains Skip Tuning. With OPTIM.STAGED_LR the children `text` and `vision` may learn at rates of their own."""

    model: SkipTuningMethod
    supports_stacking = False  # a batch's classes are its own
    CONFIG = {
        "SKIPTUNING": CfgNode(
            {
                "TEMPLATE": "",
                "BLOCKS_SKIPPED": 0.5,
                "CLASSES_KEPT": 0.5,
                "CLASSES_MOST": 50,
                "SCALE": 0.3,
                "CHECKPOINT": "fp32",
                "PREC": "fp16",
            }
        )
    }

    @property
    def template(self) -> str:
        """The key TEMPLATE, or where that is empty the released code's, or the data set's own."""
        return self.settings.TEMPLATE or TEMPLATES.get(self.cfg.DATASET.NAME, "") or super().template

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """Skip Tuning as the keys say."""
        names = ("BLOCKS_SKIPPED", "CLASSES_KEPT", "CLASSES_MOST", "SCALE")
        return SkipTuningMethod(backbone, classnames, self.template, *(self.settings[name] for name in names))

    def build_optim(self, trainable: list[nn.Parameter]) -> tuple[Optimizer, LRScheduler | None]:
        """As OPTIM says."""
        optim = build_optimizer(self.model.learned if self.cfg.OPTIM.STAGED_LR else trainable, self.cfg.OPTIM)
        return optim, build_lr_scheduler(optim, self.cfg.OPTIM)

    @torch.no_grad()
    def lower_outputs(self) -> Tensor:
        """Outputs (N, T, D_v) of the lower image blocks for one augmented view of each training image, on the host."""
        loader = augmented_loader(self)
        if self.cfg.SEED >= 0:
            clock = cast(DatasetWrapper, loader.dataset).clock = EpochClock(self.cfg.SEED)
            clock.set_next(self.epoch)
            clock.tick()
        with self.precision.autocast():
            return torch.cat([self.model.lower_outputs(self.parse_batch_test(batch)[0]).cpu() for batch in loader])

    def epoch_batches(self) -> tuple[int, Iterable[Any]]:
        """The batches of an epoch, as outputs of the lower blocks."""
        generator = None
        if self.cfg.SEED >= 0:
            generator = torch.Generator().manual_seed(stream_seed(self.cfg.SEED, "batches", self.epoch))
        labels = torch.tensor([item.label for item in self.dm.dataset.train_x])
        rows = compose_batches(labels, self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE, generator)
        tokens = self.lower_outputs()
        classes = (len(labels[batch].unique()) for batch in rows)
        batches = zip(rows, classes, strict=True)
        return len(rows), ({"img": tokens[rows], "label": labels[rows], "classes": own} for rows, own in batches)

    def parse_batch_train(self, batch) -> tuple[Tensor, Tensor]:
        """Outputs of the lower blocks (B, T, D_v) and labels (B,); notes how many classes they are of."""
        self.model.own_classes = batch.get("classes")
        return super().parse_batch_train(batch)
