"""A worker process that needs no heavy import: what it does with a run is said by the run's arguments."""

import multiprocessing
import os
import signal
import time
import warnings
from pathlib import Path

import pytest

from sweep import pool
from sweep.heartbeat import beat
from sweep.worker import SAVE, Message

BEAT = 0.1


def fork_workers(monkeypatch) -> None:
    """Let pools fork their workers, which then need not import what is imported already; skips where that is not to be
    had."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("processes are forked")
    warnings.filterwarnings("ignore", message=".*use of fork.* may lead to deadlocks", category=DeprecationWarning)
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda method: context)


class Saved(BaseException):
    """The parent has asked this worker to save."""


def _save(number, frame) -> None:
    raise Saved


def live(pipe, log: str, threads: int) -> None:
    """Take runs; each leaves a line `worker run` in the file that its second argument names."""
    signal.signal(SAVE, _save)
    try:
        _live(pipe, log)
    except Saved:
        pipe.send(Message("interrupted", reason="saved"))


def _live(pipe, log: str) -> None:
    beat(lambda used: pipe.send(Message("alive", used)), BEAT)
    pipe.send(Message("ready"))
    while (pack := pipe.recv()) is not None:
        for index, run in enumerate(pack):
            deed, journal = run.argv
            with Path(journal).open("a") as file:
                file.write(f"{Path(log).stem} {os.environ['CUDA_VISIBLE_DEVICES'] or '-'} {run.output_dir}\n")
            pipe.send(Message("progress", 0.5, index=index))
            if deed == "interrupted" and not Path(f"{run.output_dir}.once").exists():
                Path(f"{run.output_dir}.once").touch()
                raise Saved
            if deed == "die":
                os._exit(7)
            if deed == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if deed == "hang":
                time.sleep(600)
            if deed == "compute":
                end = time.monotonic() + 6.0
                while time.monotonic() < end:
                    pass
            time.sleep(0.2 if deed == "slow" else 0)
            if deed == "busy" and not Path(f"{run.output_dir}.free").exists():
                pipe.send(Message("busy", reason="another process", index=index))
                continue
            failure = Message("failed", reason="ValueError: no", index=index)
            pipe.send(failure if deed == "fail" else Message("done", index=index))


def die_at_birth(pipe, log: str, threads: int) -> None:
    """End before the first run."""
    os._exit(3)
