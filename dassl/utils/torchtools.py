"""Checkpoints, devices, and small things about modules.

A checkpoint is one file of plain data (tensors, numbers, strings, lists, dictionaries)::

    <folder>/model.pth.tar-<epoch>   state_dict, epoch (completed), optimizer, scheduler, val_result; what trainers add
    <folder>/model-best.pth.tar      the same, of the best validation result
    <folder>/checkpoint              the name of the file that was written last

Files of Dassl also hold the successor scheduler, with its optimiser, and NumPy numbers: reading allows just these.
"""

import functools
import logging
import os
import pickle
import platform
import re
import resource
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl.utils.tools import atomic_write, check_availability

logger = logging.getLogger(__name__)

UNSAFE_LOAD = "DASSL_UNSAFE_LOAD"  # environment variable: set to 1, checkpoints may run code
BEST = "model-best.pth.tar"
EPOCH_FILE = re.compile(r"model\.pth\.tar-(\d+)")
DAMAGED = '"{}" is no checkpoint, or is damaged: delete it (a run goes on from the one before), or name another'


def choose_device(use_cuda: bool) -> torch.device:
    """Return the device to compute on: the GPU if it is wanted and there is one."""
    return torch.device("cuda" if use_cuda and torch.cuda.is_available() else "cpu")


def on_gpu(device: torch.device | str) -> bool:
    """Say whether a device is a GPU."""
    return torch.device(device).type == "cuda"


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


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        state: plain data with ``state_dict`` and ``epoch``.
        save_dir: the folder; made if missing.
        is_best: write ``model-best.pth.tar`` as well.
        remove_module_from_keys: strip the ``module.`` that DataParallel puts before names.
        model_name: name of the file, default ``model.pth.tar-<epoch>``.
    """
    state = {**state, "state_dict": OrderedDict(state["state_dict"])}
    if remove_module_from_keys:
        state["state_dict"] = _without_module(state["state_dict"])
    name = model_name or f"model.pth.tar-{state['epoch']}"
    for file_name in [name, BEST] if is_best else [name]:
        path = os.path.join(save_dir, file_name)
        with atomic_write(path, "wb") as file:
            torch.save(state, file)
        logger.info("Checkpoint saved to %s", path)
    with atomic_write(os.path.join(save_dir, "checkpoint")) as file:
        file.write(f"{name}\n")


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """Read a checkpoint into the memory of the host.

    Nothing in the file is run: only plain data, and the few classes that Dassl's own checkpoints hold, are read.  The
    environment variable DASSL_UNSAFE_LOAD=1 lifts this, for files that one trusts.

    Raises:
        ValueError: ``fpath`` is None, is no checkpoint, or holds something else.
        FileNotFoundError: there is no such file.
    """
    if fpath is None:
        raise ValueError("File path is None: no checkpoint was named")
    if not os.path.isfile(fpath):
        raise FileNotFoundError(f'No checkpoint at "{fpath}"')
    unsafe = os.environ.get(UNSAFE_LOAD) == "1"
    try:
        with torch.serialization.safe_globals(_dassl_globals()):
            checkpoint = torch.load(fpath, map_location=_host, weights_only=not unsafe)
    except pickle.UnpicklingError as error:
        unknown = re.findall(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
        if not unknown:
            raise ValueError(DAMAGED.format(fpath)) from error
        raise ValueError(
            f'"{fpath}" holds {unknown[0]}, which is no plain data; reading it could run code. '
            f"If you trust the file, set {UNSAFE_LOAD}=1 in the environment."
        ) from error
    except (AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(DAMAGED.format(fpath)) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f'"{fpath}" is no checkpoint: it holds a {type(checkpoint).__name__}')
    return checkpoint


def _host(storage: Any, location: str) -> Any:
    """Leave what is read where ``torch.load`` reads it, in the memory of the host, whatever device it was on."""
    return storage


def _dassl_globals() -> list[Any]:
    """Return what checkpoints of Dassl hold beside plain data: schedulers with their optimisers, NumPy numbers."""
    from torch import optim
    from torch.optim import lr_scheduler

    optimizers = [optim.Adadelta, optim.Adam, optim.AdamW, optim.RAdam, optim.RMSprop, optim.SGD]
    schedulers = [lr_scheduler.CosineAnnealingLR, lr_scheduler.MultiStepLR, lr_scheduler.StepLR]
    scalar = np._core.multiarray.scalar
    numbers = [np.dtype, *(type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?"))]
    scalars = [(scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    return [*optimizers, *schedulers, *numbers, *scalars, (_plain_dict, "collections.defaultdict"), dict]


def _plain_dict(factory: Any = None) -> dict[Any, Any]:
    """Stand in for ``defaultdict``, which holds the state of a pickled optimiser and which PyTorch does not read."""
    return {}


def pointed_name(fdir: str) -> str | None:
    """Return the name that the file ``checkpoint`` of a folder holds, or None where it holds none.

    It is the name of a file beside it: what leads elsewhere, as a folder from a stranger may, is none.
    """
    try:
        with open(os.path.join(fdir, "checkpoint"), encoding="utf-8") as file:
            name = file.readline(256).strip()
    except (OSError, UnicodeDecodeError):
        return None
    plain = name.isprintable() and name == os.path.basename(name) and "\\" not in name
    return name if plain and name not in ("", ".", "..", "checkpoint") else None


def last_checkpoint(fdir: str) -> str | None:
    """Return the path of the checkpoint that was written last to a folder, or None if there is none.

    Where that one was deleted, the last of the others is meant.
    """
    if not os.path.isfile(os.path.join(fdir, "checkpoint")):
        return None
    path = os.path.join(fdir, pointed_name(fdir) or "checkpoint")
    if os.path.isfile(path) and pointed_name(fdir):
        return path
    epochs = [int(match[1]) for name in os.listdir(fdir) if (match := EPOCH_FILE.fullmatch(name))]
    return os.path.join(fdir, f"model.pth.tar-{max(epochs)}") if epochs else None


def restore(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
) -> int:
    """Put a checkpoint into a model and, where both sides have one, an optimiser and a scheduler; return its epoch."""
    model.load_state_dict(checkpoint["state_dict"])
    for part, state in ((optimizer, checkpoint.get("optimizer")), (scheduler, checkpoint.get("scheduler"))):
        if part is not None and state is not None:
            part.load_state_dict(state)
    return checkpoint["epoch"]


def resume_from_checkpoint(
    fdir: str, model: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
) -> int:
    """Restore from the checkpoint that was written last to ``fdir``; return the number of completed epochs."""
    path = last_checkpoint(fdir)
    if path is None:
        raise FileNotFoundError(f'There is no file "checkpoint" in "{fdir}"')
    epoch = restore(load_checkpoint(path), model, optimizer, scheduler)
    logger.info('Resumed from "%s" (epoch = %d)', path, epoch)
    return epoch


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Load those weights of a file that fit ``model`` in name and size; warn about the others."""
    checkpoint = load_checkpoint(weight_path)
    weights = _without_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    discarded = [name for name in weights if name not in fitting]
    model.load_state_dict(own | fitting)
    if not fitting:
        warnings.warn(f'"{weight_path}": no weight fits the model in name and size; nothing was loaded', stacklevel=2)
        return
    logger.info('Loaded %d weights from "%s"', len(fitting), weight_path)
    if discarded:
        logger.info("Discarded, for their name or size: %s", discarded)


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


def _without_module(weights: Mapping[str, Any]) -> "OrderedDict[str, Any]":
    """Strip the ``module.`` that DataParallel puts before names."""
    return OrderedDict((name.removeprefix("module."), value) for name, value in weights.items())
