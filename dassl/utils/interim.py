"""Interim checkpoints: those that are written between the checkpoints of epochs, and go when training is over.

They lie beside these as ``interim.pth.tar-<completed epochs>.<batches of the next one>`` and are read by a run that
goes on, by nothing else: the weights of an unfinished epoch are no result.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any

from dassl.utils.checkpoints import EPOCH_FILE, checkpoints_from_last, write_checkpoint

INTERIM_FILE = re.compile(r"interim\.pth\.tar-(\d{1,9})\.(\d{1,9})")
KEPT = 2  # the last one may be damaged


def write_interim(content: memoryview, folder: str, epochs: int, batches: int) -> None:
    """Write a serialised checkpoint of so many completed epochs and batches; all but the one before it go."""
    name = f"interim.pth.tar-{epochs}.{batches}"
    write_checkpoint(content, os.path.join(folder, name))
    others = [other for other in _there(folder) if other != name]
    _remove(folder, sorted(others, key=lambda other: os.path.getmtime(os.path.join(folder, other)))[: 1 - KEPT])


def remove_interim(folder: str) -> None:
    """Delete all of them: training is over."""
    _remove(folder, _there(folder))


def resumable_checkpoints(folder: str) -> list[str]:
    """Return the checkpoints from which a run can go on, the one with the most work first.

    That of the best validation result, where it was written last, is taken to have as many epochs as any other.
    """
    regular = checkpoints_from_last(folder)
    most = max(map(_place, regular), default=(0, 0))

    def place(path: str) -> tuple[int, int]:
        return _place(path) if _is_numbered(path) else most

    interim = [os.path.join(folder, name) for name in _there(folder)]
    return sorted([*regular, *interim], key=place, reverse=True)  # stable: among equals the last written one


def place_of(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Return the completed epochs of a checkpoint, and the batches of the next one that are done."""
    interim = checkpoint.get("progress", {}).get("interim") or {}
    return int(checkpoint["epoch"]), int(interim.get("batches", 0))


def _is_numbered(path: str) -> bool:
    name = os.path.basename(path)
    return bool(EPOCH_FILE.fullmatch(name) or INTERIM_FILE.fullmatch(name))


def _place(path: str) -> tuple[int, int]:
    """Return the completed epochs and batches that a file name says."""
    name = os.path.basename(path)
    match = EPOCH_FILE.fullmatch(name) or INTERIM_FILE.fullmatch(name)
    epochs, batches = (*match.groups(), 0)[:2] if match else (0, 0)
    return int(epochs), int(batches)


def _there(folder: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return [name for name in os.listdir(folder) if INTERIM_FILE.fullmatch(name)]
    return []


def _remove(folder: str, names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
