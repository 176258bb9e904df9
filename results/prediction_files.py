"""Writing what a run says of pictures, batch by batch: as text, CSV or JSON, and with features as an .npz archive.

Shape legend: N images, B of them in a batch, C classes, E embedding width of the backbone.
"""

import csv
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np

from dassl.output import clean, csv_cell, json_text
from dassl.utils import atomic_write

FORMATS = ("table", "csv", "json")


class Batch(Protocol):
    """What is written of a batch."""

    @property
    def probabilities(self) -> np.ndarray:
        """(B, C)."""

    @property
    def features(self) -> np.ndarray | None:
        """(B, E)."""


class Writer:
    """Makes the text of probabilities: a table of the best classes, CSV or JSON with all of them.

    Args:
        form: one of `FORMATS`.
        images: what all images are called, which is known before the first is read.
        classnames: the classes (C); probabilities of classes of one name (ImageNet has some) are added up, but in CSV.
        top: classes in the table.
    """

    def __init__(self, form: str, images: Sequence[str], classnames: Sequence[str], top: int):
        self.form, self.classnames, self.top = form, classnames, top
        self.images = iter(images)
        self.width = max((len(clean(path)) for path in images), default=0)
        self.begun = False

    def text(self, probabilities: np.ndarray) -> str:
        """The text of the next B images, with what precedes the first of all."""
        rows = [(path, row) for row, path in zip(probabilities, self.images, strict=False)]
        begun, self.begun = self.begun, True
        if self.form == "csv":
            head = [] if begun else [["image", *map(csv_cell, self.classnames)]]
            return _csv([*head, *([csv_cell(path), *map(float, row)] for path, row in rows)])
        named = [(path, _by_name(self.classnames, row)) for path, row in rows]
        if self.form == "json":
            items = [json_text([{"image": path, "probabilities": row}])[2:-3] for path, row in named]
            return (",\n" if begun else "[\n") + ",\n".join(items)
        return "".join(self._line(path, row) for path, row in named)

    def end(self) -> str:
        """What follows the last image."""
        return "\n]\n" if self.form == "json" else ""

    def _line(self, path: str, row: Mapping[str, float]) -> str:
        best = sorted(row, key=row.__getitem__, reverse=True)[: self.top]
        shown = "  ".join(f"{100 * row[name]:6.2f}% {clean(name)}" for name in best)
        return f"{clean(path):<{self.width}}  {shown}\n"


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _by_name(classnames: Sequence[str], row: Sequence[float]) -> dict[str, float]:
    """Probabilities by class name; those of classes of the same name are added up."""
    named = dict.fromkeys(classnames, 0.0)
    for name, probability in zip(classnames, map(float, row), strict=True):
        named[name] += probability
    return named


class Archive:
    """Collects arrays on disk, batch by batch, for one .npz archive."""

    def __init__(self, rows: int):
        self.rows, self.files = rows, ExitStack()
        self.parts: dict[str, tuple[Any, int]] = {}  # by name: a scratch file of float32, and the width of its rows

    def add(self, batch: Batch) -> None:
        """Add the probabilities and features of a batch."""
        for name, values in (("probabilities", batch.probabilities), ("image_features", batch.features)):
            if values is not None:
                if name not in self.parts:
                    scratch = self.files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
                    self.parts[name] = scratch, values.shape[1]
                self.parts[name][0].write(np.ascontiguousarray(values, dtype="<f4").tobytes())

    def write(self, archive: zipfile.ZipFile, small: Mapping[str, np.ndarray]) -> None:
        """Write the arrays, and small ones that are in memory."""
        for name, values in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
        for name, (file, width) in self.parts.items():
            shape = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, width)}
            file.seek(0)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, shape)
                shutil.copyfileobj(file, member)


@contextmanager
def feature_archive(path: str, images: Sequence[str], predictor: Any) -> Iterator[Archive]:
    """Collect the batches that are added in the block, then write an .npz archive, whole or not at all.

    `images` (N,) and `classnames` (C,) are strings; `image_features` (N, E), `text_features` (C, E) and `probabilities`
    (N, C) are float32. Features are not normalised, and such as the method compares with each other: APEX's are mixed
    with the frozen ones. CoCoOp's text features differ from image to image: there the archive has none.

    Raises:
        OSError: the file cannot be written, which is found before the block begins.
    """
    in_block = False  # where errors are of images
    small = {"images": np.array(images), "classnames": np.array(predictor.classnames)}
    try:
        with atomic_write(path, "wb") as file:
            collected = Archive(len(images))
            with collected.files:
                in_block = True
                yield collected
                in_block = False
                text = predictor.text_features()
                with zipfile.ZipFile(file, "w") as archive:
                    collected.write(archive, small | ({} if text is None else {"text_features": text}))
    except OSError as error:
        if in_block:
            raise
        raise OSError(f"{path} cannot be written: {error.strerror}") from error
