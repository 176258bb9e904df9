"""For third-party code: mixup (Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018)."""

import torch
from torch import Tensor


def mixup(
    x1: Tensor, x2: Tensor, y1: Tensor, y2: Tensor, beta: float, preserve_order: bool = False
) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, H, W) and targets (B, C) that lie between those of two batches.

    The weight of the first is drawn per image from Beta(beta, beta).

    Args:
        x1: images of the first batch, (B, 3, H, W).
        x2: images of the second.
        y1: targets of the first batch, (B, C), such as one-hot labels.
        y2: targets of the second.
        beta: of the Beta distribution.
        preserve_order: the first batch has at least half of the weight.
    """
    weight = torch.distributions.Beta(beta, beta).sample((len(x1), 1, 1, 1))
    if preserve_order:
        weight = torch.max(weight, 1 - weight)
    weight = weight.to(x1.device)
    of_targets = weight[:, :, 0, 0]
    return x1 * weight + x2 * (1 - weight), y1 * of_targets + y2 * (1 - of_targets)
