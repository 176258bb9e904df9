"""Towers in parts, where what the backward pass needs of them would not fit into memory.

How much that is, is measured on one sample and on two when a shape comes for the first time: before the memory is
taken, and for any tower and any precision. In parts, each part's activations are dropped and computed again in the
backward pass, so that no more than one part's are there at a time. The samples of a batch do not depend on each other:
features and gradients are the same up to rounding.

Shape legend: N samples (images or sentences), E embedding width.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clip.precision import free_memory
from clip.towers import Prompts

logger = logging.getLogger(__name__)

SHARE = 0.5  # of the free memory that the activations of one tower may take
PART = 0.25  # of that share, for one part
WORTH_SAYING = 2**27  # bytes
_WHOLE: ContextVar[bool] = ContextVar("whole", default=False)

Encode = Callable[..., Tensor]  # the samples, then prompts -> features (N, E)


def format_bytes(size: int) -> str:
    """A number of bytes as people read it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


@contextmanager
def whole_batches() -> Iterator[None]:
    """Inside, batches are encoded at once whatever they need: who stacks runs sees to it that they fit."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


@contextmanager
def counted_activations(without: Iterable[Tensor] = ()) -> Iterator[Callable[[], int]]:
    """Count the bytes that the operations in the block keep for the backward pass; what is yielded tells the sum.

    Args:
        without: tensors that are there in any case, such as weights.
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


def select_rows(rows: slice, samples: Sequence[Tensor], prompts: Prompts) -> tuple[list[Tensor], list[Tensor | None]]:
    """Some of the samples with their prompts; prompts (n, D) are shared by all, prompts (N, n, D) are per sample."""
    own = [prompt if prompt is None or prompt.ndim == 2 else prompt[rows] for prompt in prompts]
    return [sample[rows] for sample in samples], own


class Parts:
    """Encodes batches: at once, or in parts where the activations would not fit.

    Args:
        limit: bytes that the activations of a training step may take; None for what is free at the time.
    """

    def __init__(self, limit: int | None = None):
        self.limit = limit
        self.divided = False  # whether any batch went in parts
        self._at_once: dict[tuple, int] = {}

    def room(self, device: torch.device) -> int | None:
        """Bytes that activations may take now, None if nothing says so."""
        return self.limit or free_memory(device)

    def encode(self, what: str, encode: Encode, samples: Sequence[Tensor], prompts: Prompts) -> Tensor:
        """Features (N, E).

        Args:
            what: what the samples are, for the log.
            encode: a tower.
            samples: tensors whose first dimension is N.
            prompts: entries (n, D), shared by the batch, or (N, n, D), or None.
        """
        count = len(samples[0])
        if count < 2 or not torch.is_grad_enabled() or _WHOLE.get():
            return encode(*samples, prompts)
        key = (what, torch.is_autocast_enabled(samples[0].device.type), *map(_kind, (*samples, *prompts)))
        if key not in self._at_once:
            self._at_once[key] = self._plan(what, encode, samples, prompts)
        at_once = self._at_once[key]
        if at_once >= count:
            return encode(*samples, prompts)
        parts = [select_rows(slice(i, i + at_once), samples, prompts) for i in range(0, count, at_once)]
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # towers draw no random numbers
        return torch.cat([again(encode, *part, own) for part, own in parts])

    def _plan(self, what: str, encode: Encode, samples: Sequence[Tensor], prompts: Prompts) -> int:
        """How many of the samples are encoded at once."""
        count = len(samples[0])
        one, two = (activations(encode, *select_rows(slice(n), samples, prompts)) for n in (1, 2))
        free = self.room(samples[0].device)
        needed = count * (two - one)
        if free is None or needed <= SHARE * free:
            if needed > WORTH_SAYING:
                said = "" if free is None else f" of {format_bytes(free)}"
                logger.info("Memory: %d %s keep %s%s for the backward pass", count, what, format_bytes(needed), said)
            return count
        self.divided = True
        at_once = max(1, int(PART * SHARE * free / (two - one)))
        logger.info(
            "Memory: %d %s would keep %s of %s for the backward pass: encoding %d at a time, and again in the backward "
            "pass", count, what, format_bytes(needed), format_bytes(free), at_once,
        )  # fmt: skip
        return at_once


def _kind(tensor: Tensor | None) -> tuple | None:
    """What of a tensor the plan depends on."""
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.requires_grad)


def activations(encode: Encode, samples: Sequence[Tensor], prompts: Prompts) -> int:
    """Bytes that encoding these samples keeps for the backward pass."""
    with counted_activations() as total:
        features = encode(*samples, prompts)  # while this is held, what was kept stays where it is
    return total() if features.requires_grad else 0
