"""Few-shot draws kept on disk: our own as JSON, those of the official code (pickles) without executing them."""

import json
import logging
import os
import pickle
import struct
from collections.abc import Iterable

from dassl.utils import atomic_write
from dassl.utils.digests import require_digest, with_digest

from .splits import Item, Split, below_folder, parse_rows

logger = logging.getLogger(__name__)


DAMAGE = (  # what a damaged pickle can raise; found by reading 30,000 of them
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OverflowError,
    MemoryError,
)


FAST_ABOVE = 8 << 20  # bytes; the largest few-shot draw has 2 MB, ImageNet's list of all images 100


class ForbiddenPickle(ValueError):
    """A pickle that asks for anything but Dassl's Datum. Nothing of it was executed."""


class _PickledDatum:
    """Stands for `dassl.data.datasets.base_dataset.Datum` while a pickle is read: four attributes, no code."""

    _impath: object = None
    _label: object = None
    _domain: object = 0
    _classname: object = ""


class _Admission:
    """Admits Datum and what needs no class at all (lists, tuples, dictionaries, strings, numbers)."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("dassl.data.datasets.base_dataset", "Datum"):
            return _PickledDatum
        raise ForbiddenPickle(f"it asks for {module}.{name}")

    def persistent_load(self, pid: object) -> object:
        raise ForbiddenPickle(f"it asks for the outside object {pid!r}")


class _DatumUnpickler(_Admission, pickle._Unpickler):
    """The reader in Python, which a damaged index costs nothing."""


class _FastDatumUnpickler(_Admission, pickle.Unpickler):
    """The reader in C, four times as fast; an index of four bytes can cost it gigabytes."""


def _rows(data: object, path: str, image_folder: str) -> list[Item]:
    """The Datums of one list of a pickle as Items relative to the folder called `image_folder`."""
    rows = []
    for datum in data if isinstance(data, list) else [data]:
        if not isinstance(datum, _PickledDatum) or not isinstance(datum._impath, str):
            raise ValueError(f"{path} holds something other than lists of Datum")
        rows.append([below_folder(datum._impath, image_folder), datum._label, datum._classname])
    return parse_rows(rows, path)


def read_pickle(path: str, image_folder: str) -> dict[str, list[Item]]:
    """Read a pickle of the official code, `{"train": [Datum, ...], ...}`, with a reader that admits only Datum.

    Paths come back relative to the folder named `image_folder`, so a cache made elsewhere serves here. Raises
    ForbiddenPickle if it asks for any other class or function, ValueError if it is damaged or something else.
    """
    try:
        with open(path, "rb") as file:
            fast = os.path.getsize(path) > FAST_ABOVE
            content = (_FastDatumUnpickler if fast else _DatumUnpickler)(file).load()
    except ForbiddenPickle as error:
        raise ForbiddenPickle(
            f"{path} was not read: {error}, and a cache of images has no use for that. Do not trust this file; "
            "delete it, and the draw is made anew"
        ) from error
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} where a dictionary of lists was expected")
    return {str(part): _rows(data, path, image_folder) for part, data in content.items()}


def _belongs(drawn: Iterable[Item], source: Iterable[Item]) -> bool:
    """Whether every drawn row is a row of the split."""
    known = set(source)
    return all(item in known for item in drawn)


def read_draw(path: str, split: Split) -> tuple[list[Item], list[Item]] | None:
    """The (train, val) draw kept in a JSON file; None, with a warning, if it is damaged or of another split."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        require_digest(content)
        train = parse_rows(content["train"], path)
        val = parse_rows(content["val"], path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("Ignoring %s: damaged (%s)", path, error)
        return None
    if not _belongs(train, split.train) or not _belongs(val, split.val):
        logger.warning("Ignoring %s: it holds images that the split does not have", path)
        return None
    return train, val


def write_draw(path: str, train: list[Item], val: list[Item]) -> None:
    """Keep a draw as JSON with its digest, whole or not at all; several processes may do so at once."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    text = json.dumps(with_digest({"train": train, "val": val}), indent=1)
    with atomic_write(path) as file:
        file.write(text)


def read_official_draw(path: str, split: Split, image_folder: str) -> tuple[list[Item], list[Item]] | None:
    """The draw in a cache of the official code; None, with a warning, if it does not belong to this split.

    Raises ForbiddenPickle for a pickle that is more than data.
    """
    try:
        content = read_pickle(path, image_folder)
    except ForbiddenPickle:
        raise
    except ValueError as error:
        logger.warning("Ignoring %s", error)
        return None
    train, val = content.get("train", []), content.get("val", [])
    if not train or not _belongs(train, split.train) or not _belongs(val, split.val):
        logger.warning("Ignoring %s: made from another split or other files", path)
        return None
    return train, val
