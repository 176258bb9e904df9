"""Unbalanced few-shot draws: how many training images each class has.

All of it is a function of the seed, the classes and the settings, so that every method trains on the same images.
"""

import heapq
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dassl.utils import stream_seed

from .splits import Item, Split

LEAST_CONCENTRATION = 0.01  # below it the draws of a Dirichlet are zeros and a one, to the last digit


@dataclass(frozen=True)
class Imbalance:
    """How the training images of a draw are shared among the classes; at most one of the three is set.

    The whole draw has as many images as a balanced one, and each class at least one.

    Attributes:
        given: shots of each class by label (`DATASET.SHOTS_PER_CLASS`).
        power_law: exponent a: the class of rank r gets a share in proportion to r^-a; ranks are drawn.
        dirichlet: concentration: the shares are drawn from a symmetric Dirichlet distribution.

    Raises:
        ValueError: more than one is set, or one is out of its range (the key is named).
    """

    given: tuple[int, ...] = ()
    power_law: float = 0.0
    dirichlet: float = 0.0

    def __post_init__(self) -> None:
        if sum(map(bool, (self.given, self.power_law, self.dirichlet))) > 1:
            raise ValueError(f"{self} exclude each other: set one of them")
        if self.power_law < 0 or (self.dirichlet and self.dirichlet < LEAST_CONCENTRATION):
            raise ValueError(
                f"{self}: an exponent is at least 0, a concentration at least {LEAST_CONCENTRATION} (0: balanced)"
            )
        if not all(isinstance(count, int) and count >= 1 for count in self.given):
            raise ValueError(f"{self}: write a whole number of at least 1 for each class")

    def __bool__(self) -> bool:
        return bool(str(self))

    def __str__(self) -> str:
        """The keys that are set, `DATASET.SHOTS_POWER_LAW 1.0`; "" for a balanced draw."""
        keys = {"SHOTS_PER_CLASS": self.given, "SHOTS_POWER_LAW": self.power_law, "SHOTS_DIRICHLET": self.dirichlet}
        return " and ".join(f"DATASET.{key} {value}" for key, value in keys.items() if value)

    def shots(self, available: Sequence[int], shots: int, seed: int) -> list[int]:
        """The number of training images of each class, by label.

        Args:
            available: training images that each class has.
            shots: of a balanced draw.
            seed: of the run; below 0: the global generator.

        Raises:
            ValueError: `given` is not one number for each class, or asks for more images than a class has.
        """
        if self.given:
            return _checked(self.given, available)
        own = random.Random(stream_seed(seed, "shots per class") if seed >= 0 else random.getrandbits(63))
        return apportion(self._shares(len(available), own), available, sum(min(shots, count) for count in available))

    def _shares(self, classes: int, generator: random.Random) -> list[float]:
        """The share of each class, before rounding and without regard to how many images it has."""
        if self.dirichlet:
            weights = [generator.gammavariate(self.dirichlet, 1.0) for _ in range(classes)]
        else:
            weights = [rank**-self.power_law for rank in range(1, classes + 1)]
            generator.shuffle(weights)
        return [weight / sum(weights) for weight in weights]


def _checked(given: Sequence[int], available: Sequence[int]) -> list[int]:
    """The given shots; ValueError unless there is one for each class, and as many images."""
    if len(given) != len(available):
        raise ValueError(f"DATASET.SHOTS_PER_CLASS has {len(given)} numbers, but there are {len(available)} classes")
    for label, (wanted, there) in enumerate(zip(given, available, strict=True)):
        if wanted > there:
            raise ValueError(f"DATASET.SHOTS_PER_CLASS wants {wanted} images of label {label}, which has {there}")
    return list(given)


def apportion(shares: Sequence[float], available: Sequence[int], total: int) -> list[int]:
    """Whole numbers as near to `shares` of a total as can be: at least 1, at most what is available.

    Starting from 1 each, the next image goes to the class that is furthest below its share.

    Args:
        shares: of the classes; their sum is 1.
        available: images of each class, at least 1.
        total: images in all, at least the number of classes and at most all that are available.
    """
    counts = [1] * len(shares)
    waiting = [(1 - share * total, label) for label, share in enumerate(shares)]
    heapq.heapify(waiting)
    for _ in range(total - len(shares)):
        while counts[waiting[0][1]] == available[waiting[0][1]]:
            heapq.heappop(waiting)
        excess, label = waiting[0]
        counts[label] += 1
        heapq.heapreplace(waiting, (excess + 1, label))
    return counts


def draw_unbalanced(split: Split, imbalance: Imbalance, shots: int, seed: int) -> list[Item]:
    """The training images of an unbalanced draw, from Python's global generator: classes in the order of their labels.

    Args:
        split: with all classes.
        imbalance: how many each class gets.
        shots, seed: as of `Imbalance.shots`.
    """
    of_class = Counter(item.label for item in split.train)
    counts = imbalance.shots([of_class[label] for label in range(len(of_class))], shots, seed)
    groups: list[list[Item]] = [[] for _ in counts]
    for item in split.train:
        groups[item.label].append(item)
    return [item for own, count in zip(groups, counts, strict=True) for item in random.sample(own, count)]
