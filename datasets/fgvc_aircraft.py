"""FGVC Aircraft (Maji et al., 2013): its own train, val and test lists, no split file."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset
from .sources import Download, Part
from .splits import Item, Split, check_labels

FILES = ("images", "variants.txt", *(f"images_variant_{part}.txt" for part in ("train", "val", "test")))


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    """100 aircraft variants, from `variants.txt` and `images_variant_{train,val,test}.txt`."""

    dataset_dir = "fgvc_aircraft"
    image_dir = "images"
    split_file = None
    class_folders = False
    template = "a photo of a {}, a type of aircraft."
    counts = Counts(classes=100, train=3334, val=3333, test=3333)
    parts = (
        Part(
            "images and lists",
            FILES,
            (
                Download(
                    "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                    "fgvc-aircraft-2013b.tar.gz",
                    moves={f"fgvc-aircraft-2013b/data/{name}": name for name in FILES},
                ),
            ),
        ),
    )

    def load_split(self) -> Split:
        """The set's own lists; nothing is written."""
        names = [line for _, line in self.read_lines("variants.txt")]
        label_of = {name: label for label, name in enumerate(names)}
        split = Split(*(self.read_list(f"images_variant_{part}.txt", label_of) for part in ("train", "val", "test")))
        check_labels(split, f"the lists in {self.dataset_dir}")
        return split

    def read_list(self, name: str, label_of: dict[str, int]) -> list[Item]:
        """Rows of one raw list, lines `image variant in words`."""
        items = []
        for where, line in self.read_lines(name):
            image, _, variant = line.partition(" ")
            if variant not in label_of:
                raise ValueError(f"{where}: variant {variant!r} is not in {self.dataset_dir}/variants.txt")
            items.append(Item(f"{image}.jpg", label_of[variant], variant))
        return items
