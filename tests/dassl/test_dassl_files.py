"""Writers that are killed, disks that are full, processes whose parent is gone."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from dassl.utils import atomic_write, write_json
from dassl.utils.files import FOREIGN_SECONDS, LEFTOVER, beside, remove_leftovers

DEADLINE = 60.0  # seconds until a process has to be gone; it takes two

KILLED = """
import os, signal, sys
from dassl.utils import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write("half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _run(code: str, *words: str, **options) -> subprocess.Popen:
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=root, **options)


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    target = tmp_path / "metrics.json"
    target.write_text("{}")
    assert _run(KILLED, str(target)).wait() == -signal.SIGKILL
    (left,) = tmp_path.glob(".*")
    assert left.read_text() == "half"
    assert LEFTOVER.fullmatch(left.name)
    write_json({"a": 1}, str(tmp_path / "other.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "other.json"]
    assert target.read_text() == "{}"


def _aged(path: Path, seconds: float) -> Path:
    os.utime(path, times=(time.time() - seconds,) * 2)
    return path


def test_only_what_is_of_the_dead_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = Path(beside(tmp_path / "mine"))
    of_the_dead = mine.with_name(mine.name.replace(f".{os.getpid()}-", f".{ended.pid}-"))
    machine = LEFTOVER.fullmatch(mine.name)[2]
    elsewhere = Path(str(of_the_dead).replace(f"-{machine}-", "-01234567-"))
    old = elsewhere.with_name(f".old{elsewhere.name}")
    hidden = tmp_path / ".cache.d41d8cd98f00b204e9800998ecf8427e"
    for path in (mine, of_the_dead, elsewhere, old, hidden):
        path.write_text("")
    _aged(old, FOREIGN_SECONDS + 60)
    _aged(hidden, FOREIGN_SECONDS + 60)
    folder = of_the_dead.with_name(f".folder{of_the_dead.name}")
    (folder / "inside").mkdir(parents=True)
    assert sorted(remove_leftovers(tmp_path)) == sorted(map(str, (of_the_dead, old, folder)))
    assert sorted(tmp_path.iterdir()) == sorted((mine, elsewhere, hidden))


def test_long_names_leave_room_for_the_name_beside(tmp_path):
    for name in ("a" * 250, "\u00e9" * 125):
        write_json({}, str(tmp_path / name))
        assert (tmp_path / name).is_file()


@contextmanager
def _largest_file(size: int):
    """Writing beyond `size` bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / "large.json"
    path.write_text("before")
    with _largest_file(10_000), pytest.raises(OSError, match=r"large\.json") as caught:
        write_json(["x"] * 10_000, str(path))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("large.json", "before")]


def test_a_folder_without_room_for_names_is_named(tmp_path, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(tmp_path / "a.json"):
        pass
    assert caught.value.filename == str(tmp_path / "a.json")


def test_errors_of_the_block_stay_as_they_are(tmp_path):
    other = OSError(errno.ENOENT, "gone", "other")
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.json"):
        raise other
    assert caught.value is other


LOADING = """
import os, sys, time
from dassl.config import get_cfg_default
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from PIL import Image

folder = sys.argv[1]
Image.new("RGB", (8, 8)).save(f"{folder}/a.png")

def slow(image):
    open(f"{folder}/worker-{os.getpid()}", "w").close()
    time.sleep(600)

cfg = get_cfg_default()
cfg.DATALOADER.NUM_WORKERS = 2
source = [Datum(f"{folder}/a.png", label=0, classname="a")] * 8
for batch in build_data_loader(cfg, data_source=source, batch_size=2, tfm=slow, is_train=False):
    pass
"""


def _await(condition, what: str):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def _session(leader: int) -> list[int]:
    """Processes of a session that still run; zombies do not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_process_leaves_no_worker_and_no_shared_memory(tmp_path):
    """Workers that are amid a slow image do not ask whether their parent lives."""
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    parent = _run(LOADING, str(tmp_path), start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        _await(lambda: len(list(tmp_path.glob("worker-*"))) == 2 or parent.poll() is not None, "no workers")
        assert len(_session(parent.pid)) >= 3
        parent.kill()
        parent.wait()
        _await(lambda: not _session(parent.pid), "a process outlives its parent")
    finally:
        for pid in _session(parent.pid):
            os.kill(pid, signal.SIGKILL)
    if shared:
        new = set(os.listdir("/dev/shm")) - shared
        assert not {name for name in new if str(parent.pid) in name}
