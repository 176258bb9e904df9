"""One's own images, described by a YAML file and no Python.

Where the images and their classes come from, under `DATASET.ROOT`/`DATASET.FOLDER`:

- class folders: `cat/1.jpg`, `dog/2.jpg`; the split is made once and kept in `split.json`;
- `train/`, `test/` and perhaps `val/`, each with class folders;
- a list named by `DATASET.LIST`: a CSV file (`path,class` and perhaps `split`, with or without a header), or a split
  file in JSON.

`DATASET.CLASSNAMES` may name a file that says how classes are called in prompts, `DATASET.TEMPLATE` gives the zero-shot
prompt. `docs/DATASETS.md` walks through all of it.
"""

import csv
import io
import json
import logging
import os
import re
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, ClassVar

from PIL import Image
from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset
from .splits import (
    SHOWN,
    Item,
    Split,
    check_labels,
    class_folders,
    class_images,
    list_folders,
    list_images,
    read_split_file,
    split_groups,
    split_trainval,
    warn_of_left_out,
)

logger = logging.getLogger(__name__)

PATH_COLUMNS = ("path", "file", "filename", "filepath", "file_path", "image", "image_path", "impath")
NAME_COLUMNS = ("class_name", "classname", "label_name", "name")  # how a class is called
CLASS_COLUMNS = ("class", "label", "category", "class_id", "label_id", "target")  # which class it is, by name or number
NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
FOLDER_COLUMNS = ("folder", "directory", "key", "original", *CLASS_COLUMNS)  # which class it is, in a file of names
SPLIT_COLUMNS = ("split", "set", "part", "subset")
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

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
        elif parts := self._part_folders():
            split = self._from_part_folders(parts)
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
        parts, order = _read_csv(self.list_path)
        return _split_of(parts, self.list_path, order)

    def _part_folders(self) -> dict[str, str]:
        """Part ("train", "val", "test") -> folder, if there is a `train` folder with class folders in it.

        ValueError if two folders are the same part, such as `val` and `validation`.
        """
        folders: dict[str, list[str]] = {}
        for name in list_folders(self.image_dir):
            folders.setdefault(PART_NAMES.get(name.lower(), ""), []).append(name)
        others = folders.pop("", [])
        if not any(list_folders(os.path.join(self.image_dir, name)) for name in folders.get("train", [])):
            return {}
        for part, names in folders.items():
            if len(names) > 1:
                raise ValueError(
                    f"{self.image_dir} has the folders {' and '.join(names)}: which one is {part}? Keep one"
                )
        if others:
            logger.warning(
                "%s: the folders %s are no part of the split and stay unused", self.image_dir, ", ".join(others)
            )
        return {part: names[0] for part, names in folders.items()}

    def _from_part_folders(self, folders: dict[str, str]) -> Split:
        """The split that lies in train/val/test folders, given by part."""
        parts: dict[str, list[Labelled]] = {}
        left_out: dict[str, str] = {}
        for part, folder in folders.items():
            top = os.path.join(self.image_dir, folder)
            parts[part] = [
                (f"{folder}/{name}/{file}", name)
                for name in class_folders(top)
                for file in class_images(os.path.join(top, name), left_out)
            ]
        warn_of_left_out(left_out)
        return _split_of(parts, self.image_dir)

    def _warn_of_unlisted(self, split: Split) -> None:
        """Say so if class folders hold images that the kept split does not know."""
        listed = {item.impath for item in split.items()}
        folders = list_folders(self.image_dir)
        there = {f"{folder}/{file}" for folder in folders for file in list_images(os.path.join(self.image_dir, folder))}
        if there - listed:
            logger.warning(
                "%d images in %s are not in %s and stay unused; delete that file to have a new split made",
                len(there - listed), self.image_dir, self.split_path,
            )  # fmt: skip

    def _named(self, split: Split) -> Split:
        """The split with the class names of `DATASET.CLASSNAMES`; warns of names that are numbers."""
        keys = {item.classname for item in split.items()}
        names = read_names(self.names_path, keys) if self.names_path else {}
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
        named = Split(**parts, origin=split.origin)
        numbers = [name for name in named.class_names() if NUMBER.fullmatch(name)]
        if numbers:
            prompt = self.template.format(numbers[0])
            logger.warning(
                "%d class names are numbers: prompts are %r; DATASET.CLASSNAMES gives names", len(numbers), prompt
            )
        return named


def _split_of(parts: dict[str, list[Labelled]], source: str, order: dict[str, int] | None = None) -> Split:
    """Rows with labels by class key, sorted or in the given order.

    Without parts ("" as the only one) the split is made. No test images: the val images are the test list. No val
    images: a fifth of each class of train.
    """
    keys = sorted(
        {key for rows in parts.values() for _, key in rows}, key=lambda key: (order[key] if order else 0, key)
    )
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
    if untested := sorted(set(keys) - {item.classname for item in test}):
        logger.warning("%s has no test image of %d classes: %s", source, len(untested), ", ".join(untested[:SHOWN]))
    return Split(train, val, test)


def _grouped(items: Iterable[Item]) -> list[list[Item]]:
    """Items by label, ascending, each sorted by path."""
    groups: dict[int, list[Item]] = {}
    for item in sorted(items):
        groups.setdefault(item.label, []).append(item)
    return [groups[label] for label in sorted(groups)]


def _columns(header: list[str], wanted: tuple[str, ...]) -> list[int]:
    """Positions of the header cells that are among `wanted`, in the order of these, in any case."""
    cells = [cell.strip().lower() for cell in header]
    return [cells.index(name) for name in wanted if name in cells]


def _text(path: str) -> str:
    """What a text file says, with its line ends; ValueError if it is none."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error})") from error


def _table(path: str, lines: Iterable[str]) -> list[list[str]]:
    """The rows of a CSV text with something in them, their cells stripped; ValueError if it is none."""
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file ({error})") from error
    return [row for row in rows if any(row)]


def _read_csv(path: str) -> tuple[dict[str, list[Labelled]], dict[str, int] | None]:
    """Part -> rows of a CSV file, and the order of the classes where the file has numbers for them.

    A file without a header, whose first line has an image, has the columns path and class, and perhaps split, in any
    order. The only part is "" if there is no split column. Raises ValueError naming the file, the line and what was
    expected.
    """
    table = _table(path, io.StringIO(_text(path), newline=""))
    header, rows = (table[0], table[1:]) if table else ([], [])
    first = 2
    if guessed := _headless(table):
        header, rows, first = guessed, table, 1
        logger.info("%s has no header: its columns are taken to be %s", path, ", ".join(header))
    if twice := sorted({cell for cell in header if cell and header.count(cell) > 1}):
        raise ValueError(f"{path}: two columns are called {twice[0]!r}")
    at_path, classes = _columns(header, PATH_COLUMNS)[:1], _columns(header, CLASS_COLUMNS + NAME_COLUMNS)
    if not at_path or not classes:
        raise ValueError(
            f"{path}: the first line must be an image with its class, or name the columns, one of "
            f"{', '.join(PATH_COLUMNS)} and one of "
            f"{', '.join(CLASS_COLUMNS + NAME_COLUMNS)} (and perhaps split); it is {header}"
        )
    for number, row in enumerate(rows, first):
        if len(row) != len(header) or not row[at_path[0]] or not any(row[at] for at in classes):
            raise ValueError(f"{path}, row {number}: expected {len(header)} cells with a path and a class, found {row}")
    names, order = _classes(header, rows, path)
    parts: dict[str, list[Labelled]] = {}
    for number, (row, name) in enumerate(zip(rows, names, strict=True), first):
        cells = [row[at] for at in _columns(header, SPLIT_COLUMNS)[:1]]
        part = PART_NAMES.get(cells[0].lower()) if cells else ""
        if part is None:
            raise ValueError(f"{path}, row {number}: the split must be train, val or test, found {cells[0]!r}")
        parts.setdefault(part, []).append((row[at_path[0]], name))
    if not parts:
        raise ValueError(f"{path} names no images")
    return parts, order


def _headless(table: list[list[str]]) -> list[str]:
    """The columns of a CSV file without a header, by what stands in them; [] for one that has a header."""
    known = {*PATH_COLUMNS, *CLASS_COLUMNS, *NAME_COLUMNS, *SPLIT_COLUMNS}
    if not table or len({len(row) for row in table}) > 1 or known & {cell.lower() for cell in table[0]}:
        return []
    images = [os.path.splitext(cell)[1].lower() in Image.registered_extensions() for cell in table[0]]
    parts = [all(row[at].lower() in PART_NAMES for row in table) for at in range(len(table[0]))]
    columns = ["path" if image else "split" if part else "class" for image, part in zip(images, parts, strict=True)]
    return columns if columns.count("path") == columns.count("class") == 1 and columns.count("split") < 2 else []


def _classes(header: list[str], rows: list[list[str]], path: str) -> tuple[list[str], dict[str, int] | None]:
    """The class name of each row, and the number of each class if a column has numbers for the classes.

    Among the columns that tell the classes apart, names win over numbers, and `NAME_COLUMNS` over the others.
    """
    present = _columns(header, NAME_COLUMNS + CLASS_COLUMNS)
    columns = {at: cells for at in present if all(cells := [row[at] for row in rows])}
    if not columns:
        raise ValueError(f"{path}: none of the columns of classes, {', '.join(header[at] for at in present)}, is full")
    first = columns[next(at for at in [*_columns(header, CLASS_COLUMNS), *present] if at in columns)]
    classes = len(set(first))
    same = [at for at in columns if len(set(columns[at])) == len(set(zip(columns[at], first, strict=True))) == classes]
    numbered = [at for at in columns if all(map(NUMBER.fullmatch, columns[at]))]
    if others := [header[at] for at in columns if at not in same]:
        sentence = f"{path}: the columns {', '.join(others)} do not go with the classes one to one"
        if not set(same) - set(numbered):
            raise ValueError(f"{sentence}, and without them the classes have numbers alone: correct or rename them")
        logger.warning("%s and are not used", sentence)
    at = next((at for at in same if at not in numbered), same[0])
    if len(columns) > 1:
        logger.info("%s: class names are those of the column %r", path, header[at])
    numbers = next((columns[at] for at in same if at in numbered), None)
    return columns[at], numbers and dict(zip(columns[at], (int(float(number)) for number in numbers), strict=True))


def read_names(path: str, classes: Collection[str] = ()) -> dict[str, str]:
    """File of class names: JSON `{"folder": "name"}`, or lines `folder,name`, with a header or without.

    Args:
        path: the file.
        classes: those that there are; a first line about one of them is no header.

    Raises:
        ValueError: neither of these, or a class is named twice.
        FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"DATASET.CLASSNAMES: there is no file {path}")
    text = _text(path)
    if path.lower().endswith(".json"):
        try:
            names = json.loads(text, object_pairs_hook=partial(_without_repeats, path))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error})") from error
        if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
            raise ValueError(f'{path} must be an object {{"folder": "class name", ...}}')
        return names
    rows = _table(path, text.splitlines())
    wrong = next((row for row in rows if len(row) != 2 or not all(row)), None)
    if wrong is not None:
        raise ValueError(f"{path}: each line must be `folder,class name`, found {wrong}")
    if rows and rows[0][0] not in classes:
        header = [cell.replace(" ", "_") for cell in rows[0]]
        at_folder, at_name = _columns(header, FOLDER_COLUMNS)[:1], _columns(header, (*NAME_COLUMNS, "prompt"))[:1]
        if at_folder and at_name and at_folder != at_name:
            rows = [[row[at_folder[0]], row[at_name[0]]] for row in rows[1:]]
    return _without_repeats(path, rows)


def _without_repeats(path: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs of a file as a dictionary; ValueError for a key that is there twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{path}: the class {key!r} is named twice: {found[key]!r} and {value!r}")
        found[key] = value
    return found
