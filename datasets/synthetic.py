"""Data sets that need no download: drawn from a seed, and the digits that scikit-learn ships.

If one is not under `DATASET.ROOT` yet, it is put there as ordinary picture files with an ordinary split file, in a
second or two; from then on it is a data set like any other. What they show is told in `synthetic/sets.py`.
"""

import json
import logging
import os
import shutil
from typing import Any, ClassVar

from PIL import Image
from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils.files import beside, remove_leftovers
from synthetic.sets import PARTS, SETS, VERSION, DrawnSet
from synthetic.tasks import drawn_task

from .fewshot import Counts, FewShotDataset
from .splits import Item, Split, write_split_file

logger = logging.getLogger(__name__)

NOTE = "drawn.json"  # says what the folder was drawn from


class DrawnDataset(FewShotDataset):
    """A data set of `synthetic.sets`, drawn under DATASET.ROOT on demand.

    `DATASET.DRAW_SEED` gives other pictures; the folder's name carries it unless it is 1.
    """

    drawn: ClassVar[DrawnSet]
    needs_root = False
    image_dir = "images"
    split_file = "split.json"
    CONFIG: ClassVar[dict[str, Any]] = {**FewShotDataset.CONFIG, "DRAW_SEED": 1}

    def locate(self, cfg: CfgNode) -> None:
        """Full paths under `cfg.DATASET.ROOT`."""
        super().locate(cfg)
        self.draw_seed = int(cfg.DATASET.get("DRAW_SEED", 1))
        if self.draw_seed < 0:
            raise ValueError(f"DATASET.DRAW_SEED is {self.draw_seed}; it must be 0 or more")
        if self.draw_seed != 1:
            self._move(f"{self.dataset_dir}_seed{self.draw_seed}")

    def _move(self, folder: str) -> None:
        """Put the data set into another folder."""
        old, self.dataset_dir = self.dataset_dir, folder
        for key in ("image_dir", "split_path", "split_fewshot_dir"):
            setattr(self, key, folder + getattr(self, key).removeprefix(old))

    def provide(self) -> None:
        """Draw the data set unless it is there; raise ValueError if what is there was drawn with other settings."""
        if not os.path.isdir(self.dataset_dir):
            self._draw()
        note = os.path.join(self.dataset_dir, NOTE)
        try:
            with open(note, encoding="utf-8") as file:
                there = json.load(file)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.dataset_dir} was not drawn by this program, or not completely ({error}): "
                "delete the folder, and it is drawn anew"
            ) from error
        if there != self._note():
            raise ValueError(
                f"{note} says {there}, but this program draws {self._note()}: delete the folder {self.dataset_dir}, "
                "and it is drawn anew"
            )

    def _note(self) -> dict[str, Any]:
        return {"set": self.drawn.name, "seed": self.draw_seed, "version": VERSION}

    def _draw(self) -> None:
        """Draw everything into a folder beside, then rename it; whoever comes second keeps the first one's."""
        logger.info("Drawing %s into %s", self._name, self.dataset_dir)
        remove_leftovers(os.path.dirname(self.dataset_dir))
        drawn = beside(self.dataset_dir)
        try:
            self._write(drawn)
            try:
                os.rename(drawn, self.dataset_dir)
            except OSError:
                if not os.path.isdir(self.dataset_dir):
                    raise
        finally:
            shutil.rmtree(drawn, ignore_errors=True)

    def _write(self, folder: str) -> None:
        """Write the pictures, one folder per class, the split file and the note."""
        names = self.drawn.class_names
        parts: dict[str, list[Item]] = {part: [] for part in PARTS}
        for name in names:
            os.makedirs(os.path.join(folder, "images", name.replace(" ", "_")))
        for part in PARTS:
            for index, (label, picture) in enumerate(self.drawn.pictures(part, self.draw_seed)):
                item = Item(f"{names[label].replace(' ', '_')}/{part}_{index:04d}.png", label, names[label])
                Image.fromarray(picture).save(os.path.join(folder, "images", item.impath))
                parts[part].append(item)
        write_split_file(Split(**parts, origin=f"drawn from seed {self.draw_seed}"), os.path.join(folder, "split.json"))
        with open(os.path.join(folder, NOTE), "w", encoding="utf-8") as file:
            json.dump(self._note(), file)


def _counts(drawn: DrawnSet) -> Counts:
    classes = len(drawn.class_names)
    return Counts(classes, *(classes * size for size in drawn.sizes))


@DATASET_REGISTRY.register()
class DrawnEasy(DrawnDataset):
    """Objects in colours that the carried CLIP never saw on them."""

    drawn = SETS["easy"]
    dataset_dir = "drawn_easy"
    counts = _counts(drawn)


@DATASET_REGISTRY.register()
class DrawnThermal(DrawnDataset):
    """Objects as an infrared camera would show them."""

    drawn = SETS["thermal"]
    dataset_dir = "drawn_thermal"
    counts = _counts(drawn)


@DATASET_REGISTRY.register()
class DrawnChalk(DrawnDataset):
    """Objects in chalk on a board."""

    drawn = SETS["chalk"]
    dataset_dir = "drawn_chalk"
    counts = _counts(drawn)


@DATASET_REGISTRY.register()
class DrawnClutter(DrawnDataset):
    """Objects before textured backgrounds, under spots."""

    drawn = SETS["clutter"]
    dataset_dir = "drawn_clutter"
    counts = _counts(drawn)


@DATASET_REGISTRY.register()
class DrawnTextures(DrawnDataset):
    """Ten textures, fine and coarse."""

    drawn = SETS["textures"]
    dataset_dir = "drawn_textures"
    counts = _counts(drawn)


@DATASET_REGISTRY.register()
class DrawnPolystar(DrawnDataset):
    """Polygons, stars and flowers by their number of sides, points and petals."""

    drawn = SETS["polystar"]
    dataset_dir = "drawn_polystar"
    counts = _counts(drawn)


@DATASET_REGISTRY.register()
class Digits(DrawnDataset):
    """Handwritten digits, the 1797 real ones that scikit-learn ships."""

    drawn = SETS["digits"]
    dataset_dir = "digits"
    counts = Counts(classes=10, train=719, val=179, test=899)


@DATASET_REGISTRY.register()
class DrawnTask(DrawnDataset):
    """One of any number of data sets that are drawn from seeds (`synthetic.tasks`); `DATASET.TASK` says which."""

    dataset_dir = "drawn_task"
    CONFIG: ClassVar[dict[str, Any]] = {**DrawnDataset.CONFIG, "TASK": 0}

    def locate(self, cfg: CfgNode) -> None:
        """Full paths under `cfg.DATASET.ROOT`, a folder for each task."""
        number = int(cfg.DATASET.get("TASK", 0))
        self.drawn = drawn_task(number)  # type: ignore[misc]  # of the other sets the class has it
        super().locate(cfg)
        self._move(os.path.join(self.dataset_dir, f"task_{number}"))
