"""Several runs (seeds) of one configuration in one process: their training steps are computed together.

The runs are ordinary runs: each has its trainer, its draw of images, its order, its optimiser, its log and its
checkpoints. They run in turn (greenlets); when each of them waits for its training step to be computed, the learned
tensors are stacked in a leading dimension, the loss is mapped over it (`torch.func.vmap`), and one backward pass gives
each run the gradient that it would have had alone. While they run, this stands in the place of
`MethodTrainer.compute_gradients`; neither trainers nor methods know of it.

Shape legend: R runs, B images of one run's batch.
"""

import logging
import math
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.func import functional_call, vmap

from adaptation.method import Method
from adaptation.trainer import MethodTrainer, backward_parts
from clip.chunking import SHARE, counted_activations, format_bytes, unchunked
from dassl.utils import RUNS_IN_PROCESS

logger = logging.getLogger(__name__)

StepInput = tuple[MethodTrainer, Tensor, Tensor]  # whose step, images (B, 3, H, W), labels (B,)
StepOutput = tuple[Tensor, dict[str, Tensor]]  # loss, what the log shows of the step


def single_run_loss(step: StepInput) -> StepOutput:
    """Loss, gradients and summary of one run alone."""
    trainer, images, labels = step
    with trainer.precision.autocast():
        loss, summary = trainer.model.loss(images, labels)
    trainer.backward(loss)
    return loss, summary


def stacked_losses(steps: Sequence[StepInput], equal: "ConstantsEqual | None" = None) -> list[StepOutput]:
    """Losses, gradients and summaries of several runs: one backward pass over the sum of their losses."""
    if len(steps) == 1:
        return [single_run_loss(steps[0])]
    with unchunked(steps[0][0].model.backbone):
        outputs = _mapped_losses(steps, equal or ConstantsEqual())
    trainers = [trainer for trainer, *_ in steps]
    scaled = [t.precision.scaler.scale(loss) for t, (loss, _) in zip(trainers, outputs, strict=True)]
    total = torch.stack(scaled).sum(dim=0)
    if total.ndim == 0:
        total.backward()
    else:
        backward_parts(trainers, total)
    return outputs


def evenly(items: Sequence, most: int) -> list[Sequence]:
    """The items in order, in as few parts of at most so many as possible, of about equal length."""
    size = math.ceil(len(items) / math.ceil(len(items) / most))
    return [items[i : i + size] for i in range(0, len(items), size)]


class RunBatcher:
    """How many runs are computed together: all, or as many as their activations leave room for."""

    def __init__(self):
        self._at_once: dict[Hashable, int] = {}
        self._equal = ConstantsEqual()

    def outputs(self, kind: Hashable, steps: Sequence[StepInput]) -> list[StepOutput | Exception]:
        """Losses, gradients and summaries of runs whose steps are of one kind, or the exceptions that they raised.

        The first step of a kind that is asked for is computed alone and measured.
        """
        if kind not in self._at_once and len(steps) > 1:
            first = self._tried(lambda: [self._measured(kind, steps[0])], 1)
            return [*first, *self.outputs(kind, steps[1:])]
        pieces = evenly(steps, self._at_once.get(kind, 1))
        return [output for piece in pieces for output in self._of_piece(kind, piece)]

    def _of_piece(self, kind: Hashable, piece: Sequence[StepInput]) -> list[StepOutput | Exception]:
        """Outputs of steps that are computed together. If that fails, fewer are from then on, in the end each alone:
        memory may be shorter than it was, and what is wrong with one run is its own."""
        tried = self._tried(partial(stacked_losses, piece, self._equal), len(piece))
        if len(piece) == 1 or not isinstance(tried[0], Exception):
            return tried
        self._at_once[kind] = len(piece) // 2
        said = "The steps of %d runs could not be computed together (%s): trying %d at a time"
        logger.warning(said, len(piece), str(tried[0]).partition("\n")[0], self._at_once[kind])
        tried.clear()  # the exception holds what was computed
        for trainer, *_ in piece:
            trainer.model.zero_grad(set_to_none=True)
        return self.outputs(kind, piece)

    def _measured(self, kind: Hashable, step: StepInput) -> StepOutput:
        """The output of one run's step alone; notes how many such runs there is room for."""
        backbone = step[0].model.backbone
        room = backbone.memory_for_activations()
        weights = [*backbone.parameters(), *step[0].model.parameters()]
        with counted_activations(without=weights) as kept:
            output = single_run_loss(step)
        if backbone.is_chunked:
            self._at_once[kind] = 1
        else:
            self._at_once[kind] = sys.maxsize if room is None else max(1, int(SHARE * room / max(kept(), 1)))
        limit = min(self._at_once[kind], 999)
        logger.info("Memory: the training step of a run keeps %s; up to %d runs together", format_bytes(kept()), limit)
        return output

    @staticmethod
    def _tried(compute: Callable[[], list[StepOutput]], count: int) -> list[StepOutput | Exception]:
        """What is computed for so many runs, or for each of them the exception."""
        try:
            return [*compute()]
        except Exception as error:  # belongs to these runs, not to the others
            return [error] * count


class ConstantsEqual:
    """Says whether tensors need not be stacked: constants that are equal in two runs.

    Compares them once, and again after a change; what changes more than once is no constant, and is not compared: that
    would wait for the device.
    """

    def __init__(self):
        self._known: dict[tuple[int, int], tuple] = {}

    def __call__(self, a: Tensor, b: Tensor) -> bool:
        """Whether both are constants of the same values."""
        if a.requires_grad or b.requires_grad or a.shape != b.shape:
            return False
        state = (a, b, a._version, b._version)  # held, so that no other tensor gets their ids
        known = self._known.get((id(a), id(b)))
        if known is None or known[0][2:] != state[2:]:
            changes = 0 if known is None else known[2] + 1
            known = self._known[id(a), id(b)] = state, a is b or (changes < 2 and torch.equal(a, b)), changes
        return known[1]


class _Loss(nn.Module):
    """A method's loss as a module's forward, which is what `functional_call` takes."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, images: Tensor, labels: Tensor) -> StepOutput:
        return self.method.loss(images, labels)


def _mapped_losses(steps: Sequence[StepInput], equal: ConstantsEqual) -> list[StepOutput]:
    """Loss and summary of each run, computed in one pass over all runs' batches.

    Args:
        steps: of the runs, with images and labels of the same shapes.
        equal: says which constants need not be stacked.
    """
    trainers, images, labels = zip(*steps, strict=True)
    losses = [_Loss(trainer.model) for trainer in trainers]
    states = [{**dict(loss.named_parameters()), **dict(loss.named_buffers())} for loss in losses]
    first = states[0]
    own = [name for name in first if not all(equal(first[name], state[name]) for state in states[1:])]
    stacked = {name: torch.stack([state[name] for state in states]) for name in own}
    with trainers[0].precision.autocast(), warnings.catch_warnings():
        # one operation without a batching rule (attention on a CPU) runs once per run, which is exact
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        values, summaries = vmap(lambda state, x, y: functional_call(losses[0], state, (x, y)))(
            stacked, torch.stack(images), torch.stack(labels)
        )
    return [(values[r], {name: value[r] for name, value in summaries.items()}) for r in range(len(steps))]


def run_together(bodies: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run the bodies in turn until all have ended; returns what each returned, or the exception it raised.

    Standard output and the grad mode belong to each run while it has its turn.
    """
    results: list[Any] = [None] * len(bodies)

    def start(index: int) -> None:
        RUNS_IN_PROCESS.set(len(bodies))
        try:
            results[index] = bodies[index]()
        except Exception as error:  # one run's failure must not end the others; the caller raises it
            results[index] = error

    batcher = RunBatcher()
    runs = [_Run(greenlet(start)) for _ in bodies]
    waiting: dict[int, StepInput] = {}
    with _steps_go_to(getcurrent()):
        for index, run in enumerate(runs):
            resume_run(run, waiting, index, index)
        while waiting:
            outputs = compute_steps(waiting, batcher)
            waiting = {}
            for index, output in outputs.items():
                resume_run(runs[index], waiting, index, output)
    return results


@contextmanager
def _steps_go_to(scheduler: greenlet) -> Iterator[None]:
    """Inside, trainers that support it hand their steps to the scheduler, which computes those of all runs."""
    alone = MethodTrainer.compute_gradients

    def compute_gradients(trainer: MethodTrainer, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not trainer.supports_stacking:
            return alone(trainer, images, labels)
        return scheduler.switch((trainer, images, labels))[1]

    MethodTrainer.compute_gradients = compute_gradients  # type: ignore[method-assign, assignment]  # for the time of the runs
    try:
        yield
    finally:
        MethodTrainer.compute_gradients = alone  # type: ignore[method-assign]  # as it was


class _Run:
    """A run's greenlet with what is its own of the process: standard output and grad mode."""

    def __init__(self, body: greenlet):
        self.body = body
        self.stdout, self.grad = sys.stdout, torch.is_grad_enabled()


def resume_run(run: _Run, waiting: dict[int, StepInput], index: int, value: Any) -> None:
    """Let a run go on until its next training step, which is then put into `waiting`, or its end."""
    outside = sys.stdout, torch.is_grad_enabled()
    sys.stdout = run.stdout
    with torch.set_grad_enabled(run.grad):
        step = run.body.throw(value) if isinstance(value, Exception) else run.body.switch(value)
        run.grad = torch.is_grad_enabled()
    run.stdout, sys.stdout = sys.stdout, outside[0]
    torch.set_grad_enabled(outside[1])
    if not run.body.dead:
        waiting[index] = step


def compute_steps(waiting: dict[int, StepInput], batcher: RunBatcher) -> dict[int, StepOutput | Exception]:
    """Losses and gradients of all waiting steps, runs of equal shapes together; or the exception that they raised."""
    groups: dict[Hashable, list[int]] = {}
    for index, (trainer, images, labels) in waiting.items():
        kind = (type(trainer), images.shape, labels.shape, tuple(trainer.model.classnames))
        groups.setdefault(kind, []).append(index)
    outputs: dict[int, StepOutput | Exception] = {}
    for key, group in groups.items():
        outputs.update(zip(group, batcher.outputs(key, [waiting[index] for index in group]), strict=True))
    return outputs
