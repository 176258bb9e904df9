"""What ImageNet and its four evaluation sets share: the class-name file and sets without training images."""

import importlib.util
import logging
import os
import shutil
from collections import OrderedDict

from dassl.utils import atomic_write

from .fewshot import FewShotDataset
from .sources import Download, Part
from .splits import Item, Split, list_folders, list_images

logger = logging.getLogger(__name__)

CLASSNAMES = "classnames.txt"
SAME_NAMES = "missile", "sunglasses"  # each the name of two classes in CLIP's list


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


def clip_classnames() -> OrderedDict[str, str]:
    """CLIP's names of the 1000 classes by WordNet id, from the installed open_clip and timm; empty without them.

    Neither package is imported: only the files that hold the lists are read.
    """
    places = {name: importlib.util.find_spec(name) for name in ("open_clip", "timm")}
    if any(place is None or place.origin is None for place in places.values()):
        return OrderedDict()
    name_file = os.path.join(os.path.dirname(places["open_clip"].origin), "zero_shot_metadata.py")
    id_file = os.path.join(os.path.dirname(places["timm"].origin), "data", "_info", "imagenet_synsets.txt")
    if not os.path.isfile(name_file) or not os.path.isfile(id_file):
        return OrderedDict()
    spec = importlib.util.spec_from_file_location("zero_shot_metadata", name_file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with open(id_file, encoding="utf-8") as file:
        wnids = file.read().split()
    return OrderedDict(zip(wnids, module.IMAGENET_CLASSNAMES, strict=True))


def examine_classnames(path: str) -> list[str]:
    """What is wrong with a class-name file that can be read: its order, or names that are not CLIP's."""
    names = read_classnames(path)
    findings = []
    if list(names) != sorted(names):
        findings.append(f"{path} is not sorted by WordNet id, so ImageNetV2's folders would get wrong names")
    known = clip_classnames()
    shared = [wnid for wnid in names if wnid in known]
    wrong = [wnid for wnid in shared if names[wnid].lower() != known[wnid].lower()]
    if len(wrong) > len(shared) // 5:
        findings.append(
            f"{path} does not hold CLIP's class names: {len(wrong)} of {len(shared)} differ, for example {wrong[0]} is "
            f"{names[wrong[0]]!r} where CLIP says {known[wrong[0]]!r}"
        )
    return findings


def copy_classnames(folder: str) -> bool:
    """Take `classnames.txt` from ImageNet's folder beside `folder`, if it is there."""
    source = os.path.join(os.path.dirname(os.path.normpath(folder)), "imagenet", CLASSNAMES)
    if not os.path.isfile(source):
        return False
    os.makedirs(folder, exist_ok=True)
    shutil.copyfile(source, os.path.join(folder, CLASSNAMES))
    return True


def write_clip_classnames(folder: str) -> bool:
    """Write `classnames.txt` with the names of the installed packages (see `clip_classnames`), if they are there."""
    known = clip_classnames()
    if known:
        with atomic_write(os.path.join(folder, CLASSNAMES)) as file:
            file.writelines(f"{wnid} {name}\n" for wnid, name in known.items())
        logger.info("%s/%s holds open_clip's class names; the official file may differ in a few", folder, CLASSNAMES)
    return bool(known)


def classnames_part() -> Part:
    """The class-name file: ImageNet's, if it is there, else the official one, else made from installed packages."""
    drive = "1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"
    return Part(
        "class names",
        (CLASSNAMES,),
        (Download(f"drive:{drive}", CLASSNAMES),),
        make=copy_classnames,
        fallback=write_clip_classnames,
        by_hand=f"https://drive.google.com/file/d/{drive} as {{folder}}/{CLASSNAMES}",
    )


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
    same_names = SAME_NAMES
    draws = False

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

    def inspect(self) -> list[str]:
        """A class-name file that is not CLIP's, or in another order."""
        return examine_classnames(self.raw_file(CLASSNAMES))

    def few_shot(self, split: Split, shots: int, seed: int) -> Split:
        """Nothing is drawn: these images are for evaluation."""
        return split

    def select_base_or_new(self, split: Split, subsample: str) -> Split:
        """All classes, with a warning if a half was asked for."""
        if subsample != "all":
            logger.warning('%s has no base and new half: SUBSAMPLE_CLASSES "%s" is ignored', self._name, subsample)
        return split
