"""The one few-shot base class: a benchmark is a short declaration on it.

What happens when a data set is built, in this order: find the folders; read the split file, or make the split from
the raw files and write it; draw the few-shot subset (the official draw for the seed, kept as JSON) from *all*
classes, or take a given list; keep the base or the new half of the classes; give some training images wrong labels, if
that is asked for.
"""

import logging
import os
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from yacs.config import CfgNode

from dassl.data.datasets import DatasetBase, Datum
from dassl.data.datasets.base_dataset import draw_shots

from . import caches
from .folds import parse_fold, support_fold
from .imbalance import Imbalance, draw_unbalanced
from .label_noise import check_noise, with_wrong_labels
from .matlab import read_matlab
from .outliers import NEW, images_of, new_class_images, without_label
from .sources import Part
from .split_lists import find_list, listed_images
from .splits import (
    Item,
    Split,
    check_labels,
    check_names,
    hint_at_backslashes,
    list_folders,
    missing_files,
    official_stream,
    read_folders,
    read_split_file,
    split_groups,
    subsample_split,
    write_split_file,
)

logger = logging.getLogger(__name__)

VAL_SHOTS = 4  # at most so many validation images per class, unless DATASET.VAL_SHOTS says otherwise


@dataclass(frozen=True)
class Counts:
    """Images per list and classes that the published data set has."""

    classes: int
    train: int
    val: int
    test: int


class FewShotDataset(DatasetBase):
    """A data set of labelled images with a train/val/test split, few-shot draws and base/new halves.

    A benchmark sets the class attributes; after construction `dataset_dir` and `image_dir` are full paths. One whose
    split cannot be made from class folders overrides `make_split`; one that needs no images on disk beforehand
    overrides `provide`, which is called before anything is looked for.
    """

    dataset_dir: str = ""  # folder under DATASET.ROOT
    image_dir: str = ""  # folder of the images under dataset_dir; paths in the split file are relative to it
    split_file: str | None = ""  # under dataset_dir; "" means split_zhou_<class name>.json, None that there is none
    class_folders: bool = True  # images lie in one folder per class
    ignored: tuple[str, ...] = ()  # folders that are no classes
    renamed: ClassVar[dict[str, str]] = {}  # folder -> class name, where they differ
    val_is_test: bool = False  # no validation list of its own: the test list stands for it
    template: str = "a photo of a {}."  # zero-shot prompt
    counts: Counts | None = None
    parts: tuple[Part, ...] = ()  # what the set consists of and where it comes from
    needs_root: bool = True  # DATASET.ROOT has to be there before it is loaded
    replaceable: bool = True  # a dropped-in data set of the same name takes its place
    keeps: bool = True  # write the split file and the draws that are made (tools that only look say no)
    val_shots: int = VAL_SHOTS
    draws: bool = True  # few-shot lists are drawn from it; not from sets that are for evaluation alone
    CONFIG: ClassVar[dict[str, Any]] = {  # keys under DATASET, with defaults
        "TEMPLATE": "",
        "VAL_SHOTS": VAL_SHOTS,  # 0: no validation list at all
        "FOLD": "",  # part of the support set that is tested on (folds.py)
        "SPLIT_LIST": "",  # training images from a list (split_lists.py)
        "SHOTS_PER_CLASS": [],  # of each class by label, in place of NUM_SHOTS (imbalance.py)
        "SHOTS_POWER_LAW": 0.0,
        "SHOTS_DIRICHLET": 0.0,
        "NOISE_RATE": 0.0,  # share of the training images with a wrong label (label_noise.py)
        "NOISE_TYPE": "sym",
        "OOD": "",  # further test images, of none of the classes: of the new ones, or of another set (outliers.py)
    }

    def __init__(self, cfg: CfgNode):
        self.locate(cfg)
        self.provide()
        self.check_folders()
        split = self.load_split()
        check_names(split)
        self.full_split_hash = split.digest()
        whole = split
        split = self.few_shot(split, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        split = self.select_base_or_new(split, cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"))
        if fold := cfg.DATASET.get("FOLD", ""):
            split = support_fold(split, parse_fold(fold))
        self.check_files(split)
        train = self.datums(split.train)
        test = train if split.test is split.train else self.datums(split.test)
        val = test if self.val_is_test else self.datums(split.val) or None
        super().__init__(train_x=train, val=val if self.val_shots else None, test=test)
        if self.noise_rate and self.draws:
            self._give_wrong_labels(cfg.SEED)
        if outliers := cfg.DATASET.get("OOD", ""):
            self._test = [*test, *without_label(self._outliers(outliers, whole))]

    def _give_wrong_labels(self, seed: int) -> None:
        """Put a training list in place in which some labels are wrong."""
        right = self.train_x
        self._train_x = with_wrong_labels(right, self.classnames, self.noise_rate, self.noise_type, seed)
        self.wrong_labels = sum(a.label != b.label for a, b in zip(right, self.train_x, strict=True))

    def _outliers(self, source: str, split: Split) -> list[Datum]:
        """Test images of none of the evaluated classes, of the whole split or of another data set."""
        if source != NEW:
            return images_of(source, self.root, self.classnames)
        others = Split([], [], new_class_images(split, set(self.classnames)))
        self.check_files(others)
        return self.datums(others.test)

    @classmethod
    def located(cls, cfg: CfgNode) -> Self:
        """The data set with its paths set and nothing read: what tools work on."""
        dataset = cls.__new__(cls)
        dataset.locate(cfg)
        return dataset

    def locate(self, cfg: CfgNode) -> None:
        """Turn the declared folders into full paths under `cfg.DATASET.ROOT`; ValueError if that is empty."""
        if not cfg.DATASET.ROOT:
            raise ValueError("DATASET.ROOT is empty: say where the data lie with --root")
        kind = type(self)
        self.root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(self.root, kind.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, kind.image_dir) if kind.image_dir else self.dataset_dir
        self.split_path = os.path.join(self.dataset_dir, kind.split_file or f"split_zhou_{kind.__name__}.json")
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")
        self.template = cfg.DATASET.get("TEMPLATE", "") or kind.template
        self.val_shots = cfg.DATASET.get("VAL_SHOTS", VAL_SHOTS)
        if self.val_shots < 0:
            raise ValueError(f"DATASET.VAL_SHOTS is {self.val_shots}, but must be at least 0")
        self._read_training_keys(cfg)
        if self.template.count("{}") != 1 or "{" in self.template.replace("{}", ""):
            raise ValueError(f"DATASET.TEMPLATE is {self.template!r}; it must have {{}} once, for the class name")

    def _read_training_keys(self, cfg: CfgNode) -> None:
        """Take over how training lists are made; ValueError for keys that exclude each other or are out of range."""
        node = cfg.DATASET
        self.split_list = node.get("SPLIT_LIST", "")
        given, power_law, dirichlet = (
            node.get(key, 0) for key in ("SHOTS_PER_CLASS", "SHOTS_POWER_LAW", "SHOTS_DIRICHLET")
        )
        self.imbalance = Imbalance(tuple(given or ()), power_law, dirichlet)
        self.noise_rate, self.noise_type = node.get("NOISE_RATE", 0.0), node.get("NOISE_TYPE", "sym")
        check_noise(self.noise_rate, self.noise_type)
        if self.split_list and self.imbalance:
            raise ValueError(
                f"DATASET.SPLIT_LIST {self.split_list} says how many images a class has: leave out {self.imbalance}"
            )
        if self.imbalance and node.NUM_SHOTS < 1:
            raise ValueError(
                f"{self.imbalance} needs DATASET.NUM_SHOTS, the mean over the classes, not {node.NUM_SHOTS}"
            )

    def provide(self) -> None:
        """Put the images in place where the data set can do so itself; nothing by default."""

    def check_folders(self) -> None:
        """Raise FileNotFoundError, saying what was looked for and what to do, unless the image folder is there."""
        if not os.path.isdir(self.root):
            raise FileNotFoundError(f"{self._name}: DATASET.ROOT (--root) is {self.root}, which is not a folder")
        if not os.path.isdir(self.image_dir):
            there = ", ".join(list_folders(self.root)[:20]) or "no folders"
            raise FileNotFoundError(
                f"{self._name}: no image folder {self.image_dir}; --root {self.root} holds: {there}. {self.advice}"
            )

    def raw_file(self, name: str) -> str:
        """Full path of a raw annotation file under `dataset_dir`; FileNotFoundError if it is not there."""
        path = os.path.join(self.dataset_dir, name)
        if not os.path.isfile(path):
            instead = "" if self.split_file is None else f", nor the split file {self.split_path}"
            raise FileNotFoundError(f"{self._name}: {path} is not there{instead}. {self.advice}")
        return path

    def read_mat(self, name: str, key: str) -> list[Any]:
        """Values of array `key` of a MATLAB file under `dataset_dir`, records as dictionaries."""
        return read_matlab(self.raw_file(name), key)

    def read_lines(self, name: str) -> list[tuple[str, str]]:
        """Non-empty lines of a raw text file under `dataset_dir`, each with its place for error messages."""
        path = self.raw_file(name)
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
        return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line]

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def advice(self) -> str:
        """What to do about files that are not there."""
        return (
            f"Fetch it with `python -m datasets.prepare {self._name} --root {self.root}`, "
            "or see docs/DATASETS.md for what goes where."
        )

    def class_name(self, folder: str) -> str:
        """Class name that stands for a class folder."""
        return self.renamed.get(folder, folder)

    def make_split(self) -> Split:
        """The split where there is no split file: half of each class train, a fifth val, the rest test."""
        return split_groups(read_folders(self.image_dir, self.class_name, self.ignored))

    def load_split(self) -> Split:
        """Read the split file, or make the split from the raw files and write the file.

        Raises ValueError for a split file that is damaged or belongs to other files.
        """
        if os.path.isfile(self.split_path):
            logger.info("Reading split from %s", self.split_path)
            split = read_split_file(self.split_path)
            self.check_split(split)
            return split
        made = self.make_split()
        split = Split(made.train, made.val, made.test, origin=f"made from the raw files of {self._name}")
        check_labels(split, f"the split made from the raw files in {self.dataset_dir}")
        if self.keeps:
            self._keep_split(split)
        return split

    def _keep_split(self, split: Split) -> None:
        """Write the split file, or say that it cannot be written."""
        try:
            write_split_file(split, self.split_path)
            logger.info("Saved split to %s", self.split_path)
        except OSError as error:
            logger.warning("Cannot keep the split in %s (%s); it is made anew each time", self.split_path, error)

    def check_split(self, split: Split) -> None:
        """Raise ValueError if the split file names class folders that are not among the images."""
        if not self.class_folders:
            return
        there = set(list_folders(self.image_dir))
        named = {
            os.path.normpath(item.impath).split("/")[0] for item in split.items() if not os.path.isabs(item.impath)
        }
        strange = sorted(named - there)
        if strange:
            raise ValueError(
                f"split file {self.split_path} names {len(strange)} of its {len(named)} class folders that are not in "
                f"{self.image_dir} ({', '.join(strange[:5])}); there are: {', '.join(sorted(there)[:5]) or 'none'}. "
                f"It belongs to another data set or the images are incomplete: fetch the right file, or delete it to "
                f"have a split made from the folders.{hint_at_backslashes(strange[0])}"
            )

    def few_shot(self, split: Split, shots: int, seed: int) -> Split:
        """Keep `shots` training and min(shots, VAL_SHOTS) validation images of each class; all of them if `shots < 1`.

        A given list is taken as it is, without validation images; an unbalanced draw has more images of some classes.
        The draw is the official one for the seed: train before val from the freshly seeded global generator. It is
        kept under `split_fewshot/` with the split's hash in the name, unless there is no seed (`seed < 0`).
        """
        if self.split_list or self.imbalance:
            return self._own_shots(split, shots, seed)
        if shots < 1:
            return split
        more = "" if self._usual_val_shots(shots) else f"-val_{min(shots, self.val_shots)}"
        kept = os.path.join(self.split_fewshot_dir, f"shot_{shots}-seed_{seed}{more}-{split.digest()[:12]}.json")
        drawn = self._kept_draw(split, kept, shots, seed) if seed >= 0 else None
        self.draw_source = "rule"
        if drawn is not None and drawn != self.rule_draw(split, shots, seed):
            self.draw_source = "stored"
            logger.warning(
                "The stored draw of %d shots, seed %d in %s is not what the rule gives for this split; it is used",
                shots, seed, self.split_fewshot_dir,
            )  # fmt: skip
        if drawn is None:
            drawn = self.draw(split, shots, seed)
            if seed >= 0:
                self._keep_draw(kept, drawn)
        return Split(drawn[0], drawn[1], split.test, split.origin)

    def _own_shots(self, split: Split, shots: int, seed: int) -> Split:
        """The split with the training images of the given list, or of an unbalanced draw; neither is kept on disk."""
        if not self.split_list:
            self.draw_source = "rule"
            return Split(*self.draw(split, shots, seed), split.test, split.origin)
        path = find_list(self.split_list, self.dataset_dir, shots, seed)
        train = listed_images(path, split, shots, os.path.basename(self.image_dir))
        logger.info("Training on the images that %s lists", path)
        self.draw_source = "list"
        return Split(train, [], split.test, split.origin)

    def draw(self, split: Split, shots: int, seed: int) -> tuple[list[Item], list[Item]]:
        """Draw the few-shot (train, val) lists."""
        draw_balanced: Any = self.generate_fewshot_dataset
        count = min(shots, self.val_shots)
        with official_stream(seed):
            if self.imbalance:
                train = draw_unbalanced(split, self.imbalance, shots, seed)
            else:
                train = draw_balanced(split.train, num_shots=shots)
            return train, draw_balanced(split.val, num_shots=count) if split.val and count else []

    def rule_draw(self, split: Split, shots: int, seed: int) -> tuple[list[Item], list[Item]]:
        """The (train, val) lists that `draw` gives, without a word in the log."""
        with official_stream(seed):
            train = draw_shots(split.train, shots)
            return train, draw_shots(split.val, min(shots, self.val_shots))

    def _usual_val_shots(self, shots: int) -> bool:
        """Whether there are as many validation images as the official code draws for these shots."""
        return min(shots, self.val_shots) == min(shots, VAL_SHOTS)

    def _kept_draw(self, split: Split, kept: str, shots: int, seed: int) -> tuple[list[Item], list[Item]] | None:
        """The draw of our own cache, else of a cache of the official code, else None."""
        official = os.path.join(self.split_fewshot_dir, f"shot_{shots}-seed_{seed}.pkl")
        if os.path.isfile(kept):
            logger.info("Loading preprocessed few-shot data from %s", kept)
            drawn = caches.read_draw(kept, split)
            if drawn is not None:
                return drawn
        if os.path.isfile(official) and self._usual_val_shots(shots):
            logger.info("Loading preprocessed few-shot data from %s", official)
            return caches.read_official_draw(official, split, os.path.basename(self.image_dir))
        return None

    def _keep_draw(self, path: str, drawn: tuple[list[Item], list[Item]]) -> None:
        """Write the draw, or say that it cannot be written."""
        try:
            logger.info("Saving preprocessed few-shot data to %s", path)
            caches.write_draw(path, *drawn)
        except OSError as error:
            logger.warning("Cannot keep the draw in %s (%s)", path, error)

    def select_base_or_new(self, split: Split, subsample: str) -> Split:
        """Keep the base or the new classes, relabelled from 0."""
        if subsample != "all":
            logger.info("SUBSAMPLE %s CLASSES!", subsample.upper())
        return subsample_split(split, subsample)

    def check_files(self, split: Split) -> None:
        """Raise FileNotFoundError, naming the first, if images of the split are not there."""
        missing = missing_files(self.image_dir, split.items())
        if missing:
            total = sum(len(part) for part in split.parts().values())
            raise FileNotFoundError(
                f"{self._name}: {len(missing)} of {total} images are missing, the first is {missing[0]}."
                f"{hint_at_backslashes(missing[0])} {self.advice}"
            )

    def inspect(self) -> list[str]:
        """What a closer look at the files finds, beyond what loading refuses; one sentence each."""
        return []

    def datums(self, items: list[Item]) -> list[Datum]:
        """Rows as the engine's Datum, with full paths."""
        return [
            Datum(impath=os.path.join(self.image_dir, item.impath), label=item.label, classname=item.classname)
            for item in items
        ]
