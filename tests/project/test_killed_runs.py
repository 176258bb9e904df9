"""Runs of all trainers that are ended at seeded instants and continued by the same line end as if left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRIALS = {"SIGKILL": (16, 300), "SIGTERM": (4, 30), "SIGINT": (1, 10), "SIGHUP": (1, 10)}  # in CI, with --long


@pytest.mark.parametrize("name", TRIALS)
def test_ended_runs_go_on_exactly(name, tmp_path, request):
    """The command that is printed shows a failure again; `--first` begins at one trial."""
    trials = TRIALS[name][request.config.getoption("--long")]
    line = [sys.executable, str(ROOT / "tests/helpers/killed_runs.py"), "--folder", str(tmp_path / "runs")]
    line += ["--trials", str(trials), "--seed", "1", "--signal", name]
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{trials} of {trials} runs ended as if left alone" in done.stdout
