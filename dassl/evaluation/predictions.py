"""``predictions.npz``: what a model answered for each image of an evaluation, beside its ``metrics.json``.

The file holds plain NumPy arrays (no pickles) with a digest of them all. Logits are kept less the largest of their
image, in half precision, so that numbers near the top, which decide, keep most digits; the largest logit is kept apart.
Evaluations of more than ``FULL_LIMIT`` logits keep the ``TOP`` largest of each image and that of its true class.

Shape legend: N images, C classes, K classes that are kept of an image, E width of features.
"""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dassl.utils.digests import DIGEST, DamagedError, content_digest
from dassl.utils.tools import atomic_write

NAME, VAL_NAME = "predictions.npz", "predictions-val.npz"
FULL_LIMIT = 8_000_000  # logits of an evaluation, 16 MB: the test images of SUN397 are 7.9 million, of ImageNet 50
TOP = 50  # classes that are kept of each image above that
MAX_BYTES = 2**31  # of the arrays that a file may say that it holds
BYTES_OF_IMAGE = 32  # label, prediction, largest logit and path, packed; also the name of a class
BYTES_OF_FILE = 3000  # names of its parts
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, SyntaxError, MemoryError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """The answers of one evaluation, in the order of its images.

    Attributes:
        paths: (N,) text: of the images, relative to ``DATASET.ROOT`` with ``/``; absolute for those that lie elsewhere.
        labels: (N,) true classes.
        classnames: (C,) text: names of the classes, in the order of the labels.
        predicted: (N,) the class that counted as the answer. It is stored because rounding can make a tie of the
            largest logits.
        largest: (N,) float32: the largest logit of each image.
        relative: (N, C) or (N, K) float16: the logits less ``largest``; 0 at the top, never above it.
        top: (N, K) which classes those are, the most likely first; None where all are kept.
        relative_of_label: (N,) float16: that of the true class, where ``top`` is given; else None.
        logsumexp: (N,) float32: log of the sum over all C classes of ``exp(logit - largest)``, where ``top`` is given.
        logsumexp_cosine: the same of ``(logit - largest) / logit_scale``, where ``top`` is given.
        logit_scale: what the model multiplies its cosines with; 1 where it does not say.
        text_features: (C, E) float16: class features that the images were compared with, not normalised; None where a
            model has no such.
        frozen_text_features: (C, E) float16: those of the model before training; None as above.
    """

    paths: Array
    labels: Array
    classnames: Array
    predicted: Array
    largest: Array
    relative: Array
    top: Array | None = None
    relative_of_label: Array | None = None
    logsumexp: Array | None = None
    logsumexp_cosine: Array | None = None
    logit_scale: float = 1.0
    text_features: Array | None = None
    frozen_text_features: Array | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classnames)

    @property
    def correct(self) -> Array:
        """(N,) bool: whether the answer is the true class."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """Percent, computed as the evaluator does it."""
        return 100.0 * int(self.correct.sum()) / len(self)

    @property
    def logits(self) -> Array:
        """(N, C) float32 logits.

        Those near the largest are exact to 0.05% of their distance from it. Where only the top classes are kept, the
        others share evenly what the probability of the kept ones leaves.
        """
        return self.relative_logits() + self.largest[:, None]

    def relative_logits(self) -> Array:
        """(N, C) float32: the logits less the largest of their image; of classes that are not kept as in ``logits``."""
        if self.top is None:
            return self.relative.astype(np.float32)
        assert self.relative_of_label is not None
        assert self.logsumexp is not None
        rows = np.arange(len(self))
        kept = np.zeros((len(self), self.num_classes), bool)
        np.put_along_axis(kept, self.top, True, axis=1)
        kept[rows, self.labels] = True
        whole = np.full(kept.shape, -np.inf, np.float32)
        np.put_along_axis(whole, self.top, self.relative.astype(np.float32), axis=1)
        whole[rows, self.labels] = self.relative_of_label
        left = np.exp(self.logsumexp.astype(np.float64)) - np.exp(whole.astype(np.float64)).sum(axis=1)
        others = np.maximum((~kept).sum(axis=1), 1)
        share = np.log(np.maximum(left, np.finfo(np.float64).tiny) / others).clip(max=self.relative[:, -1])
        return np.where(kept, whole, share[:, None].astype(np.float32))

    def log_probabilities(self, temperature: float | Array = 1.0) -> Array:
        """(N, C) float64: logarithms of the softmax of ``logits / temperature``; temperatures are one or (N,)."""
        scaled = self.relative_logits().astype(np.float64) / np.asarray(temperature, np.float64).reshape(-1, 1)
        scaled -= scaled.max(axis=1, keepdims=True)
        scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        return scaled

    def select(self, rows: Array | slice) -> "Predictions":
        """The predictions of some images, by a mask (N,), by indices, or by a slice."""
        changed = {name: getattr(self, name)[rows] for name in _OF_IMAGES if getattr(self, name) is not None}
        return dataclasses.replace(self, **changed)


_OF_IMAGES = (
    "paths", "labels", "predicted", "largest", "relative", "top", "relative_of_label", "logsumexp", "logsumexp_cosine",
)  # fmt: skip
# what a file holds: number of axes, kinds of numbers; the fields of `Predictions` by their names
_FORM: dict[str, tuple[int, str]] = {
    "paths": (1, "U"),
    "labels": (1, "iu"),
    "classnames": (1, "U"),
    "predicted": (1, "iu"),
    "largest": (1, "f"),
    "relative": (2, "f"),
    "top": (2, "iu"),
    "relative_of_label": (1, "f"),
    "logsumexp": (1, "f"),
    "logsumexp_cosine": (1, "f"),
    "logit_scale": (0, "f"),
    "text_features": (2, "f"),
    "frozen_text_features": (2, "f"),
}
_WITH_TOP = ("top", "relative_of_label", "logsumexp", "logsumexp_cosine")
_NEEDED = ("paths", "labels", "classnames", "predicted", "largest", "relative", "logit_scale")


def keeps_all(images: int, classes: int) -> bool:
    """Say whether an evaluation of so many images and classes keeps all logits."""
    return classes <= TOP or images * classes <= FULL_LIMIT


def file_bytes(images: int, classes: int, width: int = 0) -> int:
    """Return how many bytes, at most, predictions take on disk; with class features of a width if one is given."""
    numbers = classes if keeps_all(images, classes) else 2 * TOP + 5
    return images * (2 * numbers + BYTES_OF_IMAGE) + classes * (2 * 2 * width + BYTES_OF_IMAGE) + BYTES_OF_FILE


def require_sound(predictions: Predictions) -> None:
    """Refuse predictions whose arrays do not fit each other, or hold what no evaluation gives.

    Raises:
        DamagedError: it names the array.
    """
    own = {name: np.asarray(value) for name in _FORM if (value := getattr(predictions, name)) is not None}
    for name, value in own.items():
        axes, kinds = _FORM[name]
        if value.ndim != axes or value.dtype.kind not in kinds:
            raise DamagedError(f"{name} has the shape {value.shape} and the type {value.dtype}")
    count, classes = len(predictions), predictions.num_classes
    if not count or not classes:
        raise DamagedError(f"there are {count} images and {classes} classes")
    width = classes if predictions.top is None else own["top"].shape[1]
    shapes = {**dict.fromkeys(_OF_IMAGES, (count,)), "relative": (count, width), "top": (count, width)}
    for name in own.keys() & shapes.keys():
        if own[name].shape != shapes[name]:
            raise DamagedError(f"{name} has the shape {own[name].shape}, but should have {shapes[name]}")
    if len({name in own for name in _WITH_TOP}) > 1:
        raise DamagedError(f"of {', '.join(_WITH_TOP)} there are only {', '.join(n for n in _WITH_TOP if n in own)}")
    _require_ranges(own, classes)


def _require_ranges(own: Mapping[str, Array], classes: int) -> None:
    """Refuse classes that there are not, and logits that none can be."""
    for name in ("labels", "predicted", "top"):
        if name in own and own[name].size and not 0 <= own[name].min() <= own[name].max() < classes:
            raise DamagedError(
                f"{name} are from {own[name].min()} to {own[name].max()}, but there are {classes} classes"
            )
    for name in ("relative", "relative_of_label"):
        if name in own and not (own[name] <= 0).all():
            raise DamagedError(f"{name} has logits above the largest, or that are no numbers")
    for name in ("text_features", "frozen_text_features"):
        if name in own and len(own[name]) != classes:
            raise DamagedError(f"{name} has {len(own[name])} rows, but there are {classes} classes")
    finite = ("largest", "logsumexp", "logsumexp_cosine", "logit_scale", "text_features", "frozen_text_features")
    for name in finite:
        if name in own and not np.isfinite(own[name]).all():
            raise DamagedError(f"{name} is not finite")
    if own["logit_scale"] <= 0:
        raise DamagedError(f"logit_scale is {own['logit_scale']}")


def write_predictions(path: str | os.PathLike[str], predictions: Predictions) -> str:
    """Write predictions, whole or not at all; return the digest of their content."""
    arrays: dict[str, Any] = {n: np.asarray(value) for n in _FORM if (value := getattr(predictions, n)) is not None}
    digest = content_digest(arrays)
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, **{**arrays, DIGEST: np.array(digest)})
    return digest


def read_predictions(path: str | os.PathLike[str], digest: str = "") -> Predictions:
    """Read what an evaluation kept.

    Args:
        path: a ``predictions.npz``.
        digest: that of the evaluation that the file is expected to be of (``predictions.digest`` of its
            ``metrics.json``); by default it may be of any.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: a ValueError: its content is not what was written, or it is of another evaluation.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        arrays = _arrays(path)
        said = str(arrays.pop(DIGEST))
        if content_digest(arrays) != said:
            raise DamagedError("its content is not that which was written: the digest is another one's")
        predictions = Predictions(**{**arrays, "logit_scale": float(arrays["logit_scale"])})
        require_sound(predictions)
    except UNREADABLE as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedError(f"{path} holds no predictions, or is damaged ({what}): evaluate again") from error
    if digest and said != digest:
        raise DamagedError(f"{path} is of another evaluation than the metrics.json beside it: evaluate again")
    return predictions


def _arrays(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arrays in a file; any of ``UNREADABLE`` where it is damaged."""
    with open(path, "rb") as opened, zipfile.ZipFile(opened) as archive:
        sizes = {member.filename.removesuffix(".npy"): member.file_size for member in archive.infolist()}
        if not {*_NEEDED, DIGEST} <= sizes.keys() <= {*_FORM, DIGEST} or len(sizes) != len(archive.infolist()):
            raise DamagedError(f"it holds {', '.join(map(repr, sizes)) or 'nothing'}")
        if sum(sizes.values()) > MAX_BYTES:
            raise DamagedError(f"it says that it holds {sum(sizes.values())} bytes")
        found = {}
        for name in sizes:
            with archive.open(f"{name}.npy") as member:  # as np.load does, which would read the archive's index again
                found[name] = np.lib.format.read_array(member, allow_pickle=False)
        return found
