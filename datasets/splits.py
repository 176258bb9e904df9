"""Splits as plain rows: which image is in train, val or test. Files, hashes, draws and halves of them.

A split file is JSON in the format of the CoOp family:
`{"train": [[path relative to the image folder, label, class name], ...], "val": [...], "test": [...]}`.
"""

import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from dassl.utils import atomic_write
from dassl.utils.images import SUFFIXES, is_image_file

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
NO_CLASSES = ("__MACOSX", "split_fewshot")  # folders that archives and this program put beside class folders
SHOWN = 5  # of many files
SPLIT_SEED = 1  # of the generator that makes splits where no split file exists: one tree, one split

Labelled = TypeVar("Labelled")  # anything with `label` and `classname`: Item here, Datum in files of others


class Item(NamedTuple):
    """One labelled image: path relative to the image folder (or absolute), label from 0, class name."""

    impath: str
    label: int
    classname: str


@dataclass(frozen=True)
class Split:
    """The three lists of a split; `origin` says who made it ("" for split files of others)."""

    train: list[Item]
    val: list[Item] = field(default_factory=list)
    test: list[Item] = field(default_factory=list)
    origin: str = ""

    def parts(self) -> dict[str, list[Item]]:
        """The lists by name, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def items(self) -> Iterator[Item]:
        """Every row: train, then val, then test."""
        for part in self.parts().values():
            yield from part

    def class_names(self) -> list[str]:
        """Class names by label, of all three lists."""
        names = {item.label: item.classname for item in self.items()}
        return [names[label] for label in sorted(names)]

    def digest(self) -> str:
        """SHA-256 of the rows, whatever the spacing of the file that they came from."""
        rows = json.dumps([self.train, self.val, self.test], separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(rows.encode("utf-8", "surrogatepass")).hexdigest()


def parse_row(row: object, where: str) -> Item:
    """One row of a split file as an Item; ValueError saying where it stands if it is not one."""
    if not isinstance(row, list) or len(row) != 3:
        raise ValueError(f"{where}: expected [path, label, class name], found {row!r}")
    path, label, name = row
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{where}: the path must be a non-empty string, found {path!r}")
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise ValueError(f"{where}: the label must be a whole number from 0, found {label!r}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: the class name must be a non-empty string, found {name!r}")
    return Item(path, label, name)


def parse_rows(rows: object, where: str) -> list[Item]:
    """A list of `[path, label, class name]` as Items; ValueError beginning with `where` otherwise."""
    if not isinstance(rows, list):
        raise ValueError(f"{where}: expected a list of [path, label, class name], found {type(rows).__name__}")
    return [parse_row(row, f"{where}, row {number}") for number, row in enumerate(rows)]


def below_folder(path: str, folder: str) -> str:
    """A path that was written on whatever machine, relative to the folder of that name, if it has one.

    The last such folder counts: a path may begin with one of the same name.
    """
    path = path.replace("\\", "/")
    _, found, relative = f"/{path}".rpartition(f"/{folder}/")
    return relative if found else path


def read_split_file(path: str) -> Split:
    """Read a split file. Raises ValueError, naming the file and the place in it, if it is not one."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"split file {path} is not JSON ({error}); fetch it again or delete it") from error
    if not isinstance(content, dict) or any(part not in content for part in PARTS):
        raise ValueError(f"split file {path} must be an object with the lists train, val and test")
    lists = {part: parse_rows(content[part], f'split file {path}, "{part}"') for part in PARTS}
    split = Split(**lists, origin=str(content.get("origin", "")))
    check_labels(split, f"split file {path}")
    return split


def write_split_file(split: Split, path: str) -> None:
    """Write a split file, whole or not at all; `origin` is an extra key that readers of the family ignore."""
    content: dict[str, object] = dict(split.parts())
    if split.origin:
        content["origin"] = split.origin
    text = json.dumps(content, indent=1)
    with atomic_write(path) as file:
        file.write(text)


def check_names(split: Split) -> None:
    """Raise ValueError for a class name that is no text, such as that of a folder whose name is not UTF-8."""
    for name in split.class_names():
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(
                f"the class name {os.fsencode(name)!r} is not UTF-8: rename the folder, or correct the list"
            )


def check_labels(split: Split, source: str) -> None:
    """Raise ValueError unless train labels are 0..C-1, each with one name, and val and test use no others."""
    if not split.train:
        raise ValueError(f"{source} has no training images")
    names: dict[int, str] = {}
    for item in split.items():
        known = names.setdefault(item.label, item.classname)
        if known != item.classname:
            raise ValueError(f"{source} gives label {item.label} two names: {known!r} and {item.classname!r}")
    trained = {item.label for item in split.train}
    if trained != set(range(len(trained))):
        absent = next(label for label in range(max(trained) + 1) if label not in trained)
        called = f" ({names[absent]!r})" if absent in names else ""
        raise ValueError(
            f"{source}: training labels must be 0 to C-1 without gaps; there are {len(trained)} labels, "
            f"the largest is {max(trained)}, and label {absent}{called} has no training image"
        )
    for part in ("val", "test"):
        strange = sorted({item.label for item in split.parts()[part]} - trained)
        if strange:
            shown = ", ".join(names[label] for label in strange[:SHOWN])
            raise ValueError(f"{source}: {part} has labels that train lacks: {strange[:SHOWN]} ({shown})")


def list_images(folder: str, left_out: dict[str, str] | None = None) -> list[str]:
    """Sorted names of the image files in `folder`; `left_out` gets path and reason of all else there."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            reason = _why_left_out(entry)
            if not reason:
                found.append(entry.name)
            elif left_out is not None:
                left_out[entry.path] = reason
    return sorted(found)


def _why_left_out(entry: os.DirEntry[str]) -> str:
    """Why something in a class folder is not taken as an image; "" if it is."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_dir():
        return "a folder below a class folder"
    return "" if entry.is_file() and is_image_file(entry.path) else "no image"


def warn_of_left_out(left_out: dict[str, str]) -> None:
    """Say which files of class folders are not used."""
    if left_out:
        shown = ", ".join(f"{path} ({reason})" for path, reason in sorted(left_out.items())[:SHOWN])
        more = f" and {len(left_out) - SHOWN} more, which datasets.check --json lists" if len(left_out) > SHOWN else ""
        logger.warning("%d files in class folders are left out: %s%s", len(left_out), shown, more)


def class_images(folder: str, left_out: dict[str, str]) -> list[str]:
    """The images of a class folder (see `list_images`); ValueError naming the folder if it has none."""
    images = list_images(folder, left_out)
    if not images:
        there = sorted(os.path.basename(path) for path in left_out if os.path.dirname(path) == folder)
        holds = f"only {', '.join(there[:SHOWN])}" if there else "nothing"
        raise ValueError(f"the class folder {folder} has no image; it holds {holds}: put images there or remove it")
    return images


def list_folders(folder: str) -> list[str]:
    """Sorted names of the folders in `folder`, hidden ones and `NO_CLASSES` left out."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return sorted(name for name in names if not name.startswith(".") and name not in NO_CLASSES)


def class_folders(folder: str) -> list[str]:
    """The class folders in `folder` (see `list_folders`). Warns of hidden folders and of images beside class folders.

    Raises ValueError for a link that leads nowhere, whose class would vanish.
    """
    hidden, loose = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not os.path.exists(entry.path):
                raise ValueError(f"{entry.path} is a link to nothing: mend or remove it")
            if entry.name.startswith("."):
                hidden += [entry.name] if entry.is_dir() else []
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                loose.append(entry.name)
    for names, what in (
        (hidden, "hidden folders, which are no classes"),
        (loose, "images beside the class folders, which are not used"),
    ):
        if names:
            logger.warning("%s: %d %s: %s", folder, len(names), what, ", ".join(sorted(names)[:SHOWN]))
    return list_folders(folder)


def portions(count: int, p_train: float, p_val: float, what: str) -> tuple[int, int]:
    """How many of `count` images go to train and to val (the rest: test).

    `round(p_train n)` and `round(p_val n)`, but never an empty train or test; ValueError for under 2 images.
    """
    if count < 2:
        raise ValueError(f"{what} has {count} image(s); a split into train and test needs at least 2")
    n_train = min(max(1, round(count * p_train)), count - 1)
    n_val = min(round(count * p_val), count - n_train - 1)
    return n_train, n_val


def split_groups(
    groups: Iterable[list[Item]], p_train: float = 0.5, p_val: float = 0.2, rng: random.Random | None = None
) -> Split:
    """Shuffle each group (one class each) and cut it into train, val and test."""
    rng = rng or random.Random(SPLIT_SEED)
    split = Split([], [], [])
    for group in groups:
        items = list(group)
        rng.shuffle(items)
        what = f"class {items[0].classname!r}" if items else "a class"
        n_train, n_val = portions(len(items), p_train, p_val, what)
        split.train.extend(items[:n_train])
        split.val.extend(items[n_train : n_train + n_val])
        split.test.extend(items[n_train + n_val :])
    return split


def read_folders(image_dir: str, name_of: Callable[[str], str] = str, ignored: Sequence[str] = ()) -> list[list[Item]]:
    """The images of each class folder of `image_dir`: folders sorted, label = position, files sorted.

    Warns of files that are no images; raises ValueError for a folder without images.
    """
    folders = [name for name in class_folders(image_dir) if name not in ignored]
    if not folders:
        raise ValueError(f"no class folders in {image_dir}")
    left_out: dict[str, str] = {}
    groups = [
        [
            Item(f"{folder}/{file}", label, name_of(folder))
            for file in class_images(os.path.join(image_dir, folder), left_out)
        ]
        for label, folder in enumerate(folders)
    ]
    warn_of_left_out(left_out)
    return groups


def split_trainval(
    trainval: Sequence[Labelled], p_val: float = 0.2, rng: random.Random | None = None
) -> tuple[list[Labelled], list[Labelled]]:
    """Move `round(p_val n)` random images of each class from a training list to val.

    Classes in order of first appearance; returns (train, val). Never takes a class's only image.
    """
    rng = rng or random.Random(SPLIT_SEED)
    by_label: dict[int, list[Labelled]] = {}
    for item in trainval:
        by_label.setdefault(item.label, []).append(item)
    train: list[Labelled] = []
    val: list[Labelled] = []
    for items in by_label.values():
        order = list(range(len(items)))
        rng.shuffle(order)
        n_val = min(round(len(items) * p_val), len(items) - 1)
        val.extend(items[index] for index in order[:n_val])
        train.extend(items[index] for index in order[n_val:])
    return train, val


def half_labels(labels: Iterable[int], subsample: str) -> dict[int, int]:
    """Old label -> new label of the classes kept: "base" the first ceil(C/2) labels, "new" the rest, or "all".

    Labels are taken sorted; kept ones are numbered from 0.
    """
    ordered = sorted(set(labels))
    middle = (len(ordered) + 1) // 2
    kept = {"all": ordered, "base": ordered[:middle], "new": ordered[middle:]}
    if subsample not in kept:
        raise ValueError(f'DATASET.SUBSAMPLE_CLASSES is {subsample!r}; it must be "all", "base" or "new"')
    if not kept[subsample]:
        raise ValueError(f'DATASET.SUBSAMPLE_CLASSES is "{subsample}", but there is only {len(ordered)} class')
    return {old: new for new, old in enumerate(kept[subsample])}


def subsample_split(split: Split, subsample: str) -> Split:
    """Keep the classes of one half (see `half_labels`), relabelled from 0."""
    if subsample == "all":
        return split
    new_label = half_labels((item.label for item in split.train), subsample)
    parts = {
        name: [item._replace(label=new_label[item.label]) for item in part if item.label in new_label]
        for name, part in split.parts().items()
    }
    return Split(**parts, origin=split.origin)


def hint_at_backslashes(path: str) -> str:
    """What to do about a path that is not there, if it was written on Windows; else ""."""
    return " The list has paths with backslashes: write them with /." if "\\" in path else ""


def missing_files(image_dir: str, items: Iterable[Item]) -> list[str]:
    """Full paths of the items whose file is not there; one directory listing per folder."""
    listed: dict[str, set[str]] = {}
    missing = []
    for item in items:
        path = os.path.join(image_dir, item.impath)
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            missing.append(path)
    return missing


@contextmanager
def official_stream(seed: int) -> Iterator[None]:
    """Python's global generator as it stands just after `random.seed(seed)`; put back afterwards.

    The few-shot draw of the official code comes from the freshly seeded global generator. Doing it inside this
    context gives that draw whatever was drawn before, and leaves nothing behind. `seed < 0`: the generator as it is.
    """
    if seed < 0:
        yield
        return
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
