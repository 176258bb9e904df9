"""Several runs (seeds) of one configuration in one process: their training steps are computed together.

The runs are ordinary runs: each has its trainer, its draw of images, its order, its optimiser, its log and its
checkpoints. They run in turn (greenlets); when each of them waits for its training step to be computed, the learned
tensors are stacked in a leading dimension, the loss is mapped over it (`torch.func.vmap`), and one backward pass gives
each run the gradient that it would have had alone. While they run, this stands in the place of
`MethodTrainer.compute_gradients`; neither trainers nor methods know of it.

Shape legend: R runs, B images of one run's batch.
"""

import itertools
import logging
import math
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.func import functional_call, vmap

from adaptation.method import Method
from adaptation.trainer import MethodTrainer, backward_parts
from clip.chunking import SHARE, counted_activations, format_bytes, unchunked
from dassl.utils import RUNS_IN_PROCESS
from dassl.utils.interruption import Interrupted, asked, deferred, raise_if_asked

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


def stacked_losses(steps: Sequence[StepInput], group: "RunGroup") -> list[StepOutput]:
    """Losses, gradients and summaries of runs of one group: one backward pass over the sum of their losses."""
    if len(group.members) == 1:
        return [single_run_loss(steps[0])]
    with unchunked(steps[0][0].model.backbone):
        outputs = _mapped_losses(steps, group)
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


@dataclass(eq=False)
class RunGroup:
    """Runs whose steps are computed together, each in the same place of the stack from its first step to its last.

    The place of a run that is over, or stands elsewhere, is taken by a copy of another's step: how a step is rounded
    depends on how many are computed together, and on which tensors are stacked. Checkpoints say both, so that runs that
    go on are rounded as they would have been, wherever the others stand.

    Attributes:
        members: the names of the runs.
        stacked: the names of the tensors that are stacked; the others are equal constants.
        equal: says which are.
    """

    members: tuple[str, ...]
    stacked: set[str] = field(default_factory=set)
    equal: "ConstantsEqual" = field(default_factory=lambda: ConstantsEqual())

    @classmethod
    def of(cls, trainers: Sequence[MethodTrainer]) -> "RunGroup":
        """A new group of these runs, in this order."""
        group = cls(tuple(map(str, range(len(trainers)))))
        for name, trainer in zip(group.members, trainers, strict=True):
            group.note(trainer, name)
        return group

    def note(self, trainer: MethodTrainer, name: str) -> None:
        """Let a run's checkpoints say its name and its group."""
        trainer.stacking = {"name": name, "members": list(self.members), "stacked": sorted(self.stacked)}

    def places(self, trainers: Sequence[MethodTrainer]) -> list[int | None]:
        """For each place of the stack, which of these runs it has; None where its own run is not among them."""
        names = [trainer.stacking["name"] for trainer in trainers]
        return [names.index(member) if member in names else None for member in self.members]

    def alike(self, one: MethodTrainer, other: MethodTrainer) -> bool:
        """Whether two runs stand in the same stage of their method, which its flags (buffers that are truth values)
        say: the code that computes a step may depend on them."""
        flags = dict(other.model.named_buffers())
        mine = ((name, value) for name, value in one.model.named_buffers() if value.dtype == torch.bool)
        return all(self.equal(value, flags[name]) for name, value in mine)

    def choose_stacked(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Note the tensors of these runs that differ, or are learned."""
        first, *others = states
        differ = (name for name in first if not all(self.equal(first[name], state[name]) for state in others))
        self.stacked.update(differ)


class RunBatcher:
    """Which runs are computed together: all, or as many as their activations leave room for."""

    def __init__(self):
        self._at_once: dict[Hashable, int] = {}
        self._groups: dict[Hashable, dict[str, RunGroup]] = {}  # by kind, by the run's name
        self._names: dict[int, tuple[MethodTrainer, str]] = {}  # by id of the trainer, which is held

    def outputs(self, kind: Hashable, steps: Sequence[StepInput]) -> list[StepOutput | Exception]:
        """Losses, gradients and summaries of runs whose steps are of one kind, or the exceptions that they raised."""
        self._place(kind, steps)
        together: list[tuple[RunGroup, list[int]]] = []
        for index, (trainer, *_) in enumerate(steps):
            group = self._groups[kind][self.name(trainer)]
            same = (own for other, own in together if other is group and group.alike(trainer, steps[own[0]][0]))
            if (found := next(same, None)) is not None:
                found.append(index)
            else:
                together.append((group, [index]))
        outputs: dict[int, StepOutput | Exception] = {}
        for group, indices in together:
            own = [steps[index] for index in indices]
            outputs.update(zip(indices, self._of_group(kind, group, own), strict=True))
        return [outputs[index] for index in range(len(steps))]

    def name(self, trainer: MethodTrainer) -> str:
        """What a run is called in its group: its seed, with a number where another has it."""
        if id(trainer) not in self._names:
            seed, taken = str(trainer.cfg.SEED), {name for _, name in self._names.values()}
            others = (f"{seed}#{number}" for number in itertools.count(2))
            free = next(name for name in itertools.chain((seed,), others) if name not in taken)
            self._names[id(trainer)] = trainer, trainer.stacking.get("name", free)
        return self._names[id(trainer)][1]

    def _place(self, kind: Hashable, steps: Sequence[StepInput]) -> None:
        """Give each run its group: the one that its checkpoint says, one that another's says, or a new one."""
        groups = self._groups.setdefault(kind, {})
        new = {name: step for step in steps if (name := self.name(step[0])) not in groups}
        known = {group.members: group for group in groups.values()}
        for name, (trainer, *_) in new.items():
            members = tuple(trainer.stacking.get("members", ()))
            if name in members:
                groups[name] = known.setdefault(members, RunGroup(members))
                groups[name].stacked.update(trainer.stacking["stacked"])
        for name in new.keys() - groups.keys():
            groups.update((name, group) for group in known.values() if name in group.members)
        if alone := [step for name, step in new.items() if name not in groups]:
            self._form(kind, alone, self._room(kind, alone))
        for name, (trainer, *_) in new.items():
            groups[name].note(trainer, name)

    def _form(self, kind: Hashable, steps: Sequence[StepInput], most: int) -> None:
        """Make groups of at most so many of these runs."""
        for piece in evenly([self.name(trainer) for trainer, *_ in steps], most):
            self._groups[kind].update(dict.fromkeys(piece, RunGroup(tuple(piece))))

    def _of_group(self, kind: Hashable, group: RunGroup, steps: Sequence[StepInput]) -> list[StepOutput | Exception]:
        """Outputs of steps that are computed together. If that fails, fewer are from then on, in the end each alone:
        memory may be shorter than it was, and what is wrong with one run is its own."""
        try:
            outputs: list[StepOutput | Exception] = [*stacked_losses(steps, group)]
        except Exception as error:  # belongs to these runs, not to the others
            failed = error
        else:
            for trainer, *_ in steps:
                if len(trainer.stacking["stacked"]) < len(group.stacked):
                    group.note(trainer, self.name(trainer))
            return outputs
        if len(group.members) == 1:
            short = isinstance(failed, torch.OutOfMemoryError)
            failed.__traceback__ = failed.__traceback__ if not short else None  # it holds what was computed
            return self._of_group(kind, group, steps) if short and steps[0][0].encode_less() else [failed]
        most = len(group.members) // 2
        said = "The steps of %d runs could not be computed together (%s): trying %d at a time"
        logger.warning(said, len(group.members), str(failed).partition("\n")[0], most)
        del failed  # it holds what was computed
        for trainer, *_ in steps:
            trainer.model.zero_grad(set_to_none=True)
        self._form(kind, steps, most)
        for trainer, *_ in steps:
            self._groups[kind][self.name(trainer)].note(trainer, self.name(trainer))
        return self.outputs(kind, steps)

    def _room(self, kind: Hashable, steps: Sequence[StepInput]) -> int:
        """How many runs of a kind are computed together; the first of several steps is measured, which leaves nothing.

        One that cannot be computed is measured no more: it will fail again in its turn.
        """
        for step in steps if len(steps) > 1 and kind not in self._at_once else ():
            try:
                self._at_once[kind] = self._measured(step)
                break
            except Exception as error:  # belongs to this run, which meets it again
                logger.debug("A step cannot be measured: %s", error)
            finally:
                step[0].model.zero_grad(set_to_none=True)
        return self._at_once.get(kind, 1)

    def _measured(self, step: StepInput) -> int:
        """How many runs there is room for, by one run's step alone."""
        backbone = step[0].model.backbone
        room = backbone.memory_for_activations()
        weights = [*backbone.parameters(), *step[0].model.parameters()]
        with counted_activations(without=weights) as kept:
            output = single_run_loss(step)
        at_once = sys.maxsize if room is None else max(1, int(SHARE * room / max(kept(), 1)))
        at_once = 1 if backbone.is_chunked else at_once
        limit = min(at_once, 999)
        logger.info("Memory: the training step of a run keeps %s; up to %d runs together", format_bytes(kept()), limit)
        del output
        return at_once


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


def _mapped_losses(steps: Sequence[StepInput], group: RunGroup) -> list[StepOutput]:
    """Loss and summary of each run, computed in one pass over the batches of all places of its group.

    Args:
        steps: of runs of the group, with images and labels of the same shapes.
        group: which place is whose, and which tensors are stacked.
    """
    trainers, images, labels = zip(*steps, strict=True)
    losses = [_Loss(trainer.model) for trainer in trainers]
    states = [{**dict(loss.named_parameters()), **dict(loss.named_buffers())} for loss in losses]
    group.choose_stacked(states)
    places = group.places(trainers)
    runs = [place or 0 for place in places]  # an empty place has the first run's, but no gradients

    def stack(name: str) -> Tensor:
        return torch.stack([states[0][name].detach() if place is None else states[place][name] for place in places])

    with trainers[0].precision.autocast(), warnings.catch_warnings():
        # one operation without a batching rule (attention on a CPU) runs once per run, which is exact
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        values, summaries = vmap(lambda state, x, y: functional_call(losses[0], state, (x, y)))(
            {name: stack(name) for name in states[0] if name in group.stacked},
            torch.stack([images[run] for run in runs]), torch.stack([labels[run] for run in runs]),
        )  # fmt: skip
    rows = [places.index(run) for run in range(len(steps))]
    return [(values[row], {name: value[row] for name, value in summaries.items()}) for row in rows]


def run_together(bodies: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run the bodies in turn until all have ended; returns what each returned, or the exception it raised.

    Standard output and the grad mode belong to each run while it has its turn.

    Raises:
        Interrupted: the process was asked to end, and each run has saved what it could.
    """
    results: list[Any] = [None] * len(bodies)

    def start(index: int) -> None:
        RUNS_IN_PROCESS.set(len(bodies))
        try:
            raise_if_asked()
            results[index] = bodies[index]()
        except (Exception, Interrupted) as error:  # must not end the other runs; the caller raises it
            results[index] = error

    batcher = RunBatcher()
    runs = [_Run(greenlet(start)) for _ in bodies]
    waiting: dict[int, StepInput] = {}
    with _steps_go_to(getcurrent()), deferred():
        for index, run in enumerate(runs):
            resume_run(run, waiting, index, index)
        if asked():  # not all have come to their first step: without the others it would be rounded otherwise
            for index in list(waiting):
                resume_run(runs[index], {}, index, Interrupted(asked()))
            waiting = {}
        while waiting:
            outputs = compute_steps(waiting, batcher)
            waiting = {}
            for index, output in outputs.items():
                resume_run(runs[index], waiting, index, output)
    if asked():
        raise Interrupted(asked(), "where each run was saved")
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
        step = run.body.throw(value) if isinstance(value, Exception | Interrupted) else run.body.switch(value)
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
