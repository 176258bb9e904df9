"""ImageNet's archives, fetched by hand, put into class folders by torchvision's own means."""

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from .splits import list_folders, list_images

logger = logging.getLogger(__name__)


@contextmanager
def _torchvision_unpacks() -> Iterator[None]:
    """Python 3.12 warns of the way in which torchvision calls `tarfile`; that is not ours to change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Python 3.14 will", category=DeprecationWarning)
        yield


def unpack_train(folder: str) -> bool:
    """Unpack `ILSVRC2012_img_train.tar` into `images/train`, whole or not at all. False if it is not there."""
    from torchvision.datasets import imagenet

    return _unpack(folder, imagenet.ARCHIVE_META["train"][0], "train", imagenet.parse_train_archive)


def unpack_val(folder: str) -> bool:
    """Put validation images into class folders `images/val/nXXXXXXXX`: from the archive, or from a flat `images/val`.

    Both need `ILSVRC2012_devkit_t12.tar.gz`, which says which image is what. False if what is needed is not there.
    """
    from torchvision.datasets import imagenet

    flat = os.path.join(folder, "images", "val")
    if not os.path.isfile(os.path.join(folder, imagenet.ARCHIVE_META["devkit"][0])):
        return False
    with _torchvision_unpacks():
        imagenet.parse_devkit_archive(folder)
    meta = os.path.join(folder, imagenet.META_FILE)
    try:
        if os.path.isdir(flat):
            return _sort_flat(flat, imagenet.load_meta_file(folder)[1])
        return _unpack(folder, imagenet.ARCHIVE_META["val"][0], "val", imagenet.parse_val_archive)
    finally:
        os.remove(meta)


def _unpack(folder: str, archive: str, part: str, parse: object) -> bool:
    """Let torchvision unpack `archive` beside its place, then move the result to `images/<part>`."""
    if not os.path.isfile(os.path.join(folder, archive)):
        return False
    logger.info("Unpacking %s", os.path.join(folder, archive))
    beside = f".unpacking-{part}"
    shutil.rmtree(os.path.join(folder, beside), ignore_errors=True)
    with _torchvision_unpacks():
        parse(folder, folder=beside)
    os.makedirs(os.path.join(folder, "images"), exist_ok=True)
    os.replace(os.path.join(folder, beside), os.path.join(folder, "images", part))
    return True


def _sort_flat(flat: str, wnids: list[str]) -> bool:
    """Move the images of a flat folder, sorted by name, into the folders of their classes. Goes on where it stopped."""
    beside = f"{flat}.sorting"
    os.makedirs(beside, exist_ok=True)
    loose = set(list_images(flat))
    files = sorted(loose.union(*(list_images(os.path.join(beside, wnid)) for wnid in list_folders(beside))))
    if len(files) != len(wnids):
        raise ValueError(f"{flat} holds {len(files)} loose images for {len(wnids)} labels; unpack the archive anew")
    logger.info("Sorting %d images of %s into class folders", len(files), flat)
    for file, wnid in zip(files, wnids, strict=True):
        if file in loose:
            os.makedirs(os.path.join(beside, wnid), exist_ok=True)
            os.rename(os.path.join(flat, file), os.path.join(beside, wnid, file))
    shutil.rmtree(flat)
    os.replace(beside, flat)
    return True
