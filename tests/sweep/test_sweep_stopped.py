"""What a sweep that is stopped leaves behind: nothing on the terminal about its workers."""

import subprocess
import sys


def test_a_worker_that_is_ended_gives_back_its_semaphores(repo_root):
    line = [sys.executable, str(repo_root / "tests/helpers/stopped_worker.py")]
    done = subprocess.run(line, cwd=repo_root, capture_output=True, text=True, env={"PYTHONPATH": str(repo_root)})
    assert done.stderr == ""
    assert done.returncode == 0
