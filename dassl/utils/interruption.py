"""Ending a process that is asked to: by Ctrl-C, ``kill``, a scheduler or a terminal that closes.

The first signal raises :class:`Interrupted` where the process is, or, inside what must not be cut short, is kept until
that looks (:func:`raise_if_asked`). A second signal ends the process at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

CONTINUE = 75  # exit status: ended by a signal, the same command line goes on; EX_TEMPFAIL of sysexits.h
SIGNALS = tuple(number for name in ("SIGTERM", "SIGINT", "SIGHUP") if (number := getattr(signal, name, None)))
TOGETHER_SECONDS = 0.2  # signals that follow so closely are one: to a process and to its group


class Interrupted(BaseException):
    """The process was asked to end. Like ``KeyboardInterrupt`` no ``Exception``, which code may take for a failure.

    Attributes:
        number: of the signal.
        saved: up to where the work is saved, as a part of a sentence; "" if nothing was saved on this occasion.
    """

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(number, saved)
        self.number, self.saved = number, saved

    def __str__(self) -> str:
        where = self.saved or "what was saved before"
        return f"ended by {signal.Signals(self.number).name}; the same command line goes on from {where}"


_asked: list[tuple[int, float]] = []  # the first signal, with the time at which it came
_deferred: ContextVar[bool] = ContextVar("signals are kept until somebody looks", default=False)


def asked() -> int:
    """Return the number of the signal that asked this process to end; 0 if none has."""
    return _asked[0][0] if _asked else 0


def raise_if_asked() -> None:
    """Raise Interrupted if the process was asked to end."""
    if _asked:
        raise Interrupted(asked())


def defer(on: bool) -> None:
    """Keep signals from now on until somebody looks, or no longer; for the run that says so, not for others."""
    _deferred.set(on)


@contextmanager
def deferred() -> Iterator[None]:
    """Keep signals inside until somebody looks."""
    outer = _deferred.set(True)
    try:
        yield
    finally:
        _deferred.reset(outer)


@contextmanager
def interruptible(
    numbers: Sequence[int] = SIGNALS,
    end: Callable[[int], None] | None = None,
    note: Callable[[int], None] | None = None,
) -> Iterator[None]:
    """Inside, these signals ask the process to end, once; in another thread than the main one nothing changes.

    Args:
        numbers: of the signals. What the process was started to ignore, as under ``nohup``, it goes on to ignore.
        end: what a second signal does; by default it ends the process as if it were not handled.
        note: told of what comes together with the first signal; by default that is passed over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, end = os.getpid(), end or _end_at_once

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            return  # a worker of a loader: its parent decides
        if _asked and time.monotonic() - _asked[0][1] > TOGETHER_SECONDS:
            end(number)
        elif _asked and note:
            note(number)
        elif not _asked:
            _asked.append((number, time.monotonic()))
            if not _deferred.get():
                raise Interrupted(number)

    _asked.clear()
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
        _asked.clear()


def _end_at_once(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def leave_signals_to_parent() -> None:
    """Let a worker process of a loader ignore what asks the whole group to end: its parent ends it."""
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_heed_parent, args=(os.getppid(),), daemon=True).start()


def _heed_parent(parent: int) -> None:
    """End this process when its parent, and nobody else, sends SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
