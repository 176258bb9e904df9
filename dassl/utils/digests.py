"""Digests of content: files that say what they hold, so that a flipped bit is noticed.

A digest is the SHA-256 of plain data (numbers, strings, bytes, tensors, lists, dictionaries), whatever it was written
as: lists and tuples, and NumPy's and Python's numbers, count as the same.
"""

import hashlib
import io
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from dassl.utils.files import atomic_write

DIGEST = "digest"  # the entry of a dictionary that holds the digest of the others
MAX_DEPTH = 100  # of nested data; checkpoints have about 6
_SHA256_BYTES = 32
PLAIN = (bool, int, float, complex, str, bytes)


class DamagedError(ValueError):
    """A file does not hold what was written to it."""


def content_digest(data: Any) -> str:
    """Return the SHA-256 of plain data in hexadecimal; a dictionary counts without its entry ``digest``.

    Raises:
        TypeError: there is something else than plain data.
        DamagedError: it is nested more than ``MAX_DEPTH`` deep.
    """
    total = hashlib.sha256()
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key != DIGEST}
    _feed(total, data, 0)
    return total.hexdigest()


def _feed(total: Any, data: Any, depth: int) -> None:
    """Let a hash take in what `data` is, each part with its kind and size, so that no two contents look the same."""
    if depth > MAX_DEPTH:
        raise DamagedError(f"it is nested more than {MAX_DEPTH} deep")
    torch: Any = sys.modules.get("torch")  # which takes seconds to load; without it nothing is a tensor
    if isinstance(data, np.generic):
        data = data.item()
    if isinstance(data, Mapping):
        total.update(b"d%d:" % len(data))
        for key, value in data.items():
            _feed(total, key, depth + 1)
            _feed(total, value, depth + 1)
    elif isinstance(data, list | tuple):
        total.update(b"l%d:" % len(data))
        for value in data:
            _feed(total, value, depth + 1)
    elif torch and isinstance(data, torch.Tensor) and data.layout == torch.strided and not data.is_quantized:
        value = data.detach().cpu().contiguous().flatten()
        total.update(f"t{data.dtype}{tuple(data.shape)}:".encode())
        total.update(value.view(torch.uint8).numpy() if value.numel() else b"")
    elif isinstance(data, np.ndarray) and data.dtype != object:
        total.update(f"a{data.dtype.str}{data.shape}:".encode() + np.ascontiguousarray(data).tobytes())
    elif data is None or isinstance(data, (*PLAIN, *((torch.dtype, torch.device) if torch else ()))):
        text = f"{type(data).__name__} {data!r}".encode("utf-8", "surrogatepass")
        total.update(b"s%d:" % len(text) + text)
    else:
        raise TypeError(f"a {type(data).__name__} is no plain data")


def with_digest(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dictionary with the digest of its content as a further entry."""
    return {**data, DIGEST: content_digest(data)}


def require_digest(data: Mapping[str, Any]) -> None:
    """Refuse a dictionary whose content is not that of its digest; one without a digest is as it is.

    Raises:
        DamagedError: the digest is another one's.
    """
    if DIGEST not in data:
        return
    try:
        right = content_digest(data) == data[DIGEST]
    except TypeError as error:
        raise DamagedError(str(error)) from error
    if not right:
        raise DamagedError("its content is not that which was written: the digest is another one's")


def write_array(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array with the digest of its bytes, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    with atomic_write(path, "wb") as file:
        file.write(hashlib.sha256(content).digest() + content)


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
    """Read what :func:`write_array` wrote.

    Raises:
        OSError: the file cannot be read.
        DamagedError: its content is not what was written.
    """
    with open(path, "rb") as file:
        digest, content = file.read(_SHA256_BYTES), file.read()
    if hashlib.sha256(content).digest() != digest:
        raise DamagedError(f"{path} does not hold what was written to it")
    return np.load(io.BytesIO(content), allow_pickle=False)
