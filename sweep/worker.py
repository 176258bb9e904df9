"""A worker process: takes run after run, so that starting up is paid for once."""

import gc
import io
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, parent_process

from sweep.plan import Run

STEP_LINE = re.compile(r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\]")


@dataclass(frozen=True)
class Message:
    """What a worker tells: `kind` is `ready`, `progress` (with `fraction`), `done` or `failed` (with `reason`)."""

    kind: str
    fraction: float = 0.0
    reason: str = ""


class StepLines(io.TextIOBase):
    """A stream that copies to another and reports how far the training loop says it is.

    Args:
        target: where the text goes.
        report: called with a fraction between 0 and 1, at most twice a second.
    """

    def __init__(self, target: io.TextIOBase, report: Callable[[float], None]):
        self.target, self.report, self.last = target, report, 0.0

    def write(self, text: str) -> int:
        """Copy, and report if there is something to report."""
        match = STEP_LINE.search(text)
        if match and time.monotonic() - self.last > 0.5:
            epoch, epochs, batch, batches = map(int, match.groups())
            self.last = time.monotonic()
            self.report((epoch - 1 + batch / batches) / epochs)
        return self.target.write(text)

    def flush(self) -> None:
        """Flush the target."""
        self.target.flush()


def execute(run: Run) -> str:
    """Carry out a run in this process; returns "" or why it failed, which is then also written to its directory."""
    import train
    from sweep.state import failed, started

    reason = ""
    try:
        with started(run):
            train.run(train.build_parser().parse_args(list(run.argv)))
    except Exception as error:  # whatever it is: a sweep goes on with its other runs
        traceback.print_exc()
        first_line = (str(error).strip() or "no message").splitlines()[0]  # the log has the rest
        reason = f"{type(error).__name__}: {first_line}"
        failed(run, reason)
    return reason


def serve(pipe: connection.Connection, log: str, threads: int) -> None:
    """The life of a worker: runs come through the pipe, None ends it; all output goes to the file `log`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _redirect(log)
    import torch

    torch.set_num_threads(threads)
    sys.stdout = StepLines(sys.stdout, lambda fraction: pipe.send(Message("progress", fraction)))
    import train  # noqa: F401 - what takes seconds, before the first run is timed

    pipe.send(Message("ready"))
    while (run := pipe.recv()) is not None:
        sys.stdout.write(f"\n--- {run.output_dir}\n")
        reason = execute(run)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        pipe.send(Message("failed", reason=reason) if reason else Message("done"))


def _redirect(log: str) -> None:
    """Send this process' output, that of native code included, to the end of a file."""
    os.makedirs(os.path.dirname(log), exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    sys.stdout.reconfigure(line_buffering=True)


def _die_with_parent() -> None:
    """End this process when the parent is gone, however it went: nobody would hear of what it does."""
    connection.wait([parent_process().sentinel])
    os._exit(1)
