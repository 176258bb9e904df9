"""What the plain image tower makes of a list of images, kept on disk: it is the same for every seed and every method.

A file belongs to one list of images (hashes of their contents) under one transform, through one image tower, in one
precision and batch size, by one version of the code and its libraries on one kind of processor; so what is read is what
would be computed. Only features of the loader's own images are kept or read: what a method makes of images that it has
changed is computed. The folder is bounded: what was not read for longest goes first. Files appear whole or not at all,
carry a digest of their content, and are made anew where that is another one's; any number of processes may use the
folder.

Shape legend: N images of the list, B images of a batch, E embedding width.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

import clip
import dassl.data
import dassl.utils.images
from clip.backbone import Backbone
from clip.precision import Precision, tf32_state
from clip.weights import default_cache
from dassl.data.data_manager import DatasetWrapper
from dassl.engine.comparison import to_dict
from dassl.engine.record import installed, versions
from dassl.utils.digests import DamagedError, read_array, write_array
from dassl.utils.file_identity import content_hash
from dassl.utils.torchtools import device_name, processor_name

logger = logging.getLogger(__name__)

TOWERS = "open_clip_torch", "timm", "transformers"  # packages that image towers come from
LIMIT = 2 * 2**30  # bytes of the folder


def folder() -> Path:
    """Where the files are: `$FEATURE_CACHE`, else beside the downloaded weights."""
    return Path(os.environ.get("FEATURE_CACHE") or default_cache() / "image_features").expanduser()


class KeptFeatures:
    """Features of the images of one list.

    Args:
        locate: gives the file; called when features are asked for.
        count: N.
        width: E.

    Attributes:
        rows: which images of the list the current batch consists of, (B,).
        fed: the current batch's images on the device, as the loader gave them, (B, 3, H, W).
    """

    def __init__(self, locate: Callable[[], Path], count: int, width: int):
        self.shape = count, width
        self.rows = self.fed = torch.empty(0)
        self._version = 0
        self._locate = locate
        self._new: list[tuple[Tensor, Tensor]] = []

    @cached_property
    def path(self) -> Path:
        """The file."""
        return self._locate()

    @cached_property
    def known(self) -> Tensor | None:
        """Features (N, E) from the disk, None if they are not there."""
        if not self.path.is_file():
            return None
        try:
            array = read_array(self.path)
            os.utime(self.path)
            if array.shape != self.shape or array.dtype.kind != "f" or not np.isfinite(array).all():
                raise DamagedError(f"{self.path} holds no features of {self.shape[0]} images")
        except (OSError, ValueError) as error:
            logger.warning("Image features are computed anew: %s", error)
            return None
        logger.info("Image features of the frozen tower are read from %s", self.path)
        return torch.from_numpy(array)

    def feed(self, images: Tensor) -> None:
        """Note the current batch's images."""
        self.fed, self._version = images, images._version

    def has(self, images: Tensor) -> bool:
        """Whether these are the current batch's images, unchanged."""
        return images is self.fed and images._version == self._version

    def of_batch(self, compute: Callable[[], Tensor], device: torch.device) -> Tensor:
        """Features (B, E) of the current batch on a device: the known ones, else computed and noted."""
        if self.known is not None:
            return self.known[self.rows].to(device)
        features = compute()
        self._new.append((self.rows, features.detach().cpu()))
        return features

    def write(self) -> None:
        """Keep what was computed, if it is the whole list."""
        if sum(len(rows) for rows, _ in self._new) != self.shape[0]:
            return
        features = torch.empty(self.shape)
        for rows, values in self._new:
            features[rows] = values
        try:
            write_array(self.path, features.numpy())
            shrink(self.path.parent, LIMIT)
        except OSError as error:
            logger.warning("Image features are not kept (%s); TEST.CACHE_FEATURES False switches this off", error)


def shrink(directory: Path, limit: int) -> None:
    """Delete the files that were not used for longest until the others take no more than so many bytes."""
    found = []
    for entry in os.scandir(directory):
        try:
            found.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        except FileNotFoundError:  # another process was faster
            continue
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        Path(path).unlink(missing_ok=True)
        total -= size


def kept_features(cfg: CfgNode, loader: DataLoader, backbone: Backbone, precision: Precision) -> KeptFeatures | None:
    """The kept features of the images of a loader; None where they cannot be, or are not to be kept.

    They cannot where the images are not read in the usual way, the transform does not say what it does, the image tower
    is an adapted one, or nobody knows which weights it has.
    """
    data, shown = loader.dataset, repr(getattr(loader.dataset, "transform", None))
    usual = type(data) is DatasetWrapper and data.clock is None and " at 0x" not in shown
    if not (cfg.TEST.CACHE_FEATURES and usual and backbone.plain_images and backbone.digest):
        return None

    def locate() -> Path:
        settings = {
            "by": [_code(), versions(), installed(*TOWERS)],
            "on": [device_name(backbone.device), processor_name(), torch.get_num_threads()],
            "precision": [precision.name, tf32_state()],
            "backbone": backbone.identity(),
            "transform": [shown, to_dict(cfg.INPUT), loader.batch_size],
            "images": content_hash([item.impath for item in data.data_source]),
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return folder() / f"{digest[:32]}.features"

    return KeptFeatures(locate, len(data), backbone.embed_dim)


@cache
def _code() -> str:
    """A hash of the code that reads images and encodes them."""
    sources = [path for package in (clip, dassl.data) for path in Path(package.__file__).parent.rglob("*.py")]
    sources.append(Path(dassl.utils.images.__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()


def without_pixels(loader: DataLoader) -> Iterator[dict]:
    """The batches of a loader whose images are not read: `img` is (B, 0)."""
    for rows in loader.batch_sampler:
        labels = torch.tensor([loader.dataset.data_source[row].label for row in rows])
        yield {"img": torch.empty(len(rows), 0), "label": labels, "index": torch.tensor(rows)}
