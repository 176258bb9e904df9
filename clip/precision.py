"""The one place that names number formats and devices: what the frozen towers compute in, and where."""

import logging
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "bf16", "amp")
_ON_CPU = {"fp16": "fp32", "amp": "bf16"}
CPU = torch.device("cpu")  # where weights files are read to
STORAGES = {  # what PyTorch calls the storages of its files, and their number formats
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")  # of Linux


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else CPU


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still take on a device; None where the system does not say."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if not MEMINFO.is_file():
        return None
    available = _number(r"MemAvailable:\s+(\d+)", MEMINFO)
    if available is None:
        return None
    free = 1024 * available
    limit, used, usage = (CGROUP / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.is_file() and limit.read_text().strip().isdigit():  # a container's limit; files that are cached may go
        cached = _number(r"^file (\d+)", usage) or 0
        free = min(free, int(limit.read_text()) - int(used.read_text()) + cached)
    return max(free, 0)


def _number(pattern: str, path: Path) -> int | None:
    """The number that a pattern finds in a file; None if there is none."""
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    return int(found[1]) if found else None


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Convert, in place, what OpenAI's released models hold in half precision: convolutions, linear layers, attention
    and the two projections. Norms and embeddings stay as they are."""
    for module in model.modules():
        attention = hasattr(module, "in_proj_weight")
        names = ("text_projection", "proj")
        for name, parameter in module.named_parameters(recurse=False):
            if attention or isinstance(module, (nn.Conv2d, nn.Linear)) or name in names:
                parameter.data = parameter.data.to(dtype)


def convert_all(model: nn.Module) -> None:
    """Convert, in place, everything but the scale and the bias of the logits to half precision."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and name not in ("logit_scale", "logit_bias"):
            value.data = value.data.half()


class FrozenModel(Protocol):
    """What `Precision.prepare` needs of a backbone: a module with these two attributes."""

    model: nn.Module
    to_half_precision: Callable[[nn.Module], None]

    def requires_grad_(self, requires_grad: bool = True) -> nn.Module:
        """As of a module."""


Frozen = TypeVar("Frozen", bound=FrozenModel)


class Precision:
    """How a run computes: `fp32`, half weights (`fp16`), bfloat16 autocast (`bf16`) or float16 autocast (`amp`).

    What is trained, its gradients and the optimiser's state are float32 in every mode. float16 has no fast kernels on a
    CPU: there `fp16` computes in float32 and `amp` in bfloat16 autocast, and the log says so. It also says which
    float32 products a GPU rounds to TF32; nothing is changed about that.

    Args:
        name: one of `PRECISIONS`.
        device: where the run computes.

    Raises:
        ValueError: unknown name.
    """

    def __init__(self, name: str, device: torch.device):
        if name not in PRECISIONS:
            raise ValueError(f"the precision is {name!r}, but must be one of {', '.join(PRECISIONS)}")
        if device.type == "cpu" and name in _ON_CPU:
            logger.info("Precision %s has no fast kernels on a CPU: computing in %s", name, _ON_CPU[name])
            name = _ON_CPU[name]
        if device.type == "cuda" and name == "fp32":
            logger.info("Precision fp32 on this GPU: %s", tf32_state())
        self.name = name
        self.device = device
        self._autocast = {"bf16": torch.bfloat16, "amp": torch.float16}.get(name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name in ("fp16", "amp"))

    def autocast(self) -> AbstractContextManager:
        """The context in which towers run."""
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)

    def prepare(self, backbone: Frozen) -> Frozen:
        """Move a frozen backbone to the device, in evaluation mode, in the format its weights have in this mode."""
        backbone.requires_grad_(False).eval().to(self.device)
        if self.name == "fp16":
            backbone.to_half_precision(backbone.model)
        elif self._autocast is not None:
            convert_weights(backbone.model, self._autocast)  # else autocast would do so in every call
        return backbone


def __getattr__(name: str) -> Callable:
    """Former names, which go with the next release."""
    former = {"full": to_float32, "whole": autocast_disabled}
    if name not in former:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    now = f"{__name__}.{former[name].__name__}"
    warnings.warn(f"{__name__}.{name} goes with the next release: write {now}", DeprecationWarning, stacklevel=2)
    return former[name]


def tf32_state() -> str:
    """Which float32 products PyTorch lets a GPU round to TF32 (10 bits of mantissa), and how to change that."""
    products = torch.get_float32_matmul_precision() != "highest"
    on = {True: "in TF32", False: "in full float32"}
    return (
        f"matrix products {on[products]} (torch.set_float32_matmul_precision), "
        f"convolutions {on[torch.backends.cudnn.allow_tf32]} (torch.backends.cudnn.allow_tf32)"
    )


def to_float32(x: Tensor) -> Tensor:
    """The tensor in float32: features are compared, mixed and scaled in full precision in every mode."""
    return x.float()


def autocast_disabled(x: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of x: products of features are computed in float32 in every mode."""
    return torch.autocast(x.device.type, enabled=False)
