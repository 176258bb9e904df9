"""Oxford-IIIT Pets (Parkhi et al., CVPR 2012); files of the CoOp family take their helpers from here."""

import os
from collections.abc import Sequence

from dassl.data.datasets import DATASET_REGISTRY, Datum, subsample_classes

from . import splits
from .fewshot import Counts, FewShotDataset
from .sources import Download, Part, split_part
from .splits import Item, Split


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    """37 breeds. Raw lists: `annotations/trainval.txt` and `test.txt`, lines `name class species breed`."""

    dataset_dir = "oxford_pets"
    image_dir = "images"
    class_folders = False
    template = "a photo of a {}, a type of pet."
    counts = Counts(classes=37, train=2944, val=736, test=3669)
    parts = (
        split_part("OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
        Part(
            "images",
            ("images",),
            (
                Download(
                    "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                    "images.tar.gz",
                    "5c4f3ee8e5d25df40f4fd59a7f44e54c",
                    {"images": "images"},
                ),
            ),
        ),
        Part(
            "annotations",
            ("annotations",),
            (
                Download(
                    "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
                    "annotations.tar.gz",
                    "95a8c909bbe2e81eed6a22bccdf3f68f",
                    {"annotations": "annotations"},
                ),
            ),
            unless="split_zhou_OxfordPets.json",
        ),
    )

    def make_split(self) -> Split:
        """A fifth of each class of the official training list is val; the test list as it is."""
        trainval = self.read_list("trainval.txt")
        train, val = splits.split_trainval(trainval)
        return Split(train, val, self.read_list("test.txt"))

    def read_list(self, name: str) -> list[Item]:
        """Rows of one raw list; the class name is the file name without its number, in lower case."""
        items = []
        for where, line in self.read_lines(os.path.join("annotations", name)):
            words = line.split()
            if len(words) < 2 or not words[1].isdigit():
                raise ValueError(f"{where}: expected `name class species breed`, found {line!r}")
            items.append(Item(f"{words[0]}.jpg", int(words[1]) - 1, words[0].rpartition("_")[0].lower()))
        return items

    @staticmethod
    def read_split(filepath: str, path_prefix: str) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Read a split file as (train, val, test) with paths under `path_prefix`."""
        split = splits.read_split_file(filepath)
        train, val, test = (
            [Datum(os.path.join(path_prefix, item.impath), item.label, classname=item.classname) for item in part]
            for part in split.parts().values()
        )
        return train, val, test

    @staticmethod
    def save_split(
        train: Sequence[Datum], val: Sequence[Datum], test: Sequence[Datum], filepath: str, path_prefix: str
    ) -> None:
        """Write a split file with paths relative to `path_prefix`."""
        parts = (
            [Item(os.path.relpath(datum.impath, path_prefix), datum.label, datum.classname) for datum in part]
            for part in (train, val, test)
        )
        splits.write_split_file(Split(*parts), filepath)

    @staticmethod
    def split_trainval(trainval: Sequence[Datum], p_val: float = 0.2) -> tuple[list[Datum], list[Datum]]:
        """Move a random share of each class from a training list to val: (train, val), the same each time."""
        return splits.split_trainval(trainval, p_val)

    @staticmethod
    def subsample_classes(*args: Sequence[Datum], subsample: str = "all") -> list[list[Datum]]:
        """Keep "base", "new" or "all" classes of each list, relabelled from 0; classes counted in the first list."""
        return subsample_classes(*args, subsample=subsample)
