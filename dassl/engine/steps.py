"""What training steps report, read in their order without waiting for the device; and what of a run is not finite."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dassl.utils.torchtools import HostCopy, on_gpu

ADVICE = (
    "lower OPTIM.LR, or compute in a more precise format. Nothing that is not finite was saved: the same command goes "
    "on from the last checkpoint"
)


@dataclass(frozen=True)
class Step:
    """Where a training step stands in its run.

    Attributes:
        epoch, batch: from 0.
        num_batches: of the epoch.
        lr: its learning rate.
        next_lr: the learning rate after it.
        line: what its line in the log begins and ends with; None if it has none.
    """

    epoch: int
    batch: int
    num_batches: int
    lr: float
    next_lr: float
    line: tuple[str, str] | None = None

    def __str__(self) -> str:
        place = f"epoch {self.epoch + 1}, batch {self.batch + 1} of {self.num_batches}"
        return f"{place}, learning rate {self.lr:.4e}"


@dataclass(frozen=True)
class _Report:
    """What one step reported: its numbers, with None for what is on the device, and the names of its gradients."""

    step: Step
    numbers: dict[str, float | None]
    gradients: tuple[str, ...]


class StepReader:
    """Reads what steps report, many steps at once: none of them waits for the device.

    Args:
        deliver: called with each step and its numbers, in the order of the steps.
        must_be_finite: says of a name whether its numbers must be.
    """

    def __init__(
        self,
        deliver: Callable[[Step, dict[str, float]], None],
        must_be_finite: Callable[[str], bool],
    ) -> None:
        self._deliver, self._must_be_finite = deliver, must_be_finite
        self._reports: list[_Report] = []
        self._values: list[Tensor] = []
        self._copies: deque[tuple[list[_Report], HostCopy]] = deque()

    @torch.no_grad()
    def add(self, step: Step, report: Mapping[str, Any] | None, gradients: Mapping[str, Tensor]) -> None:
        """Take note of a step.

        Args:
            step: which.
            report: numbers and tensors of one element by name; copied on their device, so that they may be overwritten.
            gradients: what must be finite beside them, by the names of the parameters.

        Raises:
            TypeError: ``report`` is neither None nor a mapping.
        """
        if report is not None and not isinstance(report, Mapping):
            raise TypeError(f"a step must report a dictionary of numbers, not {type(report).__name__}")
        named = dict(report or {})
        values = [value.reshape(()) for value in named.values() if isinstance(value, Tensor)]
        if gradients:  # on a CPU the Euclidean norm is eight times as fast as the largest value
            values += torch._foreach_norm(list(gradients.values()))
        numbers = {name: None if isinstance(value, Tensor) else value for name, value in named.items()}
        self._reports.append(_Report(step, numbers, tuple(gradients)))
        if values:
            home = next((value.device for value in values if on_gpu(value.device)), values[0].device)
            here = [value.to(home, non_blocking=True) for value in values]
            self._values.append(torch.stack(_of_one_format(here)))

    def start(self) -> None:
        """Begin to copy to the host what was added."""
        if self._reports:
            values = torch.cat(_of_one_format(self._values)) if self._values else torch.empty(0)
            self._copies.append((self._reports, HostCopy(values)))
            self._reports, self._values = [], []

    def collect(self, wait: bool = False) -> None:
        """Deliver what has arrived; with ``wait``, wait for what was started.

        Raises:
            FloatingPointError: a gradient of a step, or what it reported, is not finite.
        """
        while self._copies and (wait or self._copies[0][1].arrived()):
            reports, copy = self._copies.popleft()
            values = iter(copy.read().tolist())
            for report in reports:
                numbers = {name: next(values) if own is None else own for name, own in report.numbers.items()}
                gradients = {name: next(values) for name in report.gradients}
                self._require_finite(report.step, numbers, gradients)
                self._deliver(report.step, numbers)

    def finish(self) -> None:
        """Deliver all that was added; raises what :meth:`collect` raises."""
        self.start()
        self.collect(wait=True)

    def _require_finite(self, step: Step, numbers: Mapping[str, float], gradients: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            if self._must_be_finite(name) and not math.isfinite(number):
                raise FloatingPointError(not_finite("Loss", f"{name} = [{number}]", str(step)))
        for name, number in gradients.items():
            if not math.isfinite(number):
                raise FloatingPointError(not_finite("The norm of a gradient", f"that of {name}", str(step)))


def not_finite(kind: str, which: str, place: str) -> str:
    """Return the sentence about what is not finite, where, and what to do."""
    return f"{kind} is infinite or NaN! ({which} at {place}): {ADVICE}"


def largest(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the largest absolute value of each tensor, NaN where it holds one; on its device, without waiting."""
    return list(torch._foreach_norm(list(tensors), ord=math.inf)) if (tensors := list(tensors)) else []


@torch.no_grad()
def names_not_finite(tensors: Mapping[str, Any], may_be_infinite: Iterable[str] = ()) -> list[str]:
    """Return the names of those tensors that hold NaN or, unless they may be infinite, infinity; waits for them."""
    floats = {name: value for name, value in tensors.items() if isinstance(value, Tensor) and value.numel()}
    floats = {name: value for name, value in floats.items() if value.is_floating_point()}
    if not floats:
        return []
    numbers = torch.stack([value.double() for value in largest(floats.values())]).tolist()
    allowed = set(may_be_infinite)
    named = zip(floats, numbers, strict=True)
    return [name for name, number in named if math.isnan(number) or (math.isinf(number) and name not in allowed)]


def _of_one_format(tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors in a number format that holds them all exactly."""
    return tensors if len({tensor.dtype for tensor in tensors}) == 1 else [tensor.double() for tensor in tensors]
