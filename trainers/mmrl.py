"""MMRL: tokens of one space in the deep blocks of both towers, and a second image feature that is read from them.

Guo, Gu, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR 2025 (arXiv 2503.08497).

Shape legend: B images, C classes, E embedding width, n tokens of the space, R its width, D_t and D_v tower widths.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import Method, percent_correct
from adaptation.prompts import random_vectors, slot_width
from adaptation.templates import fill, template_of
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY
from trainers.zsclip import template_features


class Copies(nn.ModuleDict):
    """A map R -> D for each of these blocks, by their numbers; all start as copies of one."""

    def __init__(self, blocks: Sequence[int], width_in: int, width_out: int):
        one = nn.Linear(width_in, width_out)
        super().__init__({str(i): deepcopy(one) for i in blocks})

    def forward(self, space: Tensor) -> dict[int, Tensor]:
        """The tokens (n, R) of the space as those (n, D) of each block."""
        return {int(i): one(space) for i, one in self.items()}


class Projection(nn.Module):
    """A learned matrix (D, E), random at the start."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_in, width_out) * width_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, E), in the precision of x."""
        return x @ self.weight.to(x.dtype)


class MMRLMethod(Method):
    """One space of tokens for both towers, of which every deep block gets its own through an affine map.

    Before the first of the blocks they are inserted: behind the patches, which to attention is anywhere, and after the
    start token of a sentence. Before the later ones they are replaced.

    Learned: `space` (n, R); `image_maps` and `text_maps`, R to D_v or D_t per block; `projection`, D_v to E.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of a class.
        n: tokens of the space. width: R.
        layers: numbers of the blocks that get tokens, counted from 1, ascending, the first at least 2. Those that a
            tower does not have are left out.
        alpha: of the class token's logits and loss; the rest is for those of the tokens.
        weight: of the distances of features to the frozen ones.
        share: of the tokens that replace; the rest is what the block before made of its own.
        make_maps: blocks, R and a tower's D -> what maps the space to the tokens of these blocks.
        make_projection: D_v and E -> what maps the mean of the tokens to the second image feature.

    Attributes:
        fused: whether evaluation counts both logits, as on the training's classes and data set; the class token's alone
            elsewhere.

    Raises:
        ValueError: a number out of range (named), or an image tower whose tokens cannot be read.
    """

    tokens: Tensor
    frozen: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        template: str,
        n: int = 5,
        width: int = 512,
        layers: Sequence[int] = (6, 7, 8, 9, 10, 11, 12),
        alpha: float = 0.7,
        weight: float = 0.5,
        share: float = 1.0,
        make_maps: Callable[[Sequence[int], int, int], nn.Module] = Copies,
        make_projection: Callable[[int, int], nn.Module] = Projection,
    ):
        super().__init__(backbone, classnames)
        vision_width = slot_width(backbone)
        if backbone.image.output_norm is None:
            raise ValueError(
                f"the image tower of {backbone.name} has no features of single tokens: choose OpenAI's ViT"
            )
        if n < 1 or width < 1:
            raise ValueError(f"N_REP_TOKENS is {n} and REP_DIM is {width}, but both must be at least 1")
        if list(layers) != sorted({*layers}) or not 2 <= min(layers, default=0) <= backbone.vision_layers:
            raise ValueError(
                f"REP_LAYERS is {tuple(layers)}, but must be ascending block numbers, the first between 2 and the "
                f"{backbone.vision_layers} image blocks of {backbone.name}"
            )
        self.template, self.alpha, self.weight = template, alpha, weight
        self.fused, self.share = True, share
        in_vision, in_text = ([i for i in layers if i <= x] for x in (backbone.vision_layers, backbone.text_layers))
        self.space = nn.Parameter(random_vectors(n, width))
        self.image_maps = make_maps(in_vision, width, vision_width)
        self.text_maps = make_maps(in_text, width, backbone.text_width)
        self.projection = make_projection(vision_width, backbone.embed_dim)
        self.register_buffer("tokens", backbone.tokenize(fill(template, classnames)), persistent=False)
        self.register_buffer("frozen", None, persistent=False)

    def prompts(self, maps: nn.Module) -> list[Tensor | None]:
        """One entry per block up to the last that has tokens, (n, D); None before the first."""
        tokens = maps(self.space)
        return [tokens.get(i) for i in range(1, max(tokens, default=0) + 1)]

    def text_features(self) -> Tensor:
        """Features (C, E) of the sentences with inserted tokens."""
        return self.backbone.encode_text(self.tokens, self.prompts(self.text_maps), insert=True, share=self.share)

    def both_image_features(self, images: Tensor) -> Tensor:
        """Features (B, 2, E) of the class token and of the tokens of the space, from one pass."""
        prompts = self.cached_in_eval("image prompts", lambda: self.prompts(self.image_maps))
        return self.backbone.encode_image(images, prompts, share=self.share, read=self.read)

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of the class token."""
        return self.both_image_features(images)[:, 0]

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both features of the images, (B, 2, E), and those of the classes, (C, E)."""
        return self.both_image_features(images), self.cached_in_eval("text", self.text_features)

    def read(self, tokens: Tensor) -> Tensor:
        """The second features (B, E) of the normalised tokens of the space (B, n, D_v) after the last block."""
        return self.projection(tokens.mean(dim=1))

    def both_logits(self, z: Tensor, t: Tensor) -> list[Tensor]:
        """Logits (B, C) of the class token and of the tokens, from their features (B, 2, E)."""
        return [super(MMRLMethod, self).logits(one, t) for one in z.unbind(1)]

    def logits(self, z: Tensor, t: Tensor) -> Tensor:
        """The logits (B, C) that count, of image features (B, 2, E) and text features (C, E)."""
        of_class_token, of_tokens = self.both_logits(z, t)
        return self.alpha * of_class_token + (1 - self.alpha) * of_tokens if self.fused else of_class_token

    def report(self) -> dict:
        """Which logits were evaluated."""
        return {"mmrl": {"logits": "fused" if self.fused else "class token"}}

    def begin_training(self) -> None:
        """Encode the frozen sentences, (C, E)."""
        self.frozen = template_features(self.backbone, self.template, self.classnames)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of both logits, and the distances of class token and sentences to the frozen ones."""
        z, t = self.encode(images)
        with torch.no_grad():
            z_frozen = self.backbone.encode_image(images)
        logits, of_tokens = self.both_logits(z, t)
        losses = self.alpha * F.cross_entropy(logits, labels) + (1 - self.alpha) * F.cross_entropy(of_tokens, labels)
        distances = [1 - F.cosine_similarity(*pair, dim=-1).mean() for pair in ((z[:, 0], z_frozen), (t, self.frozen))]
        loss = losses + self.weight * sum(distances)
        return loss, {"loss": loss, "acc": percent_correct(logits, labels)}


@TRAINER_REGISTRY.register()
class MMRL(MethodTrainer):
    """Trains MMRL. The data sets' weights of the distances stand beside its configurations."""

    model: MMRLMethod
    checkpoint_dir = "MultiModalRepresentationLearner"
    CONFIG = {
        "MMRL": CfgNode(
            {
                "N_REP_TOKENS": 5,
                "REP_DIM": 512,
                "REP_LAYERS": (6, 7, 8, 9, 10, 11, 12),  # blocks are counted from 1
                "ALPHA": 0.7,
                "REG_WEIGHT": 0.5,
                "PREC": "amp",
            }
        )
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """MMRL as the keys say."""
        keys = self.settings
        sizes = (keys.N_REP_TOKENS, keys.REP_DIM, keys.REP_LAYERS, keys.ALPHA, keys.REG_WEIGHT)
        return MMRLMethod(backbone, classnames, template_of(self.dm.dataset), *sizes)

    def _state_for_classes(self, checkpoint: dict, path: Path) -> Mapping[str, Tensor]:
        """As always; logits are fused where data set and classes are those of the training."""
        own = {"dataset": self.cfg.DATASET.NAME, "classnames": self.model.classnames}
        self.model.fused = all(checkpoint.get(key, value) == value for key, value in own.items())
        return super()._state_for_classes(checkpoint, path)
