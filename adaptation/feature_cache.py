"""A cache on disk of image features of the frozen tower, which are the same for every seed and every method.

A file belongs to one list of images (hashes of their contents) under one transform, through one image tower, in one
precision and batch size, by one version of the code and its libraries on one kind of processor; so what is read is what
would be computed. Only features of the loader's own images are written or read: images that a method has changed are
encoded. The folder is bounded: what was not read for longest goes first. Files appear whole or not at all,
carry a digest of their content, and are made anew where that is another one's; any number of processes may use the
folder.

Shape legend: N images of the list, B images of a batch, E embedding width.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader
from yacs.config import CfgNode

import clip
import dassl.data
import dassl.utils.images
from adaptation.method import Method
from clip.backbone import Backbone
from clip.precision import Precision, tf32_state
from clip.towers import Prompts
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


class BatchImages(Tensor):
    """The images (B, 3, H, W) of a batch of a known list, of which the cache knows which they are.

    Whatever is done with it is done with the pixels, which may only then be read, and gives an ordinary tensor. So a
    method or trainer that changes images in any way is never given features of the unchanged ones.

    Attributes:
        rows: which images of the list they are, (B,).
        pixels: the images on `device`; None until they are read.
        handled: whether anything but the cache has had the pixels.
    """

    rows: Tensor
    pixels: Tensor | None
    handled: bool
    device_wanted: torch.device | None
    _read: Callable[[], Tensor]

    @staticmethod
    def of(rows: Tensor, read: Callable[[], Tensor]) -> "BatchImages":
        """The images of these rows; `read` gives the pixels."""
        images = torch.empty(0).as_subclass(BatchImages)
        images.rows, images.pixels, images.handled, images.device_wanted, images._read = rows, None, False, None, read
        return images

    def load(self) -> Tensor:
        """The pixels on the device that the batch was sent to."""
        if self.pixels is None:
            self.pixels = self._read().to(self.device_wanted, non_blocking=True)
        return self.pixels

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Send it to a device without reading; for everything else the pixels take its place."""
        if func is Tensor.to and len(args) == 2 and isinstance(args[1], torch.device) and args[0].pixels is None:
            args[0].device_wanted = args[1]
            return args[0]

        if func == Tensor.requires_grad.__get__:  # what hooks of modules ask; the answer is no
            return False

        def pixels(images: BatchImages) -> Tensor:
            images.handled = True
            return images.load()

        args, kwargs = tree_map_only(BatchImages, pixels, (args, kwargs or {}))
        return func(*args, **kwargs)


class FeatureCache:
    """Features of the images of one list, in a file.

    Args:
        locate: gives the file; called when features are asked for.
        count: N.
        width: E.
    """

    def __init__(self, locate: Callable[[], Path], count: int, width: int):
        self.shape = count, width
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

    def encode(self, backbone: Backbone, images: Tensor, prompts: Prompts = (), **options: Any) -> Tensor:
        """What `backbone.encode_image` gives; from the cache, or noted for it, where these are images as they are."""
        if not isinstance(images, BatchImages):
            return backbone.encode_image(images, prompts, **options)
        if prompts or images.handled:
            return backbone.encode_image(images.load(), prompts, **options)
        if self.known is not None:
            return self.known[images.rows].to(backbone.device)
        features = backbone.encode_image(images.load())
        self._new.append((images.rows, features.detach().cpu()))
        return features

    def wrap(self, backbone: Backbone) -> Backbone:
        """The backbone with `encode` in the place of its `encode_image`."""
        other = copy(backbone)
        other.encode_image = partial(self.encode, backbone)  # type: ignore[method-assign]  # of this copy alone
        return other

    def batches(self, loader: DataLoader) -> Iterator[dict]:
        """The batches of a loader, whose images are read only if somebody looks at those of the first batch."""
        assert loader.batch_sampler is not None, "the engine's loaders make batches"
        rows = list(loader.batch_sampler)
        for number, batch in enumerate(unread_batches(loader, rows)):
            yield batch
            if number == 0 and batch["img"].pixels is not None:
                for read in remaining_batches(loader, rows[1:]):
                    yield {**read, "img": BatchImages.of(read["index"], partial(read.__getitem__, "img"))}
                return

    def write(self) -> None:
        """Write what was computed, if it is the whole list."""
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


def cached_batches(cfg: CfgNode, loader: DataLoader, model: Method, precision: Precision) -> Iterator[dict]:
    """The batches of a loader, while the method's plain image features come from the cache, or are kept in it.

    They are neither where the images are not read in the usual way, the transform does not say what it does, the image
    tower is an adapted one, or its weights have no digest.
    """
    data, shown = loader.dataset, repr(getattr(loader.dataset, "transform", None))
    usual = type(data) is DatasetWrapper and data.clock is None and " at 0x" not in shown
    backbone = model.backbone
    if not (
        isinstance(data, DatasetWrapper)
        and cfg.TEST.CACHE_FEATURES
        and usual
        and backbone.plain_images
        and backbone.digest
    ):
        yield from loader
        return
    locate = partial(cache_file, cfg, loader, backbone, precision, shown)
    cache = FeatureCache(locate, len(data), backbone.embed_dim)
    object.__setattr__(model, "backbone", cache.wrap(backbone))
    try:
        yield from cache.batches(loader)
        cache.write()
    finally:
        object.__setattr__(model, "backbone", backbone)


def cache_file(cfg: CfgNode, loader: DataLoader, backbone: Backbone, precision: Precision, transform: str) -> Path:
    """The file of the features of a loader's images."""
    settings = {
        "by": [_code(), versions(), installed(*TOWERS)],
        "on": [device_name(backbone.device), processor_name(), torch.get_num_threads()],
        "precision": [precision.name, tf32_state()],
        "backbone": backbone.identity(),
        "transform": [transform, to_dict(cfg.INPUT), loader.batch_size],
        "images": content_hash([item.impath for item in cast(DatasetWrapper, loader.dataset).data_source]),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return folder() / f"{digest[:32]}.features"


@cache
def _code() -> str:
    """A hash of the code that reads images and encodes them."""
    sources = [path for package in (clip, dassl.data) for path in Path(package.__path__[0]).rglob("*.py")]
    sources.append(Path(dassl.utils.images.__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()


def unread_batches(loader: DataLoader, batches: Sequence[list[int]]) -> Iterator[dict]:
    """Batches of a loader, by their rows, whose images are read when somebody looks at them."""

    def read(rows: list[int]) -> Tensor:
        return loader.collate_fn([loader.dataset[row] for row in rows])["img"]

    for rows in batches:
        items = [cast(DatasetWrapper, loader.dataset).data_source[row] for row in rows]
        yield {
            "img": BatchImages.of(torch.tensor(rows), partial(read, rows)),
            "label": torch.tensor([item.label for item in items]),
            "domain": torch.tensor([item.domain for item in items]),
            "impath": [item.impath for item in items],
            "index": torch.tensor(rows),
        }


def remaining_batches(loader: DataLoader, batches: Sequence[list[int]]) -> DataLoader:
    """A loader like this one, of some of its batches."""
    same = ("num_workers", "collate_fn", "pin_memory", "worker_init_fn", "prefetch_factor", "multiprocessing_context")
    return DataLoader(loader.dataset, batch_sampler=batches, **{name: getattr(loader, name) for name in same})
