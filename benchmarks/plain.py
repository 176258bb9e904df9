"""The plain configuration: the same APEX at the cost of the official code, to measure against.

Sentences of 77 tokens, transformers sequence first on `nn.MultiheadAttention`, every token of every block computed,
distances computed from two further text passes in each step and thrown away, nothing kept between evaluation batches,
and the frozen image tower run even where its weight is 0.

Shape legend: B images, C classes, L tokens, D_t text width, E embedding width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import clip, towers
from clip.backbone import Backbone
from clip.design_details import build
from clip.towers import Prompts, SentenceLayout
from trainers.apex import APEXMethod, adaptive_alpha, difficulty


class PlainBackbone(Backbone):
    """A backbone whose sentences always have their full length."""

    def encode_image(self, images: Tensor, prompts: Prompts = ()) -> Tensor:
        """Images (B, 3, H, W) -> features (B, E)."""
        return towers.encode_image(self.image, images, prompts)

    def encode_text(self, tokens: Tensor, prompts: Prompts = ()) -> Tensor:
        """Token ids (C, 77) -> features (C, E)."""
        return self.encode_embeddings(self.token_embedding(tokens), self.end_of_text(tokens), prompts)

    def encode_embeddings(self, embeddings: Tensor, end: Tensor | SentenceLayout, prompts: Prompts = ()) -> Tensor:
        """Embeddings (C, L, D_t), with as many more as the context holds -> features (C, E)."""
        end = end.end if isinstance(end, SentenceLayout) else end
        missing = self.context_length - embeddings.shape[1]
        return towers.encode_text(self.text, F.pad(embeddings, (0, 0, 0, missing)), end, prompts)


class PlainAPEX(APEXMethod):
    """APEX that keeps nothing."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        self._evaluation.clear()
        return super().forward(images)

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E), always mixed in evaluation."""
        z = self.backbone.encode_image(images, self.image_prompts())
        if self.training:
            return z
        weight = self.ensemble_weights()["weight"]
        return weight * z + (1 - weight) * self.frozen_image_features(images)

    @torch.no_grad()
    def _distances(self) -> dict[str, Tensor]:
        """`d_nn` and `d_avg` (C,), from a pass for either list."""
        trained, evaluated = (self.frozen_text_features(tokens) for tokens in (self.trained_tokens, self.tokens))
        d_nn, d_avg = difficulty(trained, evaluated)
        return {"d_nn": d_nn.masked_fill(self.seen(), 0), "d_avg": d_avg}

    def _ensemble_weights(self) -> dict:
        """`alpha` (C,) and `weight`, from distances also where all classes were trained on."""
        alpha = adaptive_alpha(**self._distances(), beta=self.beta, eps=self.eps)
        return {"alpha": alpha, "weight": alpha.mean().item()}

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, beside which the distances are computed for nothing."""
        self._distances()
        return super().loss(images, labels)


def plain_backbone(state_dict: Mapping[str, Tensor], device: torch.device) -> PlainBackbone:
    """The plain backbone of these weights."""
    model = build(state_dict)
    backbone = PlainBackbone("plain", model, model.visual.tower(), model.text_tower(), clip.tokenize)
    return backbone.to(device)
