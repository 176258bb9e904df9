"""All runs below a folder."""

import os
from collections.abc import Iterator

import protocols  # noqa: F401 - declares the directories of runs
from results import logs
from results.records import Record, read_run
from results.settings import only_comparable


def read_records(root: str | os.PathLike[str], from_logs: bool = False) -> list[Record]:
    """All runs below a folder, in the order of their directories; `from_logs` as in `read_run`.

    Runs that differ in more than the seed where they would be averaged have that as their problem.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"there is no folder {root}")
    below = directories(os.path.abspath(root))
    return only_comparable([record for directory in below if (record := read_run(directory, from_logs))])


def directories(root: str) -> Iterator[str]:
    """The folders below `root`, itself included, in order; hidden ones left out."""
    for directory, folders, _ in os.walk(root):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=logs.natural)
        yield directory
