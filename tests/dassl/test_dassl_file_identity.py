"""Files are known by their content: remembered digests are never those of what a file was before."""

import hashlib
import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest

from dassl.utils import file_identity
from dassl.utils.file_identity import content_hash, file_digests


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    """A store of this test's own, which remembers files that were just written."""
    monkeypatch.setenv("FILE_HASHES", str(tmp_path / "store" / "hashes.sqlite"))
    monkeypatch.setattr(file_identity, "SETTLED_SECONDS", -60.0)
    file_identity._warn_once.cache_clear()
    return tmp_path / "store" / "hashes.sqlite"


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The files that are read, as they are."""
    paths: list[str] = []
    usual = file_identity._sha256
    monkeypatch.setattr(file_identity, "_sha256", lambda path: paths.append(path) or usual(path))
    return paths


def made(folder: Path, **contents: str) -> list[str]:
    for name, content in contents.items():
        (folder / name).write_text(content)
    return [str(folder / name) for name in contents]


def sha(*contents: str) -> list[str]:
    return [hashlib.sha256(content.encode()).hexdigest() for content in contents]


def test_each_file_is_read_once_whatever_its_path(tmp_path, read):
    a, b = made(tmp_path, a="one", b="two")
    assert file_digests([b, a, b]) == sha("two", "one", "two")
    assert sorted(read) == [a, b]
    link = tmp_path / "link"
    link.symlink_to(a)
    os.rename(b, tmp_path / "c")
    assert file_digests([a, str(link)]) == sha("one", "one")
    assert len(read) == 2
    assert content_hash([str(link)]) == content_hash([a])
    assert len({content_hash(paths) for paths in ([a], [a, a], [a, str(tmp_path / "c")], [])}) == 4


def test_files_exchanged_with_equal_sizes_and_times_are_known_apart(tmp_path):
    a, b = made(tmp_path, a="one", b="two")
    times = (1_000_000_000, 1_000_000_000)
    for path in (a, b):
        os.utime(path, ns=times)
    assert file_digests([a, b]) == sha("one", "two")
    os.rename(a, tmp_path / "x")
    os.rename(b, a)
    os.rename(tmp_path / "x", b)
    assert file_digests([a, b]) == sha("two", "one")
    made(tmp_path, a="new")  # in place: the same inode, size and mtime
    os.utime(a, ns=times)
    assert file_digests([a, b]) == sha("new", "one")


def test_a_file_that_just_changed_is_not_remembered(tmp_path, monkeypatch, read, store):
    monkeypatch.setattr(file_identity, "SETTLED_SECONDS", 60.0)
    (a,) = made(tmp_path, a="one")
    usual = file_identity.file_status
    status = usual(a)
    monkeypatch.setattr(file_identity, "file_status", lambda _: status)  # a file system with coarse time stamps
    assert file_digests([a]) == sha("one")
    made(tmp_path, a="two")
    assert file_digests([a]) == sha("two")


def test_the_store_is_bounded_and_drops_the_oldest(tmp_path, monkeypatch, read, store):
    monkeypatch.setattr(file_identity, "MAX_REMEMBERED", 3)
    paths = made(tmp_path, a="1", b="2", c="3", d="4", e="5")
    for path in paths:
        file_digests([path])
    with sqlite3.connect(store) as connection:
        assert connection.execute("SELECT count(*) FROM hashes").fetchone() == (3,)
    connection.close()
    read.clear()
    assert file_digests(paths) == sha(*"12345")
    assert sorted(read) == paths[:2]


@pytest.mark.parametrize("damage", ["no folder", "no database", "other table"])
def test_without_a_usable_store_files_are_hashed_each_time(tmp_path, store, damage, caplog, read, heard):
    if damage == "no folder":
        store.parent.write_text("a file")
    else:
        store.parent.mkdir()
        store.write_text("no database, but a file of some length" * 100)
    if damage == "other table":
        store.unlink()
        with sqlite3.connect(store) as connection:
            connection.execute("CREATE TABLE hashes (x)")
        connection.close()
    (a,) = made(tmp_path, a="one")
    assert file_digests([a]) == file_digests([a]) == sha("one")
    assert read == [a, a]
    said = [record.message for record in caplog.records if "not remembered" in record.message]
    assert said
    assert len(said) == len(set(said))  # each reason once


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_digests([str(tmp_path / "nothing")])


def _hash_all(paths: list[str]) -> None:
    for path in paths:
        assert file_digests([path]) == sha(Path(path).name)


def test_several_processes_share_the_store(tmp_path, store, read):
    names = [f"f{number}" for number in range(20)]
    paths = made(tmp_path, **{name: name for name in names})
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_hash_all, args=(paths,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    read.clear()
    assert file_digests(paths) == sha(*names)
    assert read == []
