"""One process at a time in the output folder of a run, on one machine and on file systems that several share.

The holder has the kernel's lock (POSIX, ``fcntl``) on the file ``.lock`` of the folder, has written into it who it is,
and touches it every ``BEAT_SECONDS``.  The kernel's lock ends with its process, however that ends.  Where it was taken
by another machine, or before a reboot, or where the file system knows no locks, the touches decide: a holder that has
not touched the file for ``STALE_SECONDS`` is dead.  Times are those of the file system, so clocks need not agree.
"""

import contextlib
import errno
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # on Windows, where the touches alone decide

logger = logging.getLogger(__name__)

LOCK = ".lock"
BEAT_SECONDS = 15.0
STALE_SECONDS = 120.0  # NFS clients show times that are up to a minute old
SETTLE_SECONDS = 1.0  # where there are no locks: between writing who holds it and looking whether that stayed
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def _boot() -> str:
    """Return what is another one for each start of each machine; "" where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


@dataclass(frozen=True)
class Holder:
    """Who holds a folder.

    Attributes:
        host: name of the machine.
        pid: number of the process.
        since: date and time by the clock of that machine.
        boot: identity of the machine's start, "" if unknown.
        token: unlike that of any other holder.
    """

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    boot: str = field(default_factory=_boot)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class RunBusy(OSError):
    """Another process is at work in the output folder of a run.

    Attributes:
        holder: who it is; None if that cannot be read.
    """

    def __init__(self, folder: str, holder: Holder | None, what: str = "is in use by") -> None:
        super().__init__(
            f"{folder} {what} {holder or 'another process'}: wait until that one has ended, or choose another folder"
        )
        self.holder = holder


@dataclass(frozen=True)
class _Held:
    """A folder that this process holds, by the open file of its lock, which is never opened twice: closing one of two
    descriptors ends the kernel's lock."""

    holder: Holder
    descriptor: int


_held: dict[str, _Held] = {}  # by real path
_beating: list[threading.Thread] = []  # the thread that touches, once there is one
_own: ContextVar[tuple[str, ...]] = ContextVar("folders that this run holds", default=())


@contextmanager
def run_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder, which is made if missing, against other processes and other runs of this process.

    Who holds it may take it again inside. A holder on another machine is observed for up to ``STALE_SECONDS`` before it
    counts as dead.

    Raises:
        RunBusy: another run holds it; the sentence names host, process and since when.
        OSError: the folder or the file in it cannot be written.
    """
    folder = os.fspath(folder) or "."
    os.makedirs(folder, exist_ok=True)
    key = os.path.realpath(folder)
    if key in _own.get():
        yield
        return
    if (other := _of_this_process(key)) is not None:
        raise RunBusy(folder, other.holder)
    descriptor = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _held[key] = _Held(_take(descriptor, folder), descriptor)
        outer = _own.set((*_own.get(), key))
        _start_beating()
        try:
            yield
        finally:
            _own.reset(outer)
            _release(_held.pop(key))
    finally:
        os.close(descriptor)


def require_held(folder: str | os.PathLike[str]) -> None:
    """Refuse to write into a folder that was taken from this process, while it did not run for long.

    Raises:
        RunBusy: another process has it now.
    """
    folder = os.fspath(folder) or "."
    own = _of_this_process(os.path.realpath(folder))
    now = own and _read(own.descriptor)
    if own and now and now != own.holder:
        raise RunBusy(folder, now, "was taken over, while this process did not run, by")


def _of_this_process(key: str) -> _Held | None:
    """Return what this process holds; what a parent held when it forked is not held."""
    own = _held.get(key)
    return own if own and own.holder.pid == os.getpid() else None


def _take(descriptor: int, folder: str) -> Holder:
    """Become the holder: by the kernel's lock, and by what the file says."""
    locked = _kernel_lock(descriptor)
    there, own = _read(descriptor), Holder()
    if locked is False:
        raise RunBusy(folder, there)
    if there and not (locked and there.boot == own.boot) and not _dead(descriptor, folder, there):
        raise RunBusy(folder, there)
    _write(descriptor, os.path.join(folder, LOCK), json.dumps(asdict(own)).encode())
    if locked is None:
        time.sleep(SETTLE_SECONDS)
        if (there := _read(descriptor)) != own:
            raise RunBusy(folder, there)
    return own


def _kernel_lock(descriptor: int) -> bool | None:
    """Take the kernel's lock; return whether it was free, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (PermissionError, BlockingIOError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _dead(descriptor: int, folder: str, holder: Holder) -> bool:
    """Say whether a holder has not touched its file for long; observes it until that is certain."""
    first = os.fstat(descriptor).st_mtime
    left = STALE_SECONDS - (_time_in(folder) - first)
    if left > 0:
        logger.info("%s: looking for up to %.0f s whether %s still lives", folder, left, holder)
    end = time.monotonic() + left
    while (remaining := end - time.monotonic()) > 0:
        time.sleep(min(1.0, remaining))
        now = _read(descriptor)
        if now is None:
            return True  # it has ended
        if now != holder or os.fstat(descriptor).st_mtime != first:
            return False
    return True


def _time_in(folder: str) -> float:
    """Return the time by the clock of a folder's file system."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime
    return time.time()


def _read(descriptor: int) -> Holder | None:
    """Return the holder that an open lock file names; None if it names none."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(**{name: content[name] for name in ("host", "pid", "since", "boot", "token")})
    except (ValueError, KeyError, TypeError):
        return None


def _write(descriptor: int, path: str, content: bytes) -> None:
    """Replace the content of an open file."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _release(own: _Held) -> None:
    """Say that nobody holds the folder, unless somebody has taken it over."""
    if own.holder.pid == os.getpid() and _read(own.descriptor) == own.holder:
        with contextlib.suppress(OSError):
            os.ftruncate(own.descriptor, 0)


def _start_beating() -> None:
    """Have a thread touch what this process holds, from the first lock on."""
    if not _beating or not _beating[0].is_alive():  # a forked process has none
        _beating[:] = [threading.Thread(target=_beat, name="locks", daemon=True)]
        _beating[0].start()


def _beat() -> None:
    """Touch what this process holds, again and again."""
    while True:
        time.sleep(BEAT_SECONDS)
        for own in list(_held.values()):
            with contextlib.suppress(OSError):  # as when it is being closed
                if _read(own.descriptor) == own.holder:
                    os.utime(own.descriptor)
