"""SUN397 (Xiao et al., CVPR 2010), first of its partitions."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset
from .sources import Download, Part, split_part
from .splits import Item, Split, split_trainval

LISTS = ("ClassName.txt", "Training_01.txt", "Testing_01.txt")
SPLIT_FILE = "split_zhou_SUN397.json"


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    """397 scenes. Raw lists: `ClassName.txt`, `Training_01.txt`, `Testing_01.txt`, lines `/a/abbey[/image.jpg]`."""

    dataset_dir = "sun397"
    image_dir = "SUN397"
    counts = Counts(classes=397, train=15880, val=3970, test=19850)
    parts = (
        split_part("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
        Part(
            "images",
            ("SUN397",),
            (
                Download(
                    "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                    "SUN397.tar.gz",
                    "8ca2778205c41d23104230ba66911c7a",
                    {"SUN397": "SUN397"},
                ),
            ),
        ),
        Part(
            "lists",
            LISTS,
            (
                Download(
                    "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip",
                    "Partitions.zip",
                    moves={name: name for name in LISTS},
                ),
            ),
            unless=SPLIT_FILE,
        ),
    )

    def make_split(self) -> Split:
        """A fifth of each class of the official training list is val; the test list as it is."""
        label_of = {line.lstrip("/"): label for label, (_, line) in enumerate(self.read_lines("ClassName.txt"))}
        train, val = split_trainval(self.read_list("Training_01.txt", label_of))
        return Split(train, val, self.read_list("Testing_01.txt", label_of))

    def class_name(self, folder: str) -> str:
        """`a/apartment_building/outdoor` is "outdoor apartment_building": the letter dropped, the rest reversed."""
        return " ".join(reversed(folder.split("/")[1:]))

    def read_list(self, name: str, label_of: dict[str, int]) -> list[Item]:
        """Rows of one raw list."""
        items = []
        for where, line in self.read_lines(name):
            path = line.lstrip("/")
            folder = path.rpartition("/")[0]
            if folder not in label_of:
                raise ValueError(f"{where}: class {folder!r} is not in {self.dataset_dir}/ClassName.txt")
            items.append(Item(path, label_of[folder], self.class_name(folder)))
        return items
