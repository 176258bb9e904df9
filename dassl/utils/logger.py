"""Where the engine's lines go: bare messages on standard output, copied to ``log.txt`` from :func:`setup_logger` on.

Progress bars and warnings go to standard error and so never reach the log file.
"""

import contextlib
import os
import sys
import time
from types import TracebackType
from typing import TextIO

from dassl.output import StdoutHandler, log_to_stdout, printable

__all__ = ["Logger", "StdoutHandler", "close_logger", "log_to_stdout", "printable", "setup_logger"]


class Logger:
    """A tee: text written here goes to the console and to the file ``fpath``.

    Whatever else is asked of a stream (``isatty``, ``fileno``, ``encoding``) is answered by the console, which is never
    closed.

    Args:
        fpath: the file; None for no copy.
        deferred: keep the copy in memory until :meth:`open`: what ends before then leaves no file and no folder.
    """

    def __init__(self, fpath: str | None = None, deferred: bool = False) -> None:
        self.console = sys.stdout
        self.fpath = fpath
        self.deferred = deferred
        self.file: TextIO | None = None
        self.pending: list[str] = []
        if not deferred:
            self.open()

    def open(self) -> None:
        """Make the file, and its folder, with what was kept for it; a second call does nothing."""
        if self.fpath is None or self.file is not None:
            return
        path = _free_name(self.fpath) if self.deferred else self.fpath  # another run may have begun since then
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self.file = open(path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 - lives as long as the tee
        pending, self.pending = self.pending, []
        self.write_file("".join(pending))

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["console"], name)

    def write(self, text: str) -> int:
        """Write ``text`` to the console and the file.  Flushed at once: forked workers inherit no pending text."""
        written = self.console.write(printable(text, self.console))
        self.write_file(text)
        return written

    def write_file(self, text: str) -> None:
        """Write ``text`` to the file alone."""
        if self.file is not None:
            try:
                self.file.write(printable(text, self.file))
                self.file.flush()
            except OSError as error:
                self._give_up(error)
        elif self.fpath is not None:
            self.pending.append(text)

    def _give_up(self, error: OSError) -> None:
        """Go on without the file, as on a full disk: what is trained is worth more than its log."""
        assert self.file is not None
        sys.stderr.write(f"{self.file.name} ends here, for it cannot be written: {error.strerror}\n")
        file, self.file, self.fpath = self.file, None, None
        with contextlib.suppress(OSError):
            file.close()

    def flush(self) -> None:
        """Flush both streams."""
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file.  The console stays open."""
        self.fpath = None
        if self.file is not None:
            with contextlib.suppress(OSError):  # its text was flushed, or that was said
                self.file.close()
            self.file = None


def _free_name(path: str) -> str:
    """``path`` if it does not exist yet, else ``path-<date and time>``, which keeps the log of the earlier run."""
    if not os.path.exists(path):
        return path
    stamped = f"{path}-{time.strftime('%Y-%m-%d-%H-%M-%S')}"
    candidate, number = stamped, 1
    while os.path.exists(candidate):
        candidate, number = f"{stamped}-{number}", number + 1
    return candidate


def setup_logger(output: str | None = None, deferred: bool = False) -> None:
    """Copy standard output to a file from now on; a former copy ends.

    Args:
        output: a folder, which gets ``log.txt``, or a file name that ends in ``.txt`` or ``.log``; None changes
            nothing.  If the file exists, the new one has the date and time appended.
        deferred: the file is made by :func:`open_log` and not before, with what was written until then.
    """
    if output is None:
        return
    close_logger()
    output = os.fspath(output)
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    sys.stdout = Logger(path if deferred else _free_name(path), deferred)


def open_log() -> None:
    """Make the file of a copy that :func:`setup_logger` has deferred."""
    if isinstance(sys.stdout, Logger):
        sys.stdout.open()


def to_log_file(text: str) -> None:
    """Write a line to the log file and not to the console; nothing without a log file."""
    if isinstance(sys.stdout, Logger):
        sys.stdout.write_file(f"{text}\n")


def close_logger() -> None:
    """End the copy that :func:`setup_logger` began: standard output is the console again."""
    if isinstance(sys.stdout, Logger):
        tee = sys.stdout
        sys.stdout = tee.console
        tee.close()
