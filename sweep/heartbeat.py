"""Signs of life of a worker, and how long there was none.

A process that is stopped sends nothing. One that waits for a file system that hangs sends beats, but computes nothing:
a beat counts only if the process and those that it started (the workers of its loaders) have used the processor. A step
may be as long as it likes.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

BEAT_SECONDS = 5.0
LEAST_CPU_SECONDS, LEAST_CPU_SHARE = 0.1, 0.001  # threads that only wait use a thirtieth of this share


def beat(tell: Callable[[float], None], every: float = BEAT_SECONDS) -> None:
    """From now on tell, again and again, how many seconds of processors this process and its children have used."""

    def forever() -> None:
        while True:
            time.sleep(every)
            try:
                tell(cpu_seconds())
            except OSError:  # nobody listens any more
                return

    threading.Thread(target=forever, name="beat", daemon=True).start()


def cpu_seconds() -> float:
    """Seconds of processors that this process, without the present thread, and its living children have used."""
    ticks = sum(map(_ticks, _children()))
    return time.process_time() - time.thread_time() + ticks / os.sysconf("SC_CLK_TCK")


def _children() -> list[int]:
    """The processes that any thread of this one has started; none where the system does not say."""
    try:
        return [int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
    except OSError:
        return []


def _ticks(pid: int) -> int:
    """What a process has used; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


class Silence:
    """How long a worker has given no sign of life, by the time in which its parent listened.

    Attributes:
        seconds: that long.
    """

    def __init__(self) -> None:
        self.seconds, self._used = 0.0, 0.0

    def end(self) -> None:
        """It has said something about its work."""
        self.seconds = 0.0

    def heard(self, used: float) -> None:
        """It has told what it has used."""
        least = max(LEAST_CPU_SECONDS, LEAST_CPU_SHARE * self.seconds)
        if used >= self._used + least or used < self._used:  # less: a child has ended
            self.seconds, self._used = 0.0, used

    def lasts(self, seconds: float) -> None:
        """So much more time has passed without a word."""
        self.seconds += seconds
