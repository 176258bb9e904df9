"""Wrong labels among the training images: a stated share of them, drawn by the seed, the same for every method."""

import random
from collections.abc import Sequence

from dassl.data.datasets import Datum
from dassl.utils import stream_seed

TYPES = ("sym", "asym")


def check_noise(rate: float, kind: str) -> None:
    """Raise a ValueError for a rate or a type that there is not, naming the key."""
    if not 0 <= rate <= 1:
        raise ValueError(f"DATASET.NOISE_RATE is {rate}, but must lie between 0 and 1")
    if kind not in TYPES:
        raise ValueError(f"DATASET.NOISE_TYPE is {kind!r}, but must be one of {', '.join(TYPES)}")


def with_wrong_labels(
    items: Sequence[Datum], classnames: Sequence[str], rate: float, kind: str, seed: int
) -> list[Datum]:
    """A training list in which `round(rate * len(items))` images have the label of another class.

    Which images these are is drawn without regard to their classes. `sym`: the other class is drawn, all of them alike;
    `asym`: it is the next one (label + 1, after the last the first), so that classes are confused in a fixed way.

    Args:
        items: the list; it stays as it is.
        classnames: by label.
        rate, kind: as of `check_noise`.
        seed: of the run; below 0: the global generator.

    Raises:
        ValueError: there is only one class.
    """
    if len(classnames) < 2:
        raise ValueError(f"DATASET.NOISE_RATE is {rate}, but with {len(classnames)} class there are no wrong labels")
    own = random.Random(stream_seed(seed, "label noise") if seed >= 0 else random.getrandbits(63))
    chosen = set(own.sample(range(len(items)), round(rate * len(items))))
    noisy = []
    for index, item in enumerate(items):
        step = 0 if index not in chosen else 1 if kind == "asym" else own.randrange(1, len(classnames))
        label = (item.label + step) % len(classnames)
        noisy.append(Datum(impath=item.impath, label=label, domain=item.domain, classname=classnames[label]))
    return noisy
