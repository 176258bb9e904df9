"""Runs on a disk that is full at some stage, or with next to no shared memory, say so and go on when there is room."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def in_own_mounts(*words: str) -> subprocess.CompletedProcess:
    line = ["unshare", "--mount", *words]
    return subprocess.run(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def _may_mount(tmp_path):
    if not shutil.which("unshare") or in_own_mounts("mount", "-t", "tmpfs", "tmpfs", str(tmp_path)).returncode:
        pytest.skip("this process may not mount a tmpfs of its own")


@pytest.mark.parametrize(("more", "short", "long"), [(["--shm"], 1, 1), ([], 4, 60)])
def test_full_disks(tmp_path, request, more, short, long):
    trials = long if request.config.getoption("--long") else short
    line = [sys.executable, str(ROOT / "tests/helpers/full_disks.py"), "--folder", str(tmp_path / "runs"), *more]
    done = in_own_mounts(*line, "--trials", str(trials))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{trials} of {trials} runs said what was short and went on exactly" in done.stdout
