"""Stanford Cars (Krause et al., 3dRR 2013)."""

import os

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset
from .sources import Download, Part, split_part
from .splits import Item, Split, split_trainval

TEST_LABELS = "cars_test_annos_withlabels.mat"
SPLIT_FILE = "split_zhou_StanfordCars.json"


def _part(what: str, file: str, gives: str, moves: dict[str, str], unless: str = "") -> Part:
    """A piece from the authors' pages, of which most are gone."""
    folder = "cars" if file == "car_devkit.tgz" else "car196"
    by_hand = (
        f"{file} from a copy of the set (for example huggingface.co/datasets/zhengli97/prompt_learning_dataset), "
        f"so that {{folder}}/{gives} is there"
    )
    url = f"https://ai.stanford.edu/~jkrause/{folder}/{file}"
    return Part(what, (gives,), (Download(url, file, moves=moves),), unless=unless, by_hand=by_hand)


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    """196 car models. Raw lists: MATLAB files in `devkit/`, and `cars_test_annos_withlabels.mat`."""

    dataset_dir = "stanford_cars"
    class_folders = False
    counts = Counts(classes=196, train=6509, val=1635, test=8041)
    parts = (
        split_part("StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
        _part("training images", "cars_train.tgz", "cars_train", {"cars_train": "cars_train"}),
        _part("test images", "cars_test.tgz", "cars_test", {"cars_test": "cars_test"}),
        _part("annotations", "car_devkit.tgz", "devkit", {"devkit": "devkit"}, unless=SPLIT_FILE),
        _part("test labels", TEST_LABELS, TEST_LABELS, {}, unless=SPLIT_FILE),
    )

    def make_split(self) -> Split:
        """A fifth of each class of the official training list is val; the test list as it is."""
        names = self.read_names()
        train, val = split_trainval(self.read_list("cars_train", os.path.join("devkit", "cars_train_annos.mat"), names))
        return Split(train, val, self.read_list("cars_test", TEST_LABELS, names))

    def read_names(self) -> list[str]:
        """Class names by label, the year moved to the front."""
        rotated = []
        for name in self.read_mat(os.path.join("devkit", "cars_meta.mat"), "class_names"):
            model, _, year = str(name).rpartition(" ")
            rotated.append(f"{year} {model}")
        return rotated

    def read_list(self, folder: str, annotations: str, names: list[str]) -> list[Item]:
        """Rows of one raw list, whose labels start at 1."""
        items = []
        for record in self.read_mat(annotations, "annotations"):
            label, file = (record.get("class"), record.get("fname")) if isinstance(record, dict) else (None, None)
            if not isinstance(label, int) or not isinstance(file, str):
                raise ValueError(f"{annotations}: there is a record without class and fname")
            if not 1 <= label <= len(names):
                raise ValueError(f"{annotations}: {file} has label {label} of {len(names)} class names")
            items.append(Item(f"{folder}/{file}", label - 1, names[label - 1]))
        return items
