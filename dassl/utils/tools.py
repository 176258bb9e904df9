"""Small helpers: files, random streams, names, the description of the machine."""

import difflib
import hashlib
import json
import os
import platform
import random
import shutil
import sys
import urllib.request
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import PIL

from dassl.utils.files import atomic_write
from dassl.utils.files import read_json as read_json
from dassl.utils.files import write_json as write_json


def mkdir_if_missing(dirname: str) -> None:
    """Make the folder and its parents; no error if it is there."""
    os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Say whether ``fpath`` is a file, with a warning if not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """Return the names in a folder that do not begin with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def download_url(url: str, dst: str) -> None:
    """Download ``url`` to the file ``dst``, whole or not at all."""
    with urllib.request.urlopen(url) as response, atomic_write(dst, "wb") as file:
        shutil.copyfileobj(response, file)


def set_random_seed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (all devices)."""
    import torch  # takes seconds

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - third-party code draws from the global generator
    torch.manual_seed(seed)


def stream_seed(seed: int, *keys: str | int) -> int:
    """Return a 63-bit seed for one purpose, so that every purpose draws from a random stream of its own.

    Args:
        seed: the seed of the run.
        keys: what the stream is for, such as ``"order", epoch``.
    """
    digest = hashlib.sha256(json.dumps([seed, *keys]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(seed: int, torch_only: bool = False) -> Iterator[None]:
    """Seed the global CPU generators of Python, NumPy and PyTorch for the block; afterwards they are as before it.

    Args:
        seed: of all three.
        torch_only: what is done in the block draws from PyTorch's generator only; keeping the state of the others takes
            longer than many an augmentation.
    """
    import torch  # takes seconds

    if torch_only:
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(before)
        return
    python, numpy_ = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        with seeded(seed, torch_only=True):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)  # noqa: NPY002


def did_you_mean(name: str, choices: Iterable[str], what: str, list_all: bool = True) -> str:
    """Return the sentence that answers a name that does not exist, with the nearest ones that do.

    Args:
        name: what was asked for.
        choices: the valid names.
        what: what is named, such as ``"trainer"``.
        list_all: also list every valid name.
    """
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in reversed(choices)}
    near = [lowered[key] for key in difflib.get_close_matches(str(name).lower(), list(lowered), n=3, cutoff=0.5)]
    sentence = f'unknown {what} "{name}"' + (f": do you mean {near}?" if near else ".")
    if not list_all:
        return sentence
    return f"{sentence} It must be one of {choices}" if choices else f"{sentence} There is none."


def group_equal(names: Sequence[str], keys: Iterable[Hashable]) -> list[list[str]]:
    """Return the names that share a key, a list for each key that more than one has, in order of appearance."""
    groups: dict[Hashable, list[str]] = {}
    for name, key in zip(names, keys, strict=True):
        groups.setdefault(key, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str:
    """Return the string of ``b`` that is most like ``a``."""
    return max(b, key=lambda candidate: difflib.SequenceMatcher(None, a, candidate).ratio())


def check_availability(requested: str, available: Sequence[str], what: str = "name") -> None:
    """Raise a ValueError that lists ``available`` and the nearest of them, unless ``requested`` is one."""
    if requested not in available:
        raise ValueError(did_you_mean(requested, available, what))


def tolist_if_not(x: Any) -> list[Any]:
    """Return a list as it is, anything else as the only element of one."""
    return x if isinstance(x, list) else [x]


RUNS_IN_PROCESS: ContextVar[int] = ContextVar("runs that take turns in this process", default=1)


def available_cpus() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def collect_env_info() -> str:
    """Describe the software and the machine in a few lines, at no cost: no other program is run."""
    import torch  # takes seconds

    rows = {
        "Python": sys.version.replace("\n", " "),
        "Platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "PyTorch": torch.__version__,
        "CUDA of PyTorch": torch.version.cuda,
        "NumPy": np.__version__,
        "Pillow": PIL.__version__,
        "Processors": available_cpus(),
        "Threads": torch.get_num_threads(),
    }
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        rows[f"GPU {index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return "\n".join(f"{name}: {value}" for name, value in rows.items())
