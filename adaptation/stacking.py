"""Several runs (seeds) of one recipe in one process: their training steps are computed together.

The runs are ordinary runs: each has its trainer, its draw of images, its order, its optimiser, its log and its
checkpoints. They are carried forward by turns (greenlets); when all of them stand before a training step, the learned
tensors are stacked in a leading dimension, the loss is mapped over it (`torch.func.vmap`), and one backward pass gives
each run the gradient that it would have had alone. So no method knows that it is stacked.

Shape legend: R runs, B images of one run's batch.
"""

import logging
import math
import sys
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.func import functional_call, vmap

from adaptation.method import Method
from clip.backbone import Backbone
from clip.memory import SHARE, counted_activations, format_bytes, whole_batches
from clip.precision import Precision
from dassl.utils import RUNS_IN_PROCESS

logger = logging.getLogger(__name__)


class Stackable(Protocol):
    """What stacking needs of a trainer, which is a `adaptation.trainer.MethodTrainer`."""

    supports_stacking: bool
    model: Method
    backbone: Backbone
    precision: Precision

    def backward(self, loss: Tensor) -> None:
        """Give the gradients of a finite loss to what is learned."""

    def combined_gradient(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient of one parameter from those of the parts of the loss."""

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raise a FloatingPointError unless the loss is finite."""


Request = tuple[Stackable, Tensor, Tensor]
Answer = tuple[Tensor, dict[str, Tensor]]
_SCHEDULER: ContextVar[greenlet | None] = ContextVar("scheduler", default=None)


def loss_and_gradients(trainer: Stackable, images: Tensor, labels: Tensor) -> Answer:
    """The loss of one run's batch and what the log shows of the step; adds to the gradients of what the run learns.

    Where the run is one of several, all runs' losses and gradients are computed together; this run gets its own.
    """
    scheduler = _SCHEDULER.get()
    request = trainer, images, labels
    if scheduler is None or not trainer.supports_stacking:
        return own_loss(request)
    loss, summary = scheduler.switch(request)
    trainer.detect_anomaly(loss)
    return loss, summary


def own_loss(request: Request) -> Answer:
    """Loss, gradients and summary of one run alone."""
    trainer, images, labels = request
    with trainer.precision.autocast():
        loss, summary = trainer.model.loss(images, labels)
    trainer.backward(loss)
    return loss, summary


def joint_losses(requests: Sequence[Request], same: "Same | None" = None) -> list[Answer]:
    """Losses, gradients and summaries of several runs: one backward pass over the sum of their losses."""
    if len(requests) == 1:
        return [own_loss(requests[0])]
    with whole_batches():
        answers = stacked_losses(requests, same or Same())
    give_gradients([trainer for trainer, *_ in requests], [loss for loss, _ in answers])
    return answers


def give_gradients(trainers: Sequence[Stackable], losses: Sequence[Tensor]) -> None:
    """Add to the gradients of what runs learn those of their losses, each scaled as its run's precision asks for.

    Args:
        trainers: of R runs.
        losses: of each run a scalar, or the K parts of its loss, (K,), whose gradients its trainer combines.
    """
    scaled = [t.precision.scaler.scale(loss) for t, loss in zip(trainers, losses, strict=True)]
    if scaled[0].ndim == 0:
        torch.stack(scaled).sum().backward()
        return
    owners = [(t, p) for t in trainers for p in t.model.parameters() if p.requires_grad]
    learned = [p for _, p in owners]
    parts = [torch.autograd.grad(part, learned, retain_graph=True) for part in torch.stack(scaled).sum(dim=0)]
    for (trainer, parameter), *gradients in zip(owners, *parts, strict=True):
        parameter.grad = trainer.combined_gradient(gradients)


def evenly(items: Sequence, most: int) -> list[Sequence]:
    """The items in order, in as few parts of at most so many as possible, of about equal length."""
    size = math.ceil(len(items) / math.ceil(len(items) / most))
    return [items[i : i + size] for i in range(0, len(items), size)]


class Packing:
    """How many runs are computed together: all, or as many as their activations leave room for."""

    def __init__(self):
        self._at_once: dict[Hashable, int] = {}
        self._same = Same()

    def answers(self, kind: Hashable, requests: Sequence[Request]) -> list[Answer | Exception]:
        """Losses, gradients and summaries of runs whose steps are of one kind, or the exceptions that they raised.

        The first step of a kind that is asked for is computed alone and measured.
        """
        if kind not in self._at_once and len(requests) > 1:
            first = self._tried(lambda: [self._measured(kind, requests[0])], 1)
            return [*first, *self.answers(kind, requests[1:])]
        pieces = evenly(requests, self._at_once.get(kind, 1))
        return [answer for piece in pieces for answer in self._of_piece(kind, piece)]

    def _of_piece(self, kind: Hashable, piece: Sequence[Request]) -> list[Answer | Exception]:
        """Answers to steps that are computed together. If that fails, fewer are from then on, in the end each alone:
        memory may be shorter than it was, and what is wrong with one run is its own."""
        tried = self._tried(partial(joint_losses, piece, self._same), len(piece))
        if len(piece) == 1 or not isinstance(tried[0], Exception):
            return tried
        self._at_once[kind] = len(piece) // 2
        said = "The steps of %d runs could not be computed together (%s): trying %d at a time"
        logger.warning(said, len(piece), str(tried[0]).partition("\n")[0], self._at_once[kind])
        tried.clear()  # the exception holds what was computed
        for trainer, *_ in piece:
            trainer.model.zero_grad(set_to_none=True)
        return self.answers(kind, piece)

    def _measured(self, kind: Hashable, request: Request) -> Answer:
        """The answer to one run alone; notes how many such runs there is room for."""
        backbone = request[0].backbone
        room = backbone.parts.room(backbone.device)
        with counted_activations(without=backbone.parameters()) as kept:
            answer = own_loss(request)
        if backbone.parts.divided:
            self._at_once[kind] = 1
        else:
            self._at_once[kind] = sys.maxsize if room is None else max(1, int(SHARE * room / max(kept(), 1)))
        limit = min(self._at_once[kind], 999)
        logger.info("Memory: the training step of a run keeps %s; up to %d runs together", format_bytes(kept()), limit)
        return answer

    @staticmethod
    def _tried(compute: Callable[[], list[Answer]], count: int) -> list[Answer | Exception]:
        """What is computed for so many runs, or for each of them the exception."""
        try:
            return compute()
        except Exception as error:  # belongs to these runs, not to the others
            return [error] * count


class Same:
    """Says whether tensors need not be stacked: constants that are equal in two runs. Compares them once."""

    def __init__(self):
        self._known: dict[tuple[int, int], tuple] = {}

    def __call__(self, a: Tensor, b: Tensor) -> bool:
        """Whether both are constants of the same values."""
        if a.requires_grad or b.requires_grad or a.shape != b.shape:
            return False
        state = (a, b, a._version, b._version)  # held, so that no other tensor gets their ids
        known = self._known.get((id(a), id(b)))
        if known is None or known[0][2:] != state[2:]:
            known = self._known[id(a), id(b)] = state, a is b or torch.equal(a, b)
        return known[1]


class _Loss(nn.Module):
    """A method's loss as a module's forward, which is what `functional_call` takes."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method

    def forward(self, images: Tensor, labels: Tensor) -> Answer:
        return self.method.loss(images, labels)


def stacked_losses(requests: Sequence[Request], same: Same) -> list[Answer]:
    """Loss and summary of each run, computed in one pass over all runs' batches.

    Args:
        requests: per run its trainer, images (B, 3, H, W) and labels (B,), of the same shapes.
        same: says which constants need not be stacked.
    """
    trainers, images, labels = zip(*requests, strict=True)
    losses = [_Loss(trainer.model) for trainer in trainers]
    states = [{**dict(loss.named_parameters()), **dict(loss.named_buffers())} for loss in losses]
    first = states[0]
    own = [name for name in first if not all(same(first[name], state[name]) for state in states[1:])]
    stacked = {name: torch.stack([state[name] for state in states]) for name in own}
    with trainers[0].precision.autocast(), warnings.catch_warnings():
        # one operation without a batching rule (attention on a CPU) runs once per run, which is exact
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        values, summaries = vmap(lambda state, x, y: functional_call(losses[0], state, (x, y)))(
            stacked, torch.stack(images), torch.stack(labels)
        )
    return [(values[r], {name: value[r] for name, value in summaries.items()}) for r in range(len(requests))]


def run_together(bodies: Sequence[Callable[[], Any]]) -> list[Any]:
    """Carry runs forward by turns until all have ended; returns what each returned, or the exception it raised.

    Standard output and the grad mode belong to each run while it has its turn.
    """
    scheduler = getcurrent()
    results: list[Any] = [None] * len(bodies)

    def start(index: int) -> None:
        _SCHEDULER.set(scheduler)
        RUNS_IN_PROCESS.set(len(bodies))
        try:
            results[index] = bodies[index]()
        except Exception as error:  # one run's failure must not end the others; the caller raises it
            results[index] = error

    packing = Packing()
    turns = {index: _Turn(greenlet(start), index) for index in range(len(bodies))}
    waiting: dict[int, Request] = {}
    for index, turn in turns.items():
        _take_turn(turn, waiting, index)
    while waiting:
        answers = _answer(waiting, packing)
        waiting = {}
        for index, answer in answers.items():
            _take_turn(turns[index], waiting, answer)
    return results


class _Turn:
    """A run's greenlet with what is its own of the process: standard output and grad mode."""

    def __init__(self, body: greenlet, index: int):
        self.body, self.index = body, index
        self.stdout, self.grad = sys.stdout, torch.is_grad_enabled()


def _take_turn(turn: _Turn, waiting: dict[int, Request], value: Any) -> None:
    """Let a run go on until its next training step, which then waits, or its end."""
    outside = sys.stdout, torch.is_grad_enabled()
    sys.stdout = turn.stdout
    with torch.set_grad_enabled(turn.grad):
        request = turn.body.throw(value) if isinstance(value, Exception) else turn.body.switch(value)
        turn.grad = torch.is_grad_enabled()
    turn.stdout, sys.stdout = sys.stdout, outside[0]
    torch.set_grad_enabled(outside[1])
    if not turn.body.dead:
        waiting[turn.index] = request


def _answer(waiting: dict[int, Request], packing: Packing) -> dict[int, Answer | Exception]:
    """Losses and gradients of all waiting steps, runs of equal shapes together; or the exception that they raised."""
    groups: dict[Hashable, list[int]] = {}
    for index, (trainer, images, labels) in waiting.items():
        key = (type(trainer), images.shape, labels.shape, tuple(trainer.model.classnames))
        groups.setdefault(key, []).append(index)
    answers = {}
    for key, group in groups.items():
        answers.update(zip(group, packing.answers(key, [waiting[index] for index in group]), strict=True))
    return answers
