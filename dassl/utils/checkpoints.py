"""Checkpoints: written whole, read as data, with the digest of their content.

A checkpoint is one file of plain data (tensors, numbers, strings, lists, dictionaries)::

    <folder>/model.pth.tar-<epoch>   state_dict, epoch (completed), optimizer, scheduler, val_result, digest; what
                                     trainers add
    <folder>/model-best.pth.tar      the same, of the best validation result
    <folder>/checkpoint              the name of the file that was written last

Between them there may be interim checkpoints (:mod:`dassl.utils.interim`).

Files of Dassl also hold the successor scheduler, with its optimiser, and NumPy numbers: reading allows just these.
"""

import io
import logging
import numbers
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl.utils.digests import DIGEST, DamagedError, require_digest, with_digest
from dassl.utils.files import atomic_write

logger = logging.getLogger(__name__)

UNSAFE_LOAD = "DASSL_UNSAFE_LOAD"  # environment variable: set to 1, checkpoints may run code
BEST = "model-best.pth.tar"
EPOCH_FILE = re.compile(r"model\.pth\.tar-(\d{1,9})")
DAMAGED = '"{}" is no checkpoint, or is damaged: delete it (a run goes on from the one before), or name another'
_UNREADABLE = (  # what PyTorch answers damaged files with; found by reading thousands of them
    *(AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OverflowError),
    *(OSError, RuntimeError, TypeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error),
)
_TYPES: dict[
    str, type | tuple[type, ...]
] = {  # entries of checkpoints that are read by the engine and by trainers, where they are there
    "state_dict": Mapping,
    "epoch": (numbers.Integral, type(None)),
    "val_result": (numbers.Real, torch.Tensor, type(None)),
    "progress": Mapping,
    "config": Mapping,
    "classnames": (list, tuple),
    "trainer": str,
    "backbone": str,
    "backbone_digest": str,
}


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write a checkpoint, whole or not at all, with the digest of its content.

    Args:
        state: plain data with ``state_dict`` and ``epoch``. What is no plain data is written as well, without a digest;
            it is not read again unless one asks for it (:func:`load_checkpoint`).
        save_dir: the folder; made if missing.
        is_best: write ``model-best.pth.tar`` as well.
        remove_module_from_keys: strip the ``module.`` that DataParallel puts before names.
        model_name: name of the file, default ``model.pth.tar-<epoch>``.
    """
    state = {**state, "state_dict": OrderedDict(state["state_dict"])}
    if remove_module_from_keys:
        state["state_dict"] = without_module(state["state_dict"])
    name = model_name or f"model.pth.tar-{state['epoch']}"
    content = serialise(state)
    for file_name in [name, BEST] if is_best else [name]:
        write_checkpoint(content, os.path.join(save_dir, file_name))
    with atomic_write(os.path.join(save_dir, "checkpoint")) as file:
        file.write(f"{name}\n")


def serialise(state: dict[str, Any]) -> memoryview:
    """Return the bytes of a checkpoint, with the digest of its content."""
    content = io.BytesIO()  # PyTorch's writer does not say what is wrong with a file that cannot be written
    torch.save(_with_digest(state), content)
    return content.getbuffer()


def write_checkpoint(content: memoryview, path: str) -> None:
    """Write the bytes of a checkpoint, whole or not at all."""
    with atomic_write(path, "wb") as file:
        file.write(content)
    logger.info("Checkpoint saved to %s", path)


def _with_digest(state: dict[str, Any]) -> dict[str, Any]:
    try:
        return with_digest(state)
    except TypeError as error:
        logger.warning("The checkpoint has no digest, for %s", error)
        return state


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """Read a checkpoint into the memory of the host.

    Nothing in the file is run: only plain data, and the few classes that Dassl's own checkpoints hold, are read.  The
    environment variable DASSL_UNSAFE_LOAD=1 lifts this, for files that one trusts.  The digest is compared where the
    file has one, and the checksums of its parts where it has none.

    Raises:
        ValueError: ``fpath`` is None, is no checkpoint, or holds something else.
        DamagedError: (a ValueError) it does not hold what was written to it.
        FileNotFoundError: there is no such file.
    """
    if fpath is None:
        raise ValueError("File path is None: no checkpoint was named")
    if not os.path.isfile(fpath):
        raise FileNotFoundError(f'No checkpoint at "{fpath}"')
    try:
        checkpoint = _read(fpath)
        if not isinstance(checkpoint, dict):
            raise ValueError(f'"{fpath}" is no checkpoint: it holds a {type(checkpoint).__name__}')
        if os.environ.get(UNSAFE_LOAD) != "1":
            _require_sound(checkpoint, fpath)
    except DamagedError as error:
        raise DamagedError(f"{DAMAGED.format(fpath)} ({error})") from error
    return checkpoint


def _read(fpath: str) -> Any:
    """Return what a file of PyTorch holds; DamagedError where it cannot be read."""
    unsafe = os.environ.get(UNSAFE_LOAD) == "1"
    try:
        with torch.serialization.safe_globals(_dassl_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of pickles that end in an error all the same
            return torch.load(fpath, map_location=_host, weights_only=not unsafe)
    except pickle.UnpicklingError as error:
        unknown = re.findall(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
        if not unknown:
            raise DamagedError("it is no file of plain data") from error
        raise ValueError(
            f'"{fpath}" holds {unknown[0]}, which is no plain data; reading it could run code. '
            f"If you trust the file, set {UNSAFE_LOAD}=1 in the environment."
        ) from error
    except PermissionError:
        raise
    except _UNREADABLE as error:
        raise DamagedError("it cannot be read") from error


def _require_sound(checkpoint: Mapping[str, Any], fpath: str) -> None:
    """Refuse a checkpoint whose digest or checksums are wrong, or with an entry of another type than it should have.

    Raises:
        DamagedError: which of these.
    """
    if isinstance(checkpoint.get(DIGEST), str):
        require_digest(checkpoint)
    elif zipfile.is_zipfile(fpath):
        try:
            with zipfile.ZipFile(fpath) as archive:
                broken = archive.testzip()
        except _UNREADABLE as error:
            raise DamagedError(str(error)) from error
        if broken:
            raise DamagedError(f"the checksum of its part {broken} is wrong")
    if "state_dict" not in checkpoint:
        return
    for key, kind in _TYPES.items():
        if key in checkpoint and (not isinstance(checkpoint[key], kind) or isinstance(checkpoint[key], bool)):
            raise DamagedError(f"its {key} is a {type(checkpoint[key]).__name__}")
    if not 0 <= (checkpoint.get("epoch") or 0) < 10**9:
        raise DamagedError(f"its epoch is {checkpoint['epoch']}")


def require_finite(checkpoint: Mapping[str, Any], model: nn.Module, fpath: str) -> None:
    """Refuse a checkpoint of a run that diverged: with a weight that is no number, or an infinite parameter.

    Buffers of the model may be infinite, as masks are.

    Raises:
        DamagedError: the weight is named.
    """
    buffers = {name for name, _ in model.named_buffers()}
    for name, value in checkpoint.get("state_dict", checkpoint).items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if torch.isnan(value).any() or (name not in buffers and torch.isinf(value).any()):
            raise DamagedError(f'"{fpath}" is of a run that diverged: {name} holds numbers that are not finite')


def _host(storage: Any, location: str) -> Any:
    """Leave what is read where ``torch.load`` reads it, in the memory of the host, whatever device it was on."""
    return storage


def _dassl_globals() -> list[Any]:
    """Return what checkpoints of Dassl hold beside plain data: schedulers with their optimisers, NumPy numbers."""
    from torch import optim
    from torch.optim import lr_scheduler

    optimizers = [optim.Adadelta, optim.Adam, optim.AdamW, optim.RAdam, optim.RMSprop, optim.SGD]
    schedulers = [lr_scheduler.CosineAnnealingLR, lr_scheduler.MultiStepLR, lr_scheduler.StepLR]
    scalar = import_module("numpy._core.multiarray").scalar
    numbers_ = [np.dtype, *(type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?"))]
    scalars = [(scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    return [*optimizers, *schedulers, *numbers_, *scalars, (_plain_dict, "collections.defaultdict"), dict]


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


def _epoch_of(name: str | None) -> float:
    """Return the epoch that a file name says, infinity for another name."""
    match = EPOCH_FILE.fullmatch(name or "")
    return int(match[1]) if match else float("inf")


def checkpoints_from_last(fdir: str) -> list[str]:
    """Return the checkpoints of a folder from which a run can go on: the last written one, then those before it."""
    if not os.path.isfile(os.path.join(fdir, "checkpoint")):
        return []
    pointed = pointed_name(fdir)
    last = [pointed] if pointed and os.path.isfile(os.path.join(fdir, pointed)) else []
    limit = _epoch_of(pointed) if last else float("inf")
    names = sorted(filter(EPOCH_FILE.fullmatch, os.listdir(fdir)), key=_epoch_of, reverse=True)
    return [os.path.join(fdir, name) for name in [*last, *(name for name in names if _epoch_of(name) < limit)]]


def last_checkpoint(fdir: str) -> str | None:
    """Return the path of the checkpoint that was written last to a folder, or None if there is none.

    Where that one was deleted, the last of the others is meant.
    """
    return next(iter(checkpoints_from_last(fdir)), None)


def sound_checkpoints(
    fdir: str, model: nn.Module, paths: Iterable[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and content of the checkpoints of a folder, the last one first; or of these, in their order.

    What is damaged, or of a diverged run, is named in a warning and left out.

    Raises:
        ValueError: a file holds something that is no plain data.
    """
    for path in checkpoints_from_last(fdir) if paths is None else paths:
        try:
            checkpoint = load_checkpoint(path)
            require_finite(checkpoint, model, path)
            if "state_dict" not in checkpoint or checkpoint.get("epoch") is None:
                raise DamagedError(f'"{path}" does not say its weights and its epoch')
        except DamagedError as error:
            logger.warning("%s; going on from the checkpoint before it, or from the start", error)
            continue
        yield path, checkpoint


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
    """Restore from the last sound checkpoint in ``fdir``; return the number of completed epochs."""
    found = next(sound_checkpoints(fdir, model), None)
    if found is None:
        raise FileNotFoundError(f'There is no file "checkpoint" in "{fdir}", or no checkpoint that can be read')
    path, checkpoint = found
    epoch = restore(checkpoint, model, optimizer, scheduler)
    logger.info('Resumed from "%s" (epoch = %d)', path, epoch)
    return epoch


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Load those weights of a file that fit ``model`` in name and size; warn about the others."""
    checkpoint = load_checkpoint(weight_path)
    weights = without_module(checkpoint.get("state_dict", checkpoint))
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


def without_module(weights: Mapping[str, Any]) -> "OrderedDict[str, Any]":
    """Strip the ``module.`` that DataParallel puts before names."""
    return OrderedDict((name.removeprefix("module."), value) for name, value in weights.items())
