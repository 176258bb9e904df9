"""Several runs (seeds) of one recipe in one process: their training steps are computed together.

The runs are ordinary runs: each has its trainer, its draw of images, its order, its optimiser, its log and its
checkpoints. They are carried forward by turns (greenlets); when all of them stand before a training step, the learned
tensors are stacked in a leading dimension, the loss is mapped over it (`torch.func.vmap`), and one backward pass gives
each run the gradient that it would have had alone. So no method knows that it is stacked.

Shape legend: R runs, B images of one run's batch.
"""

import sys
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.func import functional_call, vmap

if TYPE_CHECKING:
    from trainers.base import MethodTrainer

Request = tuple["MethodTrainer", Tensor, Tensor]
Answer = tuple[Tensor, dict[str, Tensor]]
_SCHEDULER: ContextVar[greenlet | None] = ContextVar("scheduler", default=None)


def loss_and_gradients(trainer: "MethodTrainer", images: Tensor, labels: Tensor) -> Answer:
    """The loss of one run's batch and what the log shows of the step; adds to the gradients of what the run learns.

    Where the run is one of several, all runs' losses and gradients are computed together; this run gets its own.
    """
    scheduler = _SCHEDULER.get()
    request = trainer, images, labels
    if scheduler is None or not trainer.stackable:
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


def joint_losses(requests: Sequence[Request]) -> list[Answer]:
    """Losses, gradients and summaries of several runs: one backward pass over the sum of their losses."""
    answers = stacked_losses(requests)
    scaled = [trainer.precision.scaler.scale(loss) for (trainer, *_), (loss, _) in zip(requests, answers, strict=True)]
    torch.stack(scaled).sum().backward()
    return answers


class _Loss(nn.Module):
    """A method's loss as a module's forward, which is what `functional_call` takes."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method

    def forward(self, images: Tensor, labels: Tensor) -> Answer:
        return self.method.loss(images, labels)


def stacked_losses(requests: Sequence[Request]) -> list[Answer]:
    """Loss and summary of each run, computed in one pass over all runs' batches.

    Args:
        requests: per run its trainer, images (B, 3, H, W) and labels (B,), of the same shapes.
    """
    trainers, images, labels = zip(*requests, strict=True)
    losses = [_Loss(trainer.model) for trainer in trainers]
    states = [{**dict(loss.named_parameters()), **dict(loss.named_buffers())} for loss in losses]
    first = states[0]
    own = [name for name in first if not all(_same(first[name], state[name]) for state in states[1:])]
    stacked = {name: torch.stack([state[name] for state in states]) for name in own}
    with trainers[0].precision.autocast(), warnings.catch_warnings():
        # one operation without a batching rule (attention on a CPU) runs once per run, which is exact
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        values, summaries = vmap(lambda state, x, y: functional_call(losses[0], state, (x, y)))(
            stacked, torch.stack(images), torch.stack(labels)
        )
    return [(values[r], {name: value[r] for name, value in summaries.items()}) for r in range(len(requests))]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether a tensor need not be stacked: a constant that is equal in both runs."""
    return not a.requires_grad and a.shape == b.shape and (a is b or torch.equal(a, b))


def run_together(bodies: Sequence[Callable[[], Any]]) -> list[Any]:
    """Carry runs forward by turns until all have ended; returns what each returned, or the exception it raised.

    Standard output and the grad mode belong to each run while it has its turn.
    """
    scheduler = getcurrent()
    results: list[Any] = [None] * len(bodies)

    def start(index: int) -> None:
        _SCHEDULER.set(scheduler)
        try:
            results[index] = bodies[index]()
        except Exception as error:  # one run's failure must not end the others; the caller raises it
            results[index] = error

    turns = {index: _Turn(greenlet(start), index) for index in range(len(bodies))}
    waiting: dict[int, Request] = {}
    for index, turn in turns.items():
        _take_turn(turn, waiting, index)
    while waiting:
        answers = _answer(waiting)
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


def _answer(waiting: dict[int, Request]) -> dict[int, Answer | Exception]:
    """Losses and gradients of all waiting steps, runs of equal shapes together; or the exception that they raised."""
    groups: dict[Hashable, list[int]] = {}
    for index, (trainer, images, labels) in waiting.items():
        key = (type(trainer), images.shape, labels.shape, tuple(trainer.model.classnames))
        groups.setdefault(key, []).append(index)
    answers = {}
    for group in groups.values():
        requests = [waiting[index] for index in group]
        try:
            found = joint_losses(requests) if len(group) > 1 else [own_loss(requests[0])]
        except Exception as error:  # belongs to the runs of this group, not to the others
            found = [error] * len(group)
        answers.update(zip(group, found, strict=True))
    return answers
