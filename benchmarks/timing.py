"""Clocks, peaks of memory, and alternating runs."""

import ctypes
import gc
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch

from dassl.engine.record import commit, versions
from dassl.utils import available_cpus
from dassl.utils.torchtools import device_name, processor_name

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds: on a CPU processor time, so that other programs count little; on a GPU wall time, its queue emptied."""
    if device.type == "cpu":
        return time.process_time

    def wall() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return wall


def alternate(
    candidates: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; they take turns, on a GPU after a round that is not counted."""
    now, seconds = clock(device), {name: [] for name in candidates}
    if device.type != "cpu":
        for run in candidates.values():
            run()
    for _ in range(rounds):
        for name, run in candidates.items():
            start = now()
            run()
            seconds[name].append(now() - start)
    return seconds


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """The most bytes that the process (its part of the GPU) had while `run` ran, beyond those that it had before; None
    where the system does not say."""
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if not RESET.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, else the run would take it unnoticed
    RESET.write_text("5")  # the peak is counted anew
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at the peak (VmHWM)."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", STATUS.read_text())[1])


def machine(device: torch.device) -> dict[str, object]:
    """What the numbers were measured on and with."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device_name(device),
        "processor": processor_name(),
        "cores": available_cpus(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        "versions": versions(),
    }


def seconds_of(command: list[str]) -> float:
    """Wall time of a command.

    Raises:
        CalledProcessError: it failed.
    """
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def first_line(command: list[str], pattern: str) -> float:
    """Seconds until a command writes a line that matches; the command is then ended.

    Raises:
        RuntimeError: it ended without such a line.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if re.search(pattern, line):
                seconds = time.perf_counter() - start
                process.terminate()
                return seconds
    raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode} and no line {pattern!r}")
