"""Training lists that all methods share: files of JSON lines, one for each number of shots and seed.

2SFS publishes 165 of them (11 data sets, 1 to 16 shots, 3 seeds), called `shot_K-seed_S_train.jsonl`. Each line is one
training image: an object with its path, label and class name. `DATASET.SPLIT_LIST` names one such file, or a folder.

`python -m datasets.write_split_lists` writes the draws of the rule in this form. Beside each list lies its SHA-256
(`...jsonl.sha256`, as `sha256sum -c` reads it); a list that is not that of its digest is refused.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from dassl.utils import atomic_write
from dassl.utils.digests import DamagedError

from .splits import Item, Split, below_folder, parse_row

FILE_NAME = "shot_{shots}-seed_{seed}_train.jsonl"
DIGEST_SUFFIX = ".sha256"
# how a line may call its parts; with `_` in front they are the attributes of Dassl's Datum
PATHS, LABELS, NAMES = ("impath", "path", "image", "file"), ("label", "target"), ("classname", "class_name", "name")
SHOWN = 3


def read_list(path: str, image_folder: str = "") -> list[Item]:
    """The rows of a list, in the order of its lines.

    Args:
        path: the file.
        image_folder: name of the folder of the images; paths of another machine are taken relative to it.

    Raises:
        ValueError: the file cannot be read, is damaged, or a line is no image with its class (it is named).
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        _require_digest(path, content)
        lines = content.decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {path} cannot be read ({error})") from error
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    return [row._replace(impath=below_folder(row.impath, image_folder)) for row in rows]


def write_list(path: str, items: Iterable[Item]) -> None:
    """Write a list and its digest, each whole or not at all.

    The digest comes first: if the list does not follow, a list that was there before is refused, not taken for it.
    """
    rows = [{"impath": item.impath, "label": item.label, "classname": item.classname} for item in items]
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode("utf-8")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with atomic_write(f"{path}{DIGEST_SUFFIX}") as file:
        file.write(f"{hashlib.sha256(content).hexdigest()}  {os.path.basename(path)}\n")
    with atomic_write(path, "wb") as file:
        file.write(content)


def _require_digest(path: str, content: bytes) -> None:
    """Raise a DamagedError for a list whose digest lies beside it and is another one's."""
    beside = f"{path}{DIGEST_SUFFIX}"
    if not os.path.isfile(beside):
        return
    with open(beside, encoding="utf-8", errors="replace") as file:
        said = file.read().split()
    if said[:1] != [hashlib.sha256(content).hexdigest()]:
        raise DamagedError(f"the list {path} does not hold what was written to it: {beside} has another digest")


def _row(line: str, where: str) -> Item:
    """One line of a list; ValueError that says where it stands if it is none."""
    try:
        found = json.loads(line, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    if not isinstance(found, list) or not all(isinstance(pair, tuple) for pair in found):
        raise ValueError(f"{where}: expected an object with impath, label and classname, found {line[:80]}")
    return parse_row([_part(found, names, where) for names in (PATHS, LABELS, NAMES)], where)


def _part(pairs: Sequence[tuple[str, object]], names: Sequence[str], where: str) -> object:
    """The value that a line has under one of several names; ValueError unless it has exactly one."""
    values = [value for name, value in pairs if name.removeprefix("_") in names]
    if len(values) != 1:
        raise ValueError(f"{where}: expected one of the keys {', '.join(names)}, found {len(values)} of them")
    return values[0]


def listed_images(path: str, split: Split, shots: int, image_folder: str = "") -> list[Item]:
    """The training images of a list, as rows of the split.

    Args:
        path: the file.
        split: train, val and test of the data set, with all classes.
        shots: how many images of each class it has to have, or all where the split has fewer; below 1: any number.
        image_folder: as of `read_list`.

    Raises:
        ValueError: a row is no training image of the split or has another class there, an image is named twice, a
            class is missing, or has another number of images than `shots`.
    """
    rows = read_list(path, image_folder)
    known = {item.impath: item for item in split.train}
    elsewhere = {item.impath: part for part in ("val", "test") for item in split.parts()[part]}
    names = dict(enumerate(split.class_names()))
    for number, row in enumerate(rows, 1):
        where = f"the list {path}, image {number}, {row.impath}"
        if names.get(row.label) != row.classname:
            has = f"calls it {names[row.label]!r}" if row.label in names else f"has {len(names)} classes"
            raise ValueError(f"{where}: label {row.label} is {row.classname!r} there, but the data set {has}")
        if row.impath not in known:
            what = {"test": "a test image", "val": "a validation image"}.get(elsewhere.get(row.impath, ""), "no image")
            raise ValueError(f"{where}: it is {what} of the data set's split, and lists are of training images")
        if known[row.impath].label != row.label:
            of = known[row.impath].classname
            raise ValueError(f"{where}: its class is {row.classname!r} there, but {of!r} in the data set's split")
    _require_counts(rows, split, shots, path)
    return rows


def _require_counts(rows: Sequence[Item], split: Split, shots: int, path: str) -> None:
    """Raise a ValueError for an image that is there twice, and for a class with too few or too many images."""
    twice = [name for name, count in Counter(row.impath for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"the list {path} names {len(twice)} images twice, such as {twice[0]}")
    listed, available = (Counter(item.label for item in items) for items in (rows, split.train))
    names = dict(enumerate(split.class_names()))
    if missing := [names[label] for label in names if not listed[label]]:
        raise ValueError(f"the list {path} has no image of {len(missing)} classes: {', '.join(missing[:SHOWN])}")
    if wrong := [label for label in names if shots >= 1 and listed[label] != min(shots, available[label])]:
        label = wrong[0]
        raise ValueError(
            f"the list {path} has {listed[label]} images of {names[label]!r}, but DATASET.NUM_SHOTS is {shots} and "
            f"the split has {available[label]} training images of it"
        )


def find_list(place: str, dataset_dir: str, shots: int, seed: int) -> str:
    """The file of a number of shots and a seed.

    Args:
        place: DATASET.SPLIT_LIST: a file, or a folder with files called `shot_K-seed_S_train.jsonl` (or with a folder
            of them that has the name of the data set's own); relative to the data set's folder.
        dataset_dir: full path of the data set's folder.
        shots, seed: of the run.

    Raises:
        FileNotFoundError: there is no such file; the sentence names it.
        ValueError: the file's name says that it is of other shots or another seed.
    """
    full = os.path.join(dataset_dir, os.path.expanduser(place))
    own = os.path.join(full, os.path.basename(dataset_dir))
    folder = own if os.path.isdir(own) else full
    path = os.path.join(folder, FILE_NAME.format(shots=shots, seed=seed)) if os.path.isdir(folder) else full
    if not os.path.isfile(path):
        raise FileNotFoundError(f"DATASET.SPLIT_LIST {place}: there is no file {path}")
    said = re.search(r"shot_(\d+)-seed_(\d+)", os.path.basename(path))
    if said and (int(said[1]), int(said[2])) != (shots, seed):
        raise ValueError(
            f"DATASET.SPLIT_LIST {place}: {os.path.basename(path)} is of {said[1]} shots and seed {said[2]}, but the "
            f"run has {shots} shots and seed {seed}: name the folder of the lists instead"
        )
    return path
