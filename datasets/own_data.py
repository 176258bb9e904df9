"""One's own images, described by a YAML file and no Python.

Where the images and their classes come from, under `DATASET.ROOT`/`DATASET.FOLDER`:

- class folders: `cat/1.jpg`, `dog/2.jpg`; the split is made once and kept in `split.json`;
- `train/`, `test/` and perhaps `val/`, each with class folders;
- a list named by `DATASET.LIST`: a CSV file with a header (`path,class` and perhaps `split`), or a split file in JSON.

`DATASET.CLASSNAMES` may name a file that says how classes are called in prompts, `DATASET.TEMPLATE` gives the zero-shot
prompt. `docs/DATASETS.md` walks through all of it.
"""

import csv
import json
import logging
import os
from collections.abc import Iterable
from typing import Any, ClassVar

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset
from .splits import (
    Item,
    Split,
    check_labels,
    list_folders,
    list_images,
    read_folders,
    read_split_file,
    split_groups,
    split_trainval,
)

logger = logging.getLogger(__name__)

PATH_COLUMNS = ("path", "file", "filename", "filepath", "image", "impath")
CLASS_COLUMNS = ("class", "classname", "class_name", "label", "category")
SPLIT_COLUMNS = ("split", "set", "part", "subset")
PART_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

Labelled = tuple[str, str]  # path relative to the image folder, class key (folder name or CSV cell)


@DATASET_REGISTRY.register()
class OwnData(FewShotDataset):
    """Images of one's own: class folders, train/val/test folders, a CSV file or a split file."""

    split_file = "split.json"
    CONFIG: ClassVar[dict[str, Any]] = {"FOLDER": "", "IMAGES": "", "LIST": "", "CLASSNAMES": ""}

    def locate(self, cfg: CfgNode) -> None:
        """Full paths of the folder, the images (`IMAGES` under it) and the files that the configuration names."""
        super().locate(cfg)
        self.dataset_dir = os.path.normpath(os.path.join(self.root, os.path.expanduser(cfg.DATASET.FOLDER)))
        self.image_dir = os.path.normpath(os.path.join(self.dataset_dir, cfg.DATASET.IMAGES))
        self.split_path = os.path.join(self.dataset_dir, self.split_file)
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")
        self.list_path = os.path.join(self.dataset_dir, cfg.DATASET.LIST) if cfg.DATASET.LIST else ""
        self.names_path = os.path.join(self.dataset_dir, cfg.DATASET.CLASSNAMES) if cfg.DATASET.CLASSNAMES else ""

    @property
    def advice(self) -> str:
        """Which keys say where the files are."""
        return "DATASET.FOLDER, IMAGES and LIST say where they are; see docs/DATASETS.md, section Your own data."

    def load_split(self) -> Split:
        """The split of whichever form the data have, class names mapped. ValueError if they have none."""
        if self.list_path:
            split = self._from_list()
        elif self._part_folders():
            split = self._from_part_folders()
        else:
            split = super().load_split()
            self._warn_of_unlisted(split)
        check_labels(split, f"the list of images in {self.list_path or self.dataset_dir}")
        return self._named(split)

    def _from_list(self) -> Split:
        """The split that `DATASET.LIST` gives."""
        if not os.path.isfile(self.list_path):
            raise FileNotFoundError(f"DATASET.LIST: there is no file {self.list_path}")
        logger.info("Reading split from %s", self.list_path)
        if self.list_path.lower().endswith(".json"):
            return read_split_file(self.list_path)
        return _split_of(_read_csv(self.list_path), self.list_path)

    def _part_folders(self) -> dict[str, str]:
        """Part ("train", "val", "test") -> folder, if there is a `train` folder with class folders in it."""
        folders = {PART_NAMES[name]: name for name in list_folders(self.image_dir) if name in PART_NAMES}
        train = folders.get("train")
        return folders if train and list_folders(os.path.join(self.image_dir, train)) else {}

    def _from_part_folders(self) -> Split:
        """The split that lies in train/val/test folders."""
        parts: dict[str, list[Labelled]] = {}
        for part, folder in self._part_folders().items():
            top = os.path.join(self.image_dir, folder)
            parts[part] = [
                (f"{folder}/{name}/{file}", name)
                for name in list_folders(top)
                for file in list_images(os.path.join(top, name))
            ]
        return _split_of(parts, self.image_dir)

    def _warn_of_unlisted(self, split: Split) -> None:
        """Say so if class folders hold images that the kept split does not know."""
        listed = {item.impath for item in split.items()}
        there = {item.impath for group in read_folders(self.image_dir) for item in group}
        if there - listed:
            logger.warning(
                "%d images in %s are not in %s and stay unused; delete that file to have a new split made",
                len(there - listed), self.image_dir, self.split_path,
            )  # fmt: skip

    def _named(self, split: Split) -> Split:
        """The split with the class names of `DATASET.CLASSNAMES`."""
        if not self.names_path:
            return split
        names = read_names(self.names_path)
        keys = {item.classname for item in split.items()}
        strange = sorted(set(names) - keys)
        if strange:
            raise ValueError(
                f"DATASET.CLASSNAMES: {self.names_path} names {len(strange)} classes that there are not "
                f"({', '.join(strange[:5])}); there are: {', '.join(sorted(keys)[:10])}"
            )
        parts = {
            part: [item._replace(classname=names.get(item.classname, item.classname)) for item in items]
            for part, items in split.parts().items()
        }
        return Split(**parts, origin=split.origin)


def _split_of(parts: dict[str, list[Labelled]], source: str) -> Split:
    """Rows with labels by sorted class key. Without parts ("" as the only one) the split is made.

    No test images: the val images are the test list. No val images: a fifth of each class of train.
    """
    keys = sorted({key for rows in parts.values() for _, key in rows})
    label_of = {key: label for label, key in enumerate(keys)}
    lists = {part: [Item(path, label_of[key], key) for path, key in rows] for part, rows in parts.items()}
    if set(lists) == {""}:
        return split_groups(_grouped(lists[""]))
    train, val, test = (lists.get(part, []) for part in ("train", "val", "test"))
    if not test:
        if not val:
            raise ValueError(f"{source} has neither test nor val images; name them, or leave out the split altogether")
        logger.info("%s has no test images: its val images are the test list", source)
        test, val = val, []
    if not val:
        logger.info("%s has no val images of its own: a fifth of each class of train is val", source)
        train, val = split_trainval(train)
    return Split(train, val, test)


def _grouped(items: Iterable[Item]) -> list[list[Item]]:
    """Items by label, ascending, each sorted by path."""
    groups: dict[int, list[Item]] = {}
    for item in sorted(items):
        groups.setdefault(item.label, []).append(item)
    return [groups[label] for label in sorted(groups)]


def _column(header: list[str], wanted: tuple[str, ...]) -> int | None:
    """Position of the first header cell that is one of `wanted`, in any case."""
    cells = [cell.strip().lower() for cell in header]
    return next((cells.index(name) for name in wanted if name in cells), None)


def _read_csv(path: str) -> dict[str, list[Labelled]]:
    """Part -> rows of a CSV file with a header; the only part is "" if there is no split column.

    Raises ValueError naming the file, the line and what was expected.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    header = table[0] if table else []
    at_path, at_class, at_split = (_column(header, names) for names in (PATH_COLUMNS, CLASS_COLUMNS, SPLIT_COLUMNS))
    if at_path is None or at_class is None:
        raise ValueError(
            f"{path}: the first line must name the columns, one of {', '.join(PATH_COLUMNS)} and one of "
            f"{', '.join(CLASS_COLUMNS)} (and perhaps split); it is {header}"
        )
    parts: dict[str, list[Labelled]] = {}
    for number, row in enumerate(table[1:], 2):
        if len(row) != len(header) or not row[at_path].strip() or not row[at_class].strip():
            raise ValueError(f"{path}, row {number}: expected {len(header)} cells with a path and a class, found {row}")
        part = "" if at_split is None else PART_NAMES.get(row[at_split].strip().lower())
        if part is None:
            raise ValueError(f"{path}, row {number}: the split must be train, val or test, found {row[at_split]!r}")
        parts.setdefault(part, []).append((row[at_path].strip(), row[at_class].strip()))
    if not parts:
        raise ValueError(f"{path} names no images")
    return parts


def read_names(path: str) -> dict[str, str]:
    """File of class names: JSON `{"folder": "name"}`, or lines `folder,name`."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"DATASET.CLASSNAMES: there is no file {path}")
    with open(path, encoding="utf-8-sig", newline="") as file:
        text = file.read()
    if path.lower().endswith(".json"):
        try:
            names = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error})") from error
        if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
            raise ValueError(f'{path} must be an object {{"folder": "class name", ...}}')
        return names
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    wrong = next((row for row in rows if len(row) != 2 or not all(row)), None)
    if wrong is not None:
        raise ValueError(f"{path}: each line must be `folder,class name`, found {wrong}")
    return dict(rows)
