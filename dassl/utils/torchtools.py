"""Devices, and small things about modules; what is known of checkpoints goes by Dassl's name for this file as well."""

import functools
import platform
import re
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dassl.utils.checkpoints import (
    last_checkpoint,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from dassl.utils.tools import check_availability

__all__ = [
    "HostCopy", "choose_device", "count_num_param", "device_name", "free_cached_memory", "last_checkpoint",
    "load_checkpoint", "load_pretrained_weights", "on_gpu", "open_all_layers", "open_specified_layers", "peak_memory",
    "processor_name", "reset_peak_memory", "resume_from_checkpoint", "save_checkpoint", "to_half_precision",
]  # fmt: skip


def choose_device(use_cuda: bool) -> torch.device:
    """Return the device to compute on: the GPU if it is wanted and there is one."""
    return torch.device("cuda" if use_cuda and torch.cuda.is_available() else "cpu")


def to_half_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float16; what is beyond its range becomes infinite."""
    return tensor.to(torch.float16)


def on_gpu(device: torch.device | str) -> bool:
    """Say whether a device is a GPU."""
    return torch.device(device).type == "cuda"


class HostCopy:
    """A copy of a tensor in the host's memory, which is made without waiting for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.detach().to("cpu", non_blocking=True)  # from a GPU into pinned memory
        self._made = torch.cuda.Event() if on_gpu(tensor.device) else None
        if self._made is not None:
            self._made.record(torch.cuda.current_stream(tensor.device))

    def arrived(self) -> bool:
        """Say whether the copy is there."""
        return self._made is None or self._made.query()

    def read(self) -> Tensor:
        """Return the copy, after waiting for it."""
        if self._made is not None:
            self._made.synchronize()
        return self._copy


def device_name(device: torch.device | str) -> str:
    """Return the device, with the model of a GPU."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if on_gpu(device) else str(device)


@functools.cache
def processor_name() -> str:
    """Return the model of the CPU, and the instructions that PyTorch uses of it: what decides how it rounds."""
    info = Path("/proc/cpuinfo")  # of Linux
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def free_cached_memory(device: torch.device) -> None:
    """Give back what PyTorch keeps of a GPU's memory for later."""
    if on_gpu(device):
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Begin to count the peak of a GPU's memory anew."""
    if on_gpu(device):
        torch.cuda.init()  # the count can only be reset once CUDA runs
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device | str) -> dict[str, int]:
    """Return the most bytes that this process has used: on the host ever, on a GPU since its count was reset."""
    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}
    if on_gpu(device) and torch.cuda.is_available():
        peak[torch.device(device).type] = torch.cuda.max_memory_allocated(device)
    return peak


def count_num_param(model: nn.Module | None = None, params: Iterable[Any] | None = None) -> int:
    """Return how many numbers are in the parameters of ``model``, or in ``params`` (parameters or groups of them)."""
    if model is not None:
        params = model.parameters()
    if params is None:
        raise ValueError("count_num_param needs a model or parameters")
    groups = (entry["params"] if isinstance(entry, dict) else [entry] for entry in params)
    return sum(p.numel() for group in groups for p in group)


def open_all_layers(model: nn.Module) -> None:
    """Train all of ``model``."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Iterable[str]) -> None:
    """Train the named children of ``model`` and freeze the others."""
    model = model.module if isinstance(model, nn.DataParallel) else model
    wanted = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    for name in wanted:
        check_availability(name, list(children), "layer")
    for name, child in children.items():
        child.train(name in wanted)
        child.requires_grad_(name in wanted)
