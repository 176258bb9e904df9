"""CLIP-CITE: all weights of both towers are fine-tuned with three losses, and averaged with the frozen ones.

Liu, Li, Yu, "CLIP-CITE" (arXiv 2407.04003); no code was released.

Shape legend: B images, C classes, E embedding width.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.learned_weights import LearnedTowers, LearnedTowersTrainer, tower_weights
from adaptation.method import Method, percent_correct
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY

CLASS_WEIGHTS = ("free", "text")


def contrast(pairs: Tensor, labels: Tensor) -> Tensor:
    """The supervised contrast: mean over rows of `-log(exp(s_ii) / sum of exp(s_ij) over j of other classes)`.

    The pair itself is not in the denominator, as the paper prints it. A batch of one class has no denominator and
    gives 0.

    Args:
        pairs: logits (B, B); row and column i belong together.
        labels: (B,).
    """
    others = labels[:, None] != labels
    several = others.any()
    denominator = pairs.masked_fill(~others & several, float("-inf")).logsumexp(dim=1)
    return (denominator - pairs.diagonal()).mean() * several


def divergence(logits: Tensor, frozen: Tensor) -> Tensor:
    """Mean over rows of `KL(p || p_frozen)`, both (B, B) as logits; both sides of it give gradient to the first."""
    ours, theirs = (F.log_softmax(x, dim=-1) for x in (logits, frozen))
    return (ours.exp() * (ours - theirs)).sum(dim=-1).mean()


class CLIPCITEMethod(LearnedTowers):
    """Fine-tuned towers whose weights are averaged with the frozen ones in evaluation.

    Learned: as `LearnedTowers`, and `class_weights` (C, E) where they are free, from the class features of the frozen
    CLIP. These serve training alone.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of a class.
        names: which weights learn.
        share: of the learned weights in evaluation (alpha in the paper).
        contrast_weight: lambda. distillation_weight: eta.
        class_weights: what images are classified with in training: a "free" matrix, or the "text" tower's features.

    Raises:
        ValueError: a value out of range (named).
    """

    frozen_text: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        template: str,
        names: Sequence[str],
        share: float = 0.5,
        contrast_weight: float = 0.7,
        distillation_weight: float = 0.1,
        class_weights: str = "free",
    ):
        if class_weights not in CLASS_WEIGHTS:
            raise ValueError(f"CLASS_WEIGHTS is {class_weights!r}, but must be one of {', '.join(CLASS_WEIGHTS)}")
        super().__init__(backbone, classnames, template, names, share)
        self.contrast_weight, self.distillation_weight = contrast_weight, distillation_weight
        free = nn.Parameter(torch.zeros(len(classnames), backbone.embed_dim, device=self.tokens.device))
        self.class_weights = free if class_weights == "free" else None
        self.length = 0  # of the longest sentence, in tokens; known from the beginning of a training on
        self.register_buffer("frozen_text", None, persistent=False)

    @torch.no_grad()
    def begin_training(self) -> None:
        """Class features of the frozen CLIP; the class weights start from them, unless a checkpoint brought some."""
        self.length = int(self.backbone.end_of_text(self.tokens).max()) + 1
        self.frozen_text = self.learned.backbone.encode_text(self.tokens)
        if self.class_weights is not None and not self.class_weights.any():
            self.class_weights.copy_(F.normalize(self.frozen_text, dim=-1))

    def features_of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Text features (B, E) of the images' own classes, and what images are classified with, (C, E)."""
        if self.class_weights is None:
            every = self.text_features()
            return every[labels], every
        if len(self.classnames) <= len(labels):
            return self.text_features()[labels], self.class_weights
        own = self.backbone.token_embedding(self.tokens[labels, : self.length])
        return self.backbone.encode_embeddings(own, self.backbone.end_of_text(self.tokens[labels])), self.class_weights

    def frozen_pairs(self, images: Tensor, labels: Tensor) -> Tensor:
        """The frozen CLIP's logits (B, B) of the images and the sentences of their classes."""
        with torch.no_grad():
            z = self.learned.backbone.encode_image(images)
            return self.logits(z, self.frozen_text[labels])

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, contrast of the batch in both directions, divergence from the frozen CLIP (paper, section 3).

        All similarities are divided by the temperature of the frozen CLIP; sums over the batch are means.
        """
        z, (t, weights) = self.image_features(images), self.features_of(labels)
        logits, pairs = self.logits(z, weights), self.logits(z, t)
        alignment = F.cross_entropy(logits, labels)
        contrasts = contrast(pairs, labels) + contrast(pairs.T, labels)
        distillation = divergence(pairs, self.frozen_pairs(images, labels))
        loss = alignment + self.contrast_weight * contrasts + self.distillation_weight * distillation
        parts = {"loss_dva": alignment, "loss_scl": contrasts, "loss_vld": distillation}
        return loss, {"loss": loss, **parts, "acc": percent_correct(logits, labels)}

    def select_classes(self, state: Mapping[str, Tensor], trained: list[str]) -> Mapping[str, Tensor]:
        """Everything but the class weights, which evaluation does not need."""
        return {**state, **({} if self.class_weights is None else {"class_weights": self.class_weights})}


@TRAINER_REGISTRY.register()
class CLIP_CITE(LearnedTowersTrainer):
    """Trains CLIP-CITE."""

    supports_stacking = False  # several runs' weights and their optimisers' states do not belong into one memory
    CONFIG = {
        "CLIP_CITE": CfgNode(
            {
                **LearnedTowersTrainer.KEYS,
                "TEMPLATE": "a photo of a {}",
                "ALPHA": 0.5,
                "SCL_WEIGHT": 0.7,
                "VLD_WEIGHT": 0.1,
                "CLASS_WEIGHTS": "free",
                "PREC": "bf16",
            }
        )
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """CLIP-CITE as the keys say."""
        keys = self.settings
        names = tower_weights(backbone, keys.ENCODER)
        weights = keys.ALPHA, keys.SCL_WEIGHT, keys.VLD_WEIGHT
        return CLIPCITEMethod(backbone, classnames, self.template, names, *weights, keys.CLASS_WEIGHTS)
