"""What a file is: a hash of its content, computed once and remembered.

Caches, records and sweeps identify images by content, because path, size and time can stay the same when a picture is
replaced.  The digests are remembered by device, inode, size, mtime and ctime (which programs cannot set) in an SQLite
file: ``$FILE_HASHES``, else ``~/.cache/dassl/file_hashes.sqlite``.  It holds at most ``MAX_REMEMBERED`` digests, the
oldest go first; each has a check.  Any number of processes may use it; where it cannot be used, files are hashed each
time.  A store that is damaged is set aside, and a new one begun.
"""

import contextlib
import functools
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from dassl.utils.tools import available_cpus

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 2_000_000  # digests, in about 190 MB: all of ImageNet
DIGEST_BYTES, CHECK_BYTES = 32, 8  # what stands in a row: a digest, and a check of it
MAGIC = b"SQLite format 3\0"  # a store begins with it
SETTLED_SECONDS = 2.0  # the coarsest time stamps in use (FAT): a file may change within them and keep its times
LOCK_SECONDS = 10.0  # how long another process may hold the store before it is done without
STORE_ERRORS = (OSError, sqlite3.Error, RuntimeError)  # the last where there is no home folder

Status = tuple[int, int, int, int, int]


def file_status(path: str | os.PathLike[str]) -> Status:
    """Return device, inode, size in bytes, mtime and ctime in nanoseconds of the file that a path leads to."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_digests(paths: Sequence[str]) -> list[str]:
    """Return the SHA-256 of the content of each file, in hexadecimal.

    A file that changed during the last ``SETTLED_SECONDS`` is hashed but not remembered.

    Raises:
        OSError: a file cannot be read.
    """
    statuses = {path: file_status(path) for path in paths}
    known = _recall(statuses.values())
    unknown = [path for path, status in statuses.items() if status not in known]
    settled = time.time_ns() - SETTLED_SECONDS * 1e9
    with ThreadPoolExecutor(available_cpus()) as pool:
        new = dict(zip(unknown, pool.map(_sha256, unknown), strict=True))
    digest_of = {path: new[path] if path in new else known[status] for path, status in statuses.items()}
    _remember({statuses[path]: digest for path, digest in new.items() if max(statuses[path][3:]) < settled})
    return [digest_of[path] for path in paths]


def content_hash(paths: Sequence[str]) -> str:
    """Return one SHA-256 for the contents of files in this order, wherever they lie and whatever they are called."""
    return combine_digests(file_digests(paths))


def combine_digests(digests: Iterable[str]) -> str:
    """Return the SHA-256 of a list of digests."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _path() -> Path:
    """Return where the store is; RuntimeError where there is no home folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FILE_HASHES") or cache / "dassl" / "file_hashes.sqlite").expanduser()


def _store() -> sqlite3.Connection:
    """Open the store, made where it is not there; OSError or sqlite3.Error where that cannot be done."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS)
    connection.execute("CREATE TABLE IF NOT EXISTS hashes (key BLOB UNIQUE NOT NULL, digest BLOB NOT NULL)")
    return connection


def _key(status: Status) -> bytes:
    """Return the key of a status in the store."""
    return hashlib.blake2b(repr(status).encode(), digest_size=16).digest()


def _row(key: bytes, digest: bytes) -> bytes:
    """Return a digest with a check, by which a flipped bit of it, or of its key, is noticed."""
    return digest + hashlib.blake2b(key + digest, digest_size=CHECK_BYTES).digest()


def _recall(statuses: Iterable[Status]) -> dict[Status, str]:
    """Return the remembered digests; none where the store cannot be read."""
    found = {}
    try:
        with closing(_store()) as store:
            for status in statuses:
                key = _key(status)
                for (row,) in store.execute("SELECT digest FROM hashes WHERE key = ?", (key,)):
                    if isinstance(row, bytes) and row == _row(key, row[:DIGEST_BYTES]):  # else it is damaged
                        found[status] = row[:DIGEST_BYTES].hex()
    except STORE_ERRORS as error:
        _do_without(error)
        return {}
    return found


def _remember(digests: Mapping[Status, str]) -> None:
    """Keep digests, if the store can be written, and drop the oldest beyond ``MAX_REMEMBERED``."""
    if not digests:
        return
    keys = {_key(status): bytes.fromhex(digest) for status, digest in digests.items()}
    rows = [(key, _row(key, digest)) for key, digest in keys.items()]
    try:
        with closing(_store()) as store, store:
            store.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?)", rows)
            newest = "(SELECT max(rowid) FROM hashes)"
            store.execute(f"DELETE FROM hashes WHERE rowid <= {newest} - ?", (MAX_REMEMBERED,))
    except STORE_ERRORS as error:
        _do_without(error)


def _do_without(error: Exception) -> None:
    """Say why the store is of no use; where it is damaged, rename it, so that the next one begins anew."""
    if type(error) is sqlite3.DatabaseError:  # not one of its subclasses, such as a store that is locked
        with contextlib.suppress(OSError, RuntimeError):
            path = _path()
            with open(path, "rb") as file:
                ours = file.read(len(MAGIC)) == MAGIC
            if ours:
                aside = path.with_name(f"{path.name}.damaged")
                os.replace(path, aside)
                logger.warning("%s is damaged (%s): it is %s now, and a new one is begun", path, error, aside)
                return
    _warn_once(str(error))


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning("Hashes of files are not remembered (%s); $FILE_HASHES names another file for them", reason)
