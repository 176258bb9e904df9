"""What ImageNet and its four evaluation sets share: the class-name file and sets without training images."""

import logging
import os
from collections import OrderedDict

from .fewshot import FewShotDataset
from .splits import Item, Split, list_folders, list_images

logger = logging.getLogger(__name__)

CLASSNAMES = "classnames.txt"


def read_classnames(path: str) -> OrderedDict[str, str]:
    """Class-name file, lines `nXXXXXXXX class name`, as WordNet id -> name in the order of the file."""
    names: OrderedDict[str, str] = OrderedDict()
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            wnid, _, name = line.strip().partition(" ")
            if not name.strip() or not wnid.startswith("n") or not wnid[1:].isdigit():
                raise ValueError(f"{path}, line {number}: expected `nXXXXXXXX class name`, found {line.strip()!r}")
            if wnid in names:
                raise ValueError(f"{path}, line {number}: {wnid} is there twice")
            names[wnid] = name.strip()
    return names


def folder_items(image_dir: str, prefix: str, names: dict[str, str]) -> list[Item]:
    """Images of the class folders of `image_dir/prefix`: label = position of the folder, sorted.

    Raises ValueError if a folder has no class name, or if the images lie in no class folders.
    """
    folder = os.path.join(image_dir, prefix) if prefix else image_dir
    classes = list_folders(folder)
    if not classes:
        loose = len(list_images(folder))
        raise ValueError(
            f"{folder} has no class folders but {loose} loose images: it must hold one folder per class (nXXXXXXXX); "
            "`python -m datasets.prepare imagenet` sorts a flat val folder"
        )
    unnamed = [name for name in classes if name not in names]
    if unnamed:
        raise ValueError(
            f"{folder}: {len(unnamed)} of {len(classes)} folders are not in {CLASSNAMES} ({', '.join(unnamed[:5])})"
        )
    start = f"{prefix}/" if prefix else ""
    return [
        Item(f"{start}{name}/{file}", label, names[name])
        for label, name in enumerate(classes)
        for file in list_images(os.path.join(folder, name))
    ]


class EvaluationSet(FewShotDataset):
    """A set to evaluate ImageNet models on: all images are the test list (and stand for the training list)."""

    split_file = None

    def class_names_by_id(self) -> OrderedDict[str, str]:
        """WordNet id -> class name, from `classnames.txt` in the set's folder."""
        return read_classnames(self.raw_file(CLASSNAMES))

    def read_items(self) -> list[Item]:
        """All images, from class folders named by WordNet id."""
        return folder_items(self.image_dir, "", self.class_names_by_id())

    def load_split(self) -> Split:
        """All images as train and test; nothing is written."""
        items = self.read_items()
        return Split(items, [], items)

    def few_shot(self, split: Split, shots: int, seed: int) -> Split:
        """Nothing is drawn: these images are for evaluation."""
        return split

    def halve(self, split: Split, subsample: str) -> Split:
        """All classes, with a warning if a half was asked for."""
        if subsample != "all":
            logger.warning('%s has no base and new half: SUBSAMPLE_CLASSES "%s" is ignored', self._name, subsample)
        return split
