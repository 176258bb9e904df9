"""Towers, losses and steps written out, without the code that methods share: what methods are tested against."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.backbone import Backbone
from clip.towers import attend_causal

Before = Callable[[int, Tensor], Tensor]  # number of a block from 0, its input (N, T, D) -> what it gets instead


def unchanged(i: int, x: Tensor) -> Tensor:
    """Leaves a block its input."""
    return x


def nothing(i: int, normed: Tensor) -> Tensor | float:
    """Adds nothing to a block's output."""
    return 0.0


def embeddings(backbone: Backbone, sentences: list[str]) -> tuple[Tensor, Tensor]:
    """Embeddings (N, 77, D) and end positions (N,) of whole contexts."""
    tokens = backbone.tokenize(sentences)
    return backbone.model.token_embedding(tokens), tokens.argmax(dim=-1)


def text_tokens(backbone: Backbone, x: Tensor, before: Before = unchanged, beside: Before = nothing) -> Tensor:
    """Embeddings (N, 77, D) -> the normalised tokens (N, T, D) after the last block.

    `before` changes the input of a block, `beside` makes of its normalised input what is added to its output.
    """
    model = backbone.model
    x = x + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        x = before(i, x)
        x = block(x, attend=attend_causal) + beside(i, block.ln_1(x))
    return model.ln_final(x)


def text_features(
    backbone: Backbone, x: Tensor, end: Tensor, before: Before = unchanged, beside: Before = nothing
) -> Tensor:
    """Embeddings (N, 77, D), positions (N,) -> normalised features (N, E)."""
    x = text_tokens(backbone, x, before, beside)[torch.arange(len(end)), end] @ backbone.model.text_projection
    return F.normalize(x, dim=-1)


def image_tokens(
    backbone: Backbone,
    images: Tensor,
    appended: Tensor | None = None,
    before: Before = unchanged,
    beside: Before = nothing,
) -> Tensor:
    """Images -> the normalised tokens (N, T, D) after the last block; `appended` (n, D) stand after the patches."""
    visual = backbone.model.visual
    x = visual.embed(images)
    if appended is not None:
        x = torch.cat([x, appended.expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    for i, block in enumerate(visual.transformer.resblocks):
        x = before(i, x)
        x = block(x) + beside(i, block.ln_1(x))
    return visual.ln_post(x)


def image_features(
    backbone: Backbone,
    images: Tensor,
    appended: Tensor | None = None,
    before: Before = unchanged,
    beside: Before = nothing,
) -> Tensor:
    """Images -> normalised features (N, E)."""
    tokens = image_tokens(backbone, images, appended, before, beside)
    return F.normalize(tokens[:, 0] @ backbone.model.visual.proj, dim=-1)


def sentence_features(backbone: Backbone, template: str, classnames: list[str]) -> Tensor:
    """Normalised features (C, E) of the frozen sentences."""
    sentences = [template.replace("{}", name.replace("_", " ")) for name in classnames]
    return text_features(backbone, *embeddings(backbone, sentences))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of logits (B, C) with labels (B,) or distributions (B, C)."""
    if targets.ndim == 1:
        targets = torch.eye(logits.shape[1])[targets]
    return -(targets * (logits - logits.logsumexp(dim=1, keepdim=True))).sum(dim=1).mean()


class SGD:
    """Momentum and weight decay (both as the engine has them by default) over named tensors."""

    def __init__(self, lr: float, momentum: float = 0.9, decay: float = 5e-4):
        self.lr, self.momentum, self.decay = lr, momentum, decay
        self.velocity: dict[str, Tensor] = {}

    def step(self, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """Move in place the tensors that have a gradient."""
        for name, gradient in gradients.items():
            gradient = gradient + self.decay * values[name].detach()
            old = self.velocity.get(name)
            self.velocity[name] = gradient if old is None else self.momentum * old + gradient
            values[name].data -= self.lr * self.velocity[name]


def gradients(loss: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of each named tensor."""
    return dict(zip(values, torch.autograd.grad(loss, list(values.values())), strict=True))


def learned(method: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of what a method learns, by its names in checkpoints, with gradient."""
    return {
        method.official_name(name): value.detach().clone().requires_grad_() for name, value in method.named_parameters()
    }
