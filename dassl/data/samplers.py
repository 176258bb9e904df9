"""The order in which samples are visited, and where its random numbers come from.

``"global"``, what Dassl does: order and augmentation draw from the global generators of the process and its workers, so
they depend on the number of workers and on everything that drew before.  ``"keyed"``: they are functions of (seed, epoch,
sample).  A trainer says which of the two it wants, ``DATALOADER.RANDOM_STREAMS`` may say otherwise.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from multiprocessing.sharedctypes import RawArray
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from dassl.config import with_defaults
from dassl.utils import check_availability, stream_seed
from dassl.utils.third_party import names_from

GROUP_SAMPLERS = ("RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler")  # in dassl.data.domain_samplers
SAMPLERS = ("RandomSampler", "SequentialSampler", *GROUP_SAMPLERS)
RANDOM_STREAMS = ("auto", "keyed", "global")


def keyed_streams(cfg: CfgNode, wanted: str = "global") -> bool:
    """Say whether loaders draw from streams keyed by (seed, epoch, sample), where there is a seed.

    Args:
        cfg: ``DATALOADER.RANDOM_STREAMS`` decides, unless it is ``"auto"``.
        wanted: ``"keyed"`` or ``"global"``, what ``"auto"`` stands for.

    Raises:
        ValueError: another value than these.
    """
    asked = with_defaults(cfg).DATALOADER.RANDOM_STREAMS
    for value, what in ((asked, "DATALOADER.RANDOM_STREAMS"), (wanted, "random_streams")):
        check_availability(value, RANDOM_STREAMS, f"value of {what}")
    return (wanted if asked == "auto" else asked) == "keyed"


class EpochClock:
    """Counts the passes over the training data, for the sampler, the data set and its worker processes alike.

    Order and augmentation take their random streams from it, so they depend on the seed of the run and the number of the
    pass only: not on the number of workers, nor on what drew random numbers before.  The count lives in shared memory,
    where workers see it.

    Args:
        seed: seed of the run.
        stream: keeps the streams of several loaders apart.
    """

    def __init__(self, seed: int, stream: str = "train_x") -> None:
        self.seed = seed
        self.stream = stream
        self._passes = RawArray("q", [0, 0])  # the present pass, the next one

    def __deepcopy__(self, memo: dict[int, Any]) -> "EpochClock":
        """A copied loader counts for itself, in shared memory of its own."""
        clock = EpochClock(self.seed, self.stream)
        clock._passes[:] = self._passes[:]
        return memo.setdefault(id(self), clock)

    def set_next(self, number: int) -> None:
        """Say which pass the next one is, from 0."""
        self._passes[1] = number

    def tick(self) -> None:
        """Begin the next pass."""
        self._passes[0] = self._passes[1]
        self._passes[1] += 1

    def seed_for(self, *purpose: str | int) -> int:
        """Return the seed for one purpose within the present pass."""
        return stream_seed(self.seed, self.stream, self._passes[0], *purpose)


class EpochRandomSampler(RandomSampler):
    """A random permutation of the data that is a function of (seed, pass).

    Attributes:
        skip: how many samples the next pass leaves out at its beginning.
    """

    def __init__(self, data_source: Sized, clock: EpochClock) -> None:
        super().__init__(data_source)
        self.clock = clock
        self.skip = 0

    def __iter__(self) -> Iterator[int]:
        self.clock.tick()
        generator = torch.Generator().manual_seed(self.clock.seed_for("order"))
        skip, self.skip = self.skip, 0
        yield from torch.randperm(len(self.data_source), generator=generator).tolist()[skip:]


def pass_over(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """Return the batches after the first ``count``, whose images are read only where the random numbers need it."""
    sampler = getattr(batches, "sampler", None)
    if isinstance(batches, DataLoader) and isinstance(sampler, EpochRandomSampler) and batches.batch_size:
        sampler.skip = count * batches.batch_size
        return iter(batches)
    left = iter(batches)
    deque(itertools.islice(left, count), maxlen=0)
    return left


def _clock(loader: DataLoader | None) -> EpochClock | None:
    """Return the clock of a loader, if it has one."""
    return getattr(getattr(loader, "sampler", None), "clock", None)


def set_epoch(loader: DataLoader | None, epoch: int) -> None:
    """Say that the next pass over ``loader`` is number ``epoch``.  Nothing happens to a loader without a clock."""
    if (clock := _clock(loader)) is not None:
        clock.set_next(epoch)


def set_stream(loader: DataLoader | None, stream: str) -> None:
    """Give ``loader`` random streams of its own, so that equally long lists are not visited in the same order."""
    if (clock := _clock(loader)) is not None:
        clock.stream = stream


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence[Any] | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
    random_streams: str = "global",
) -> Sampler:
    """Return a sampler over ``data_source``.

    Args:
        sampler_type: one of ``SAMPLERS``.
        cfg: read by :func:`keyed_streams`; without it the order comes from PyTorch's global generator.
        data_source: what is sampled.
        batch_size: of the loader, for the samplers that compose batches.
        n_domain: domains per batch, for ``RandomDomainSampler``.
        n_ins: samples per class, for ``RandomClassSampler``.
        random_streams: ``"keyed"``: the random order is a function of (seed, epoch), if there is a seed; ``"global"``:
            it is drawn from PyTorch's global generator, or from Python's where batches are composed.

    Raises:
        ValueError: an unknown sampler, or batches that cannot be composed.
    """
    check_availability(sampler_type, SAMPLERS, "sampler")
    assert data_source is not None, "there is nothing to sample from"
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    clock = None
    if cfg is not None and keyed_streams(cfg, random_streams) and cfg.SEED >= 0:
        clock = EpochClock(cfg.SEED)
    if sampler_type in GROUP_SAMPLERS:
        from dassl.data.domain_samplers import build_group_sampler

        return build_group_sampler(sampler_type, data_source, batch_size, n_domain, n_ins, clock)
    return RandomSampler(data_source) if clock is None else EpochRandomSampler(data_source, clock)

__getattr__ = names_from(__name__, dict.fromkeys(GROUP_SAMPLERS, "dassl.data.domain_samplers"))
