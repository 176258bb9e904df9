"""A worker process: takes pack after pack of runs, so that starting up is paid for once."""

import gc
import io
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection

import protocols  # noqa: F401 - declares the directories of runs
from sweep.plan import Run, SeedGroup

STEP_LINE = re.compile(r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\]")


class WorkerError(RuntimeError):
    """Worker processes cannot start."""


def is_sequel(reason: str) -> bool:
    """Whether a run failed because the one that it needs did."""
    return reason.startswith("not tried: ")


@dataclass(frozen=True)
class Message:
    """What a worker tells: `kind` is `ready`, `progress` (with `fraction`), `done` or `failed` (with `reason`).

    `index` says of which run of its pack.
    """

    kind: str
    fraction: float = 0.0
    reason: str = ""
    index: int = 0


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


def execute_pack(pack: SeedGroup, tell: Callable[[Message], None]) -> None:
    """Carry out runs in this process, the steps of several computed together; tells how far each is, and its end.

    The screen shows the first of them.
    """
    from adaptation.stacking import run_together

    def body(index: int, run: Run) -> None:
        def report(fraction: float) -> None:
            tell(Message("progress", fraction, index=index))

        with open(os.devnull, "w", encoding="utf-8") as silence:
            sink = StepLines(silence if index else sys.stdout, report)
            with redirect_stdout(sink):
                reason = execute(run)
        tell(Message("failed", reason=reason, index=index) if reason else Message("done", index=index))

    bodies = [partial(body, index, run) for index, run in enumerate(pack)]
    results = run_together(bodies) if len(bodies) > 1 else [bodies[0]()]
    for error in filter(None, results):
        raise error


def execute(run: Run) -> str:
    """Carry out a run in this process; returns "" or why it failed, which is then also written to its directory.

    Nothing is written where another process is at the run.
    """
    import train
    from sweep.state import Busy, failed, started

    reason = ""
    try:
        with started(run):
            train.run(train.build_parser().parse_args(list(run.argv)))
    except Busy as error:
        reason = str(error)
    except Exception as error:  # whatever it is: a sweep goes on with its other runs
        traceback.print_exc()
        first_line = (str(error).strip() or "no message").splitlines()[0]  # the log has the rest
        reason = f"{type(error).__name__}: {first_line}"
        failed(run, reason)
    return reason


def serve(pipe: connection.Connection, log: str, threads: int) -> None:
    """The life of a worker: packs come through the pipe, None ends it; all output goes to the file `log`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _redirect(log)
    import torch

    from dassl.utils.processes import end_with_parent

    end_with_parent()

    torch.set_num_threads(threads)
    import train  # noqa: F401 - what takes seconds, before the first run is timed

    pipe.send(Message("ready"))
    while (pack := pipe.recv()) is not None:
        sys.stdout.write("".join(f"\n--- {run.output_dir}" for run in pack) + "\n")
        execute_pack(pack, pipe.send)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _redirect(log: str) -> None:
    """Send this process' output, that of native code included, to the end of a file."""
    os.makedirs(os.path.dirname(log), exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    sys.stdout.reconfigure(line_buffering=True)
