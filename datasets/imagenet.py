"""ImageNet 2012 (Russakovsky et al., IJCV 2015). Its official validation images are the test list."""

import logging
import os
from collections import OrderedDict

from dassl.data.datasets import DATASET_REGISTRY

from . import caches
from .fewshot import Counts, FewShotDataset
from .imagenet_archives import unpack_train, unpack_val
from .imagenet_family import (
    CLASSNAMES,
    SAME_NAMES,
    classnames_part,
    examine_classnames,
    folder_items,
    read_classnames,
)
from .sources import Part
from .splits import Item, Split, check_labels, list_folders

logger = logging.getLogger(__name__)


@DATASET_REGISTRY.register()
class ImageNet(FewShotDataset):
    """1000 classes, folders `images/train/nXXXXXXXX` and `images/val/nXXXXXXXX`, names in `classnames.txt`."""

    dataset_dir = "imagenet"
    image_dir = "images"
    split_file = None
    val_is_test = True
    same_names = SAME_NAMES
    counts = Counts(classes=1000, train=1281167, val=0, test=50000)
    parts = (
        classnames_part(),
        Part(
            "training images",
            ("images/train/n*",),
            make=unpack_train,
            by_hand="ILSVRC2012_img_train.tar from image-net.org (needs an account) into {folder}; then run this again",
        ),
        Part(
            "validation images",
            ("images/val/n*",),
            make=unpack_val,
            by_hand="ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org (needs an account) "
            "into {folder}; then run this again",
        ),
    )

    @staticmethod
    def read_classnames(text_file: str) -> OrderedDict[str, str]:
        """Class-name file as WordNet id -> name."""
        return read_classnames(text_file)

    def load_split(self) -> Split:
        """Train and test from the folders, or from the listing that the official code keeps; nothing is written."""
        names = read_classnames(self.raw_file(CLASSNAMES))
        for part in ("train", "val"):
            if not os.path.isdir(os.path.join(self.image_dir, part)):
                raise FileNotFoundError(f"{self._name}: no folder {os.path.join(self.image_dir, part)}. {self.advice}")
        split = self.kept_listing(names)
        if split is None:
            split = Split(folder_items(self.image_dir, "train", names), [], folder_items(self.image_dir, "val", names))
        check_labels(split, f"the listing of {self.image_dir}")
        return split

    def inspect(self) -> list[str]:
        """A class-name file that is not CLIP's; classes that train and val do not share."""
        findings = examine_classnames(self.raw_file(CLASSNAMES))
        train, val = (set(list_folders(os.path.join(self.image_dir, part))) for part in ("train", "val"))
        if train != val:
            findings.append(f"{self.image_dir}: train and val have other class folders: {sorted(train ^ val)[:5]}")
        return findings

    def kept_listing(self, names: dict[str, str]) -> Split | None:
        """The listing in `preprocessed.pkl`, whose order official few-shot draws depend on; None if there is none.

        None, with a warning, if its classes or names are not those of the folders and of `classnames.txt`.
        """
        path = os.path.join(self.dataset_dir, "preprocessed.pkl")
        if not os.path.isfile(path):
            return None
        try:
            content = caches.read_pickle(path, os.path.basename(self.image_dir))
        except caches.ForbiddenPickle:
            raise
        except ValueError as error:
            logger.warning("Ignoring %s", error)
            return None
        split = Split(content.get("train", []), [], content.get("test", []))
        folders = list_folders(os.path.join(self.image_dir, "train"))
        expected = {(folder, label, names.get(folder)) for label, folder in enumerate(folders)}
        if {_class_of(item) for item in split.train} != expected or {_class_of(item) for item in split.test} - expected:
            logger.warning("Ignoring %s: its classes are not those of the folders and of %s", path, CLASSNAMES)
            return None
        logger.info("Loading the list of images from %s", path)
        return split


def _class_of(item: Item) -> tuple[str, int, str]:
    """(class folder, label, class name) of a row `train/nXXXXXXXX/file`."""
    return os.path.basename(os.path.dirname(item.impath)), item.label, item.classname
