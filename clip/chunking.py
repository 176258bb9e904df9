"""Encoding in chunks, where the activations that the backward pass needs would not fit into memory.

How much they take is measured on one sample and on a few when a shape comes for the first time: before the memory is
taken, and for any tower and any precision. Where they fit, the tower is run as it is from the next step on. Else each
chunk's activations are dropped and computed again in the backward pass, so that no more than one chunk's are there at a
time. The samples of a batch do not depend on each other: features and gradients are the same up to rounding.

Shape legend: N samples (images or sentences), E embedding width.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clip.towers import ImageTower, Prompts, SentenceLayout, TextTower

logger = logging.getLogger(__name__)

SHARE = 0.5  # of the free memory that the activations of one tower may take
CHUNK = 0.25  # of that share, for one chunk
WORTH_SAYING = 2**27  # bytes
SENTENCES = 8  # at least two and at most so many are measured
ENCODERS = {"run_image": "images", "run_text": "sentences"}

Encode = Callable[..., Tensor]  # the samples, then prompts -> features (N, E)
Samples = Sequence[Tensor | SentenceLayout]  # each of length N


def format_bytes(size: int) -> str:
    """A number of bytes as people read it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


@contextmanager
def counted_activations(without: Iterable[Tensor] = ()) -> Iterator[Callable[[], int]]:
    """Count the bytes that operations keep for the backward pass; yields a function that returns the total.

    Args:
        without: tensors that do not count, such as weights.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in without}
    sizes: dict[int, int] = {}  # by address: what two operations keep is there once

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield lambda: sum(sizes.values())


def select_rows(rows: slice, samples: Samples, prompts: Prompts) -> tuple[list, list[Tensor | None]]:
    """Some of the samples with their prompts; prompts (n, D) are shared by all, prompts (N, n, D) are per sample."""
    own = [prompt if prompt is None or prompt.ndim == 2 else prompt[rows] for prompt in prompts]
    return [sample[rows] for sample in samples], own


class LimitedMemory(Protocol):
    """What chunks need of a backbone: the functions that run its towers, and how much memory there is."""

    run_image: Encode
    run_text: Encode

    def memory_for_activations(self) -> int | None:
        """Bytes that the activations of a training step may take now, None if nothing says so."""


class ChunkedEncoder:
    """Takes the place of a backbone's `run_image` or `run_text`, and leaves it when it is found that all batches fit.

    Args:
        backbone: whose tower is run; its `memory_limit` says how many bytes the activations of a training step may
            take, or what is free at the time.
        name: "run_image" or "run_text".
        samples: what the tower's samples are, for the log.

    Attributes:
        divided: whether any batch went in chunks.
    """

    def __init__(self, backbone: LimitedMemory, name: str, samples: str):
        self.encode: Callable[..., Tensor] = getattr(backbone, name)
        self.divided = False
        self._backbone, self._name, self._what = backbone, name, samples
        self._at_once: dict[tuple, int] = {}

    def __call__(self, tower: ImageTower | TextTower, *arguments: Any, **options: Any) -> Tensor:
        """Features (N, E).

        Args:
            tower: the tower.
            arguments: tensors whose first dimension is N, or a layout of N sentences; then the prompts.
            options: how the prompts enter and are read, as in `clip.towers`.
        """
        *samples, prompts = arguments
        count, encode = len(samples[0]), partial(self.encode, tower, **options)
        if count < 2 or not torch.is_grad_enabled():
            return encode(*arguments)
        key = (torch.is_autocast_enabled(samples[0].device.type), *map(_kind, (*samples, *prompts)))
        if key not in self._at_once:
            self._at_once[key] = self._plan(encode, samples, prompts)
        elif not self.divided:
            setattr(self._backbone, self._name, self.encode)
        at_once = self._at_once[key]
        if at_once >= count:
            return encode(*arguments)
        chunks = [select_rows(slice(i, i + at_once), samples, prompts) for i in range(0, count, at_once)]
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # towers draw no random numbers
        return torch.cat([again(encode, *chunk, own) for chunk, own in chunks])

    def _plan(self, encode: Encode, samples: Samples, prompts: Prompts) -> int:
        """How many of the samples are encoded at once."""
        count = len(samples[0])
        # images are alike, sentences are not: those that are measured stand here and there in the list
        some = slice(0, count, -(-count // SENTENCES)) if isinstance(samples[-1], SentenceLayout) else slice(0, 2)
        one, more = (activations(encode, *select_rows(rows, samples, prompts)) for rows in (slice(0, 1), some))
        each = (more - one) / (len(samples[0][some]) - 1)
        free = self._backbone.memory_for_activations()
        needed = int(count * each)
        if free is None or needed <= SHARE * free:
            if needed > WORTH_SAYING:
                said = "" if free is None else f" of {format_bytes(free)}"
                logger.info(
                    "Memory: %d %s keep %s%s for the backward pass", count, self._what, format_bytes(needed), said
                )
            return count
        self.divided = True
        at_once = max(1, int(CHUNK * SHARE * free / each))
        logger.info(
            "Memory: %d %s would keep %s of %s for the backward pass: encoding %d at a time, and again in the backward "
            "pass", count, self._what, format_bytes(needed), format_bytes(free), at_once,
        )  # fmt: skip
        return at_once


@contextmanager
def unchunked(backbone: LimitedMemory) -> Iterator[None]:
    """Inside, batches are encoded without chunks: stacking, which uses this, chooses how many runs fit."""
    encoders = {name: getattr(backbone, name) for name in ENCODERS}
    for name, encoder in encoders.items():
        setattr(backbone, name, getattr(encoder, "encode", encoder))
    try:
        yield
    finally:
        for name, encoder in encoders.items():
            setattr(backbone, name, encoder)


def _kind(sample: Tensor | SentenceLayout | None) -> Hashable:
    """The properties of a sample or prompt that the plan depends on."""
    return (sample.shape, sample.dtype, sample.requires_grad) if isinstance(sample, Tensor) else sample


def activations(encode: Encode, samples: Samples, prompts: Prompts) -> int:
    """Bytes that encoding these samples keeps for the backward pass."""
    with counted_activations() as total:
        features = encode(*samples, prompts)  # while this is held, what was kept stays where it is
    return total() if features.requires_grad else 0
