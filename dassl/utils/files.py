"""Files that are whole: written beside, then renamed; what a killed one has left is removed by the next."""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

logger = logging.getLogger(__name__)

LEFTOVER = re.compile(r"\..*\.(\d+)-([0-9a-f]{8})-[0-9a-f]{32}\.writing")  # process, machine, random number
FOREIGN_SECONDS = 24 * 3600.0  # after which a writer of another machine, or whose number is another's, is dead
LONGEST_NAME = 150  # bytes of a name that are repeated in the one beside; file systems allow 255 in all
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what writing fails with, without naming the file


def beside(path: str | os.PathLike[str]) -> str:
    """Return a new name in the folder of ``path``, for what is renamed to it when it is whole.

    It says which process on which machine writes it, for :func:`remove_leftovers`.
    """
    folder, name = os.path.split(os.path.abspath(path))
    short = os.fsencode(name)[:LONGEST_NAME].decode("utf-8", "ignore")
    return os.path.join(folder, f".{short}.{os.getpid()}-{_machine()}-{uuid.uuid4().hex}.writing")


@functools.cache
def _machine() -> str:
    """Return eight digits for this start of this machine, and for the processes whose numbers are seen here."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            parts.append(file.read().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))  # containers count their processes from 1
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Yield a file that takes the place of ``path`` when the block ends well, and vanishes when it does not.

    A reader sees the old file or the whole new one, never a part.  Missing folders are made.  The first time that a
    process writes into a folder it removes what killed writers have left there.

    Args:
        path: the file to write.
        mode: ``"w"`` for text (UTF-8), ``"wb"`` for bytes.

    Raises:
        OSError: the file cannot be written; names ``path``.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f'atomic_write: mode must be "w" or "wb", got "{mode}"')
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    _clean_once(folder, os.getpid())
    new = beside(path)
    try:
        with open(new, mode, encoding=None if mode == "wb" else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        os.replace(new, path)
        _sync_folder(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(new)
        if isinstance(error, OSError) and (error.filename == new or (not error.filename and error.errno in NO_ROOM)):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def _sync_folder(folder: str) -> None:
    """Let the names in a folder reach the disk, where the system can do that."""
    with contextlib.suppress(OSError):  # file systems of networks and of Windows have no such thing
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@functools.cache
def _clean_once(folder: str, pid: int) -> None:
    remove_leftovers(folder)


def remove_leftovers(folder: str | os.PathLike[str]) -> list[str]:
    """Remove the files and folders that :func:`beside` named in a folder and whose writers are dead; return them.

    A writer on this machine is dead if no process has its number; else what was begun more than ``FOREIGN_SECONDS``
    ago is of a dead one.
    """
    removed = []
    with contextlib.suppress(OSError):  # a folder that cannot be read or changed stays as it is
        for entry in os.scandir(folder):
            match = LEFTOVER.fullmatch(entry.name)
            if match and _is_dead(int(match[1]), match[2], entry):
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
                removed.append(entry.path)
    if removed:
        logger.info("%s: removed %d unfinished files of processes that were killed", folder, len(removed))
    return removed


def _is_dead(pid: int, machine: str, entry: os.DirEntry) -> bool:
    if machine == _machine() and not _runs(pid):
        return True
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > FOREIGN_SECONDS


def _runs(pid: int) -> bool:
    """Say whether a process of this number runs on this machine."""
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def read_json(fpath: str) -> Any:
    """Read a JSON file."""
    with open(fpath, encoding="utf-8") as file:
        return json.load(file)


def write_json(obj: Any, fpath: str) -> None:
    """Write ``obj`` as JSON, whole or not at all; the folder is made if missing."""
    text = json.dumps(obj, indent=4)
    with atomic_write(fpath) as file:
        file.write(f"{text}\n")
