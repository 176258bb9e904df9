"""How well a score tells two kinds of samples apart.

Shapes: P samples of the kind that should have the higher scores, N of the other.
"""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]


def auroc(positives: Scores, negatives: Scores) -> float:
    """Return the area under the ROC curve: how often a positive score (P,) is above a negative (N,); ties count half.

    Raises:
        ValueError: one kind has no sample, or a score is not a number.
    """
    _require_scores(positives, negatives)
    ordered = np.sort(negatives)
    below, not_above = (np.searchsorted(ordered, positives, side) for side in ("left", "right"))
    return float((below + not_above).sum() / (2 * len(positives) * len(negatives)))


def false_positive_rate(positives: Scores, negatives: Scores, recall: float = 0.95) -> float:
    """Return the share of negative scores (N,) above the threshold that at least ``recall`` of the positive (P,) reach.

    The threshold is the largest that does; scores equal to it count as reaching it. At 0.95 this is FPR95.

    Raises:
        ValueError: as :func:`auroc`.
    """
    _require_scores(positives, negatives)
    needed = int(np.ceil(recall * len(positives) - 1e-9))  # less what the product is off by
    threshold = np.sort(positives)[len(positives) - max(needed, 1)]
    return float((negatives >= threshold).mean())


def openworld_auc(
    base_scores: Scores, base_correct: NDArray[np.bool_], new_scores: Scores, new_correct: NDArray[np.bool_]
) -> float:
    """Return OpenworldAUC: how often, of a base and a new sample, all is right (Hua et al., ICML 2025).

    Right are: the class of the base sample among the base classes, that of the new sample among the new ones, and which
    of the two is the base sample (ties count half).

    Args:
        base_scores: (P,) how much a base sample is one of the base classes.
        base_correct: (P,) whether its class among the base classes is right.
        new_scores: (N,) the score of a new sample for being one of the base classes.
        new_correct: (N,) whether its class among the new classes is right.

    Raises:
        ValueError: as :func:`auroc`.
    """
    _require_scores(base_scores, new_scores)
    right = float(base_correct.mean() * new_correct.mean())
    return right * auroc(base_scores[base_correct], new_scores[new_correct]) if right else 0.0


def _require_scores(positives: Scores, negatives: Scores) -> None:
    """Refuse samples of one kind alone, and scores that are not numbers."""
    if not len(positives) or not len(negatives):
        raise ValueError(f"there are {len(positives)} samples of one kind and {len(negatives)} of the other")
    if np.isnan(positives).any() or np.isnan(negatives).any():
        raise ValueError("a score is not a number")
