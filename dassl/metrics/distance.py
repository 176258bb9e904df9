"""For third-party code: distances between the rows of two matrices.

Shapes: N rows of the first, M rows of the second, D columns.
"""

import torch.nn.functional as F
from torch import Tensor

from dassl.utils import check_availability


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Return the distances (N, M) between the rows of ``input1`` (N, D) and of ``input2`` (M, D).

    Args:
        input1: matrix (N, D).
        input2: matrix (M, D).
        metric: ``"euclidean"`` (squared) or ``"cosine"``.
    """
    metrics = {"euclidean": euclidean_squared_distance, "cosine": cosine_distance}
    check_availability(metric, list(metrics), "metric")
    if input1.dim() != 2 or input2.dim() != 2 or input1.shape[1] != input2.shape[1]:
        raise ValueError(f"expected matrices (N, D) and (M, D), got {tuple(input1.shape)} and {tuple(input2.shape)}")
    return metrics[metric](input1, input2)


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Return the squared Euclidean distances (N, M)."""
    squares = input1.square().sum(1, keepdim=True) + input2.square().sum(1)
    return squares - 2 * input1 @ input2.t()


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Return one minus the cosine similarities (N, M)."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()
