"""The lock of an output folder: who holds it, and when a holder is dead."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from dassl.utils import locks
from dassl.utils.locks import LOCK, Holder, RunBusy, require_held, run_lock

HOLD = """
import sys, time
from dassl.utils.locks import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path / "run"."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def _holder_of_another_machine(folder, **changes):
    folder.mkdir(exist_ok=True)
    fields = {"host": "node7", "pid": 12, "since": "2020-01-01 10:00:00", "boot": "b", "token": "t"} | changes
    (folder / LOCK).write_text(json.dumps(fields))
    return folder / LOCK


def _age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path, other):
    with pytest.raises(RunBusy, match=rf"run is in use by process {other.pid} on \S+ since \d{{4}}-") as caught, \
            run_lock(tmp_path / "run"):  # fmt: skip
        pytest.fail("it was held")
    assert caught.value.holder.pid == other.pid
    other.kill()
    other.wait()
    assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == other.pid, "it could not say that it ended"
    with run_lock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert (tmp_path / "run" / LOCK).read_text() == ""


def test_looking_does_not_end_the_lock_of_this_process(tmp_path):
    code = HOLD.replace("time.sleep(600)", "pass")
    with run_lock(tmp_path):
        with run_lock(str(tmp_path) + "/."):
            require_held(tmp_path)
        found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert re.search(rf"RunBusy: .* process {os.getpid()} on", found.stderr)
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True).returncode == 0


def test_two_runs_of_one_process_do_not_share_a_folder(tmp_path):
    problems = []

    def second():
        try:
            with run_lock(tmp_path):
                problems.append("held twice")
        except RunBusy as error:
            problems.append(str(error))

    with run_lock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert re.search(rf"in use by process {os.getpid()}\b", problems[0])


def test_a_dead_holder_on_another_machine_does_not_hold_for_ever(tmp_path):
    path = _holder_of_another_machine(tmp_path / "run")
    _age(path, locks.STALE_SECONDS + 1)
    with run_lock(tmp_path / "run"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_holder_on_another_machine_is_observed(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "STALE_SECONDS", 2.0)
    path = _holder_of_another_machine(tmp_path / "run")
    start = time.monotonic()
    with run_lock(tmp_path / "run"):
        assert time.monotonic() - start > 1.5, "it might have lived"
    _holder_of_another_machine(tmp_path / "run")
    monkeypatch.setattr(locks, "STALE_SECONDS", 60.0)
    touch = threading.Timer(0.5, _age, (path, 0.1))
    touch.start()
    with pytest.raises(RunBusy, match="process 12 on node7 since 2020-01-01 10:00:00"), run_lock(tmp_path / "run"):
        pytest.fail("it lives")
    touch.join()


def test_without_locks_of_the_kernel_the_touches_decide(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", none)
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(locks, "STALE_SECONDS", 1.0)
    path = _holder_of_another_machine(tmp_path / "run", boot=Holder().boot, pid=os.getpid())
    _age(path, 100)
    with run_lock(tmp_path / "run"):
        require_held(tmp_path / "run")
        _holder_of_another_machine(tmp_path / "run")
        with pytest.raises(RunBusy):
            require_held(tmp_path / "run")


def test_a_folder_that_was_taken_over_is_written_no_more(tmp_path):
    with run_lock(tmp_path):
        _holder_of_another_machine(tmp_path)
        with pytest.raises(RunBusy, match="taken over, while this process did not run, by process 12 on node7"):
            require_held(tmp_path)
    assert "node7" in (tmp_path / LOCK).read_text(), "the lock of the other is left alone"


def test_what_is_held_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "_beating", [])
    with run_lock(tmp_path):
        _age(tmp_path / LOCK, 1000)
        end = time.monotonic() + 20
        while time.time() - (tmp_path / LOCK).stat().st_mtime > 100 and time.monotonic() < end:
            time.sleep(0.02)
        assert time.time() - (tmp_path / LOCK).stat().st_mtime < 100


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), run_lock(tmp_path / "file"):
        pytest.fail("it is no folder")
