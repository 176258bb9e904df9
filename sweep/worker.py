"""A worker process: takes pack after pack of runs, so that starting up is paid for once."""

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
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection

import protocols  # noqa: F401 - declares the directories of runs
from sweep.heartbeat import beat
from sweep.plan import Run, SeedGroup

SAVE = getattr(signal, "SIGUSR1", signal.SIGTERM)  # to a worker: save the runs where they are, and end
STEP_LINE = re.compile(r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\]")


class WorkerError(RuntimeError):
    """Worker processes cannot start."""


def is_sequel(reason: str) -> bool:
    """Whether a run failed because the one that it needs did."""
    return reason.startswith("not tried: ")


@dataclass(frozen=True)
class Message:
    """What a worker tells, or its parent says of it.

    Attributes:
        kind: `ready` (it can take runs), `alive` (`fraction`: seconds of processors used), `progress` (`fraction` of a
            run), `done`, `failed` (for `reason`), `busy` (another process is at the run), `interrupted` (the runs that
            are not over are saved where they are, and the worker ends), `silent` (no sign of life, `reason` says how
            long).
        fraction: see there.
        reason: see there.
        index: of which run of its pack.
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
                end = execute(run)
        tell(replace(end, index=index))

    bodies = [partial(body, index, run) for index, run in enumerate(pack)]
    for error in filter(None, run_together(bodies)):  # one alone too may go on from among several
        raise error


def execute(run: Run) -> Message:
    """Carry out a run in this process; returns how it ended: `done`, `busy` or `failed`.

    Why it failed is also written to its directory. Nothing is written where another process is at the run.
    """
    from dassl.utils.locks import RunBusy, run_lock

    try:
        with run_lock(run.output_dir):
            return _execute_alone(run)
    except RunBusy as error:
        return Message("busy", reason=str(error))
    except OSError as error:  # of the folder itself
        return Message("failed", reason=_first_line(error))


def _execute_alone(run: Run) -> Message:
    """Carry out a run whose directory is held, unless another process has completed it meanwhile."""
    import train
    from dassl.utils.locks import RunBusy
    from sweep.state import AnotherConfiguration, begin, failed, finished

    try:
        if not finished(run):
            begin(run)
            train.run(train.build_parser().parse_args(list(run.argv)))
    except RunBusy:  # it was taken over while this process was stopped
        raise
    except AnotherConfiguration as error:  # in a folder of others nothing is written
        return Message("failed", reason=_first_line(error))
    except Exception as error:  # whatever it is: a sweep goes on with its other runs
        with suppress(OSError):  # the disk of the log may be full
            traceback.print_exc()
        kind = "diverged" if isinstance(error, FloatingPointError) else "failed"
        return Message("failed", reason=failed(run, _first_line(error), kind))
    return Message("done")


def _first_line(error: Exception) -> str:
    """An error in a line; the log has the rest."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def serve(pipe: connection.Connection, log: str, threads: int) -> None:
    """The life of a worker: packs come through the pipe, None ends it; all output goes to the file `log`.

    Asked to save (`SAVE`, or SIGTERM) it saves its runs where they are and ends. Ctrl-C, and a terminal that closes,
    reach the parent too, which decides what they mean.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    _redirect(log)
    from dassl.utils.interruption import Interrupted, deferred, interruptible

    lock = threading.Lock()

    def tell(message: Message) -> None:
        with deferred(), lock:  # half a message would be none
            pipe.send(message)

    beat(lambda used: tell(Message("alive", used)))
    try:
        with interruptible((signal.SIGTERM, SAVE), _end_unless_saving):
            _take_packs(pipe, tell, threads)
    except Interrupted as interrupted:
        tell(Message("interrupted", reason=str(interrupted)))


def _end_unless_saving(number: int) -> None:
    """After a signal to the whole group the parent's own comes, late perhaps; only another SIGTERM means at once."""
    if number != SAVE:
        os._exit(1)


def _take_packs(pipe: connection.Connection, tell: Callable[[Message], None], threads: int) -> None:
    """Carry out pack after pack, as they come."""
    import torch

    import train  # noqa: F401 - what takes seconds, before the first run is timed
    from dassl.utils.processes import end_with_parent

    end_with_parent()
    torch.set_num_threads(threads)
    tell(Message("ready"))
    while (pack := pipe.recv()) is not None:
        with suppress(OSError):
            sys.stdout.write("".join(f"\n--- {run.output_dir}" for run in pack) + "\n")
        execute_pack(pack, tell)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _redirect(log: str) -> None:
    """Send this process' output, that of native code included, to the end of a file, or nowhere if there is no room."""
    try:
        os.makedirs(os.path.dirname(log), exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    sys.stdout.reconfigure(line_buffering=True)
