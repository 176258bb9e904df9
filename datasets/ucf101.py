"""UCF101 (Soomro et al., 2012): the middle frame of each video, first of its train/test lists."""

import re

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset
from .sources import Download, Part, split_part
from .splits import Item, Split, split_trainval

LISTS = "ucfTrainTestlist"


def frame_folder(action: str) -> str:
    """`ApplyEyeMakeup` is `Apply_Eye_Makeup`: the folder of an action's frames, and its class name."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    """101 actions. Raw lists under `ucfTrainTestlist/`: `classInd.txt`, `trainlist01.txt`, `testlist01.txt`."""

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    template = "a photo of a person doing {}."
    counts = Counts(classes=101, train=7639, val=1898, test=3783)
    parts = (
        Part(
            "frames",
            ("UCF-101-midframes",),
            (
                Download(
                    "drive:10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
                    "UCF-101-midframes.zip",
                    moves={"UCF-101-midframes": "UCF-101-midframes"},
                ),
            ),
        ),
        split_part("UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
        Part(
            "train and test lists",
            (LISTS,),
            (
                Download(
                    "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
                    "UCF101TrainTestSplits-RecognitionTask.zip",
                    moves={LISTS: LISTS},
                ),
            ),
            unless="split_zhou_UCF101.json",
        ),
    )

    def make_split(self) -> Split:
        """A fifth of each class of the official training list is val; the test list as it is."""
        label_of = {}
        for where, line in self.read_lines(f"{LISTS}/classInd.txt"):
            number, _, action = line.partition(" ")
            if not number.isdigit() or not action:
                raise ValueError(f"{where}: expected `number Action`, found {line!r}")
            label_of[action] = int(number) - 1
        train, val = split_trainval(self.read_list("trainlist01.txt", label_of))
        return Split(train, val, self.read_list("testlist01.txt", label_of))

    def read_list(self, name: str, label_of: dict[str, int]) -> list[Item]:
        """Rows of one raw list, lines `Action/video.avi [label]`; a frame is named as its video."""
        items = []
        for where, line in self.read_lines(f"{LISTS}/{name}"):
            action, _, video = line.split(" ")[0].partition("/")
            if action not in label_of:
                raise ValueError(f"{where}: action {action!r} is not in {self.dataset_dir}/{LISTS}/classInd.txt")
            folder = frame_folder(action)
            items.append(Item(f"{folder}/{video.removesuffix('.avi')}.jpg", label_of[action], folder))
        return items
