"""Where the engine's lines go: bare messages on standard output, copied to ``log.txt`` from :func:`setup_logger` on.

Progress bars and warnings go to standard error and so never reach the log file.
"""

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
    """

    def __init__(self, fpath: str | None = None) -> None:
        self.console = sys.stdout
        self.file: TextIO | None = None
        if fpath is not None:
            os.makedirs(os.path.dirname(fpath) or ".", exist_ok=True)
            self.file = open(fpath, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 - lives as long as the tee

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["console"], name)

    def write(self, text: str) -> int:
        """Write ``text`` to the console and the file.  Flushed at once: forked workers inherit no pending text."""
        written = self.console.write(printable(text, self.console))
        if self.file is not None:
            self.file.write(printable(text, self.file))
            self.file.flush()
        return written

    def flush(self) -> None:
        """Flush both streams."""
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file.  The console stays open."""
        if self.file is not None:
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


def setup_logger(output: str | None = None) -> None:
    """Copy standard output to a file from now on; a former copy ends.

    Args:
        output: a folder, which gets ``log.txt``, or a file name that ends in ``.txt`` or ``.log``; None changes
            nothing.  If the file exists, the new one has the date and time appended.
    """
    if output is None:
        return
    close_logger()
    output = os.fspath(output)
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    sys.stdout = Logger(_free_name(path))


def close_logger() -> None:
    """End the copy that :func:`setup_logger` began: standard output is the console again."""
    if isinstance(sys.stdout, Logger):
        tee = sys.stdout
        sys.stdout = tee.console
        tee.close()
