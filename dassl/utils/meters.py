"""Running averages of what a training step reports."""

import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any


class AverageMeter:
    """The last value, the sum and the average of a series; with ``ema`` the average is exponential (0.9, 0.1)."""

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget the series."""
        self.val = 0.0
        self.avg = 0.0
        self.sum = 0.0
        self.count = 0

    def update(self, val: Any, n: int = 1) -> None:
        """Add ``val`` (a number or a one-element tensor), counted ``n`` times."""
        torch = sys.modules.get("torch")  # without it nothing is a tensor
        if torch is not None and isinstance(val, torch.Tensor):
            val = val.item()
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = 0.9 * self.avg + 0.1 * val if self.ema else self.sum / self.count


class MetricMeter:
    """An :class:`AverageMeter` per name; as text ``loss 0.5000 (0.6000) acc 50.0000 (40.0000)``."""

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, Any] | None) -> None:
        """Add one step's values; None adds nothing.

        Raises:
            TypeError: ``input_dict`` is neither None nor a mapping.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError(f"a step must report a dictionary of numbers, not {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def state(self) -> dict[str, Any]:
        """Return what the meters hold, as plain data."""
        return {name: [m.val, m.sum, m.count, m.avg] for name, m in self.meters.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        for name, values in state.items():
            meter = self.meters[name]
            meter.val, meter.sum, meter.count, meter.avg = values

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
