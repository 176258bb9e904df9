"""Folds of a support set: for cross-validation a part of the training images is tested on, the rest trained on.

`DATASET.FOLD "2/4@1"` is fold 2 of 4 of the first repetition. Each repetition deals the images of each class anew, and
every image is in one fold of it. The deal is a function of the repetition and the class alone, so it is the same for
every method.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from dassl.utils import stream_seed

from .splits import Item, Split


class Fold(NamedTuple):
    """Part `number` of `folds`, both from 1 on, in a `repetition`, from 1 on."""

    number: int
    folds: int
    repetition: int

    def __str__(self) -> str:
        return f"{self.number}/{self.folds}@{self.repetition}"


def parse_fold(text: str) -> Fold:
    """The fold that `2/4@1` names; ValueError for what is not of that form, or for a part that is not there."""
    match = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})@([1-9]\d{0,3})", text)
    fold = Fold(*map(int, match.groups())) if match else None
    if not fold or not 1 <= fold.number <= fold.folds or fold.folds < 2:
        raise ValueError(f"DATASET.FOLD {text!r}: write FOLD/FOLDS@REPETITION with at least 2 folds, such as 2/4@1")
    return fold


def support_fold(split: Split, fold: Fold) -> Split:
    """Training on the images of `split.train` outside the fold, testing on those inside; validation as it is.

    Raises:
        ValueError: a class has fewer images than there are folds, so that some fold would not have it.
    """
    groups: dict[int, list[Item]] = {}
    for item in split.train:
        groups.setdefault(item.label, []).append(item)
    scarce = next((own for own in groups.values() if len(own) < fold.folds), None)
    if scarce:
        raise ValueError(
            f"DATASET.FOLD {fold}: class {scarce[0].classname!r} has {len(scarce)} training images, too few for "
            f"{fold.folds} folds: take fewer folds or more shots"
        )
    inside = {item for own in groups.values() for item in _dealt(own, fold)}
    train = [item for item in split.train if item not in inside]
    return Split(train, split.val, [item for item in split.train if item in inside], split.origin)


def _dealt(items: Sequence[Item], fold: Fold) -> list[Item]:
    """The images of one class that are in the fold."""
    order = list(items)
    random.Random(stream_seed(fold.repetition, "folds", items[0].classname)).shuffle(order)
    start = items[0].label % fold.folds  # where classes have a rest, it is spread over the folds
    return order[(fold.number - 1 - start) % fold.folds :: fold.folds]
