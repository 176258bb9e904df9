"""For third-party code: labels as vectors."""

from torch import Tensor
from torch.nn import functional as F


def create_onehot(label: Tensor, num_classes: int) -> Tensor:
    """Return one-hot vectors (B, C) of floats, in the host's memory, for labels (B,)."""
    return F.one_hot(label.detach().cpu().long(), num_classes).float()
