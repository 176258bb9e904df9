"""For third-party code: accuracy of scores."""

from collections.abc import Sequence

from torch import Tensor


def compute_accuracy(output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Return the top-k accuracies in percent.

    Args:
        output: scores (B, C); of a tuple or list the first item.
        target: labels (B,).
        topk: each k.

    Returns:
        For each k a tensor (1,): how often, in percent, the label is among the k highest scores.
    """
    if not isinstance(output, Tensor):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (B, K)
    hits = ranked == target.view(-1, 1)
    return [hits[:, :k].sum().view(1) * (100.0 / len(target)) for k in topk]
