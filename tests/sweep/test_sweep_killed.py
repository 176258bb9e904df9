"""A sweep that is killed twice on its way and continued by the same line ends as one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dassl.utils.interruption import CONTINUE
from results.records import read_metrics

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 900.0  # seconds


def sweep_line(data: Path, output: Path, *more: str) -> list[str]:
    """Base-to-new with three methods and three seeds, over two workers."""
    words = ["base2new", "--trainers", "ZeroshotCLIP", "CoOp", "APEX", "--datasets", "drawn_thermal", "--seeds", "1-3"]
    places = ["--root", str(data), "--output", str(output)]
    return [sys.executable, "-m", "sweep", *words, "--shots", "4", "--jobs", "2", *places, *more]


def results(output: Path) -> dict[str, dict]:
    """What the finished runs below a folder say, by their directories."""
    return {str(path.parent.relative_to(output)): read_metrics(path) for path in sorted(output.rglob("metrics.json"))}


def interrupted(line: list[str], output: Path, after: int, number: int) -> int:
    """Start a sweep and signal all its processes when more than `after` runs are complete; returns the exit status."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # a shell that starts the tests in the background has them and what they start ignore interrupts
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    sweep = subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True, **silent)
    signal.signal(signal.SIGINT, heeded)
    deadline = time.monotonic() + DEADLINE
    while len(list(output.rglob("metrics.json"))) <= after:
        assert sweep.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(sweep.pid, number)
    return sweep.wait(timeout=60)


def to_the_end(line: list[str]) -> str:
    """What a sweep that is left alone prints; without the lines that name its folder."""
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("Each row again")[0]


def killed_twice(line: list[str], output: Path) -> str:
    """The table of a sweep that is killed (no process of it can do anything), then stopped by Ctrl-C, then finished."""
    assert interrupted(line, output, 2, signal.SIGKILL) == -signal.SIGKILL
    before = len(results(output))
    assert interrupted(line, output, before + 2, signal.SIGINT) == CONTINUE
    assert len(results(output)) < 14
    table = to_the_end(line)
    assert not list(output.rglob("failed.json"))
    return table


def test_killed_twice(tmp_path):
    short = ["OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_FREQ", "1"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    expected = to_the_end(sweep_line(tmp_path / "data", alone, *short))
    table = killed_twice(sweep_line(tmp_path / "data", killed, *short), killed)
    assert table == expected
    mine, other = results(killed), results(alone)
    assert mine.keys() == other.keys()
    assert len(mine) == 14
    for name, metrics in mine.items():
        for key in ("accuracy", "macro_f1", "per_class", "history", "config_hash", "split_hash"):
            assert metrics[key] == other[name][key], (name, key)
