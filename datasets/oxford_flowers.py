"""Oxford Flowers 102 (Nilsback, Zisserman, ICVGIP 2008)."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset
from .own_data import read_names
from .sources import Download, Part, split_part
from .splits import Item, Split, split_groups

PAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
SPLIT_FILE = "split_zhou_OxfordFlowers.json"


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    """102 flowers. Raw labels: `imagelabels.mat` (image i is `jpg/image_%05d.jpg`), names in `cat_to_name.json`."""

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    class_folders = False
    template = "a photo of a {}, a type of flower."
    counts = Counts(classes=102, train=4093, val=1633, test=2463)
    parts = (
        split_part("OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
        Part(
            "images",
            ("jpg",),
            (Download(f"{PAGE}102flowers.tgz", "102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", {"jpg": "jpg"}),),
        ),
        Part(
            "labels",
            ("imagelabels.mat",),
            (Download(f"{PAGE}imagelabels.mat", "imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),),
            unless=SPLIT_FILE,
        ),
        Part(
            "class names",
            ("cat_to_name.json",),
            (Download("drive:1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0", "cat_to_name.json"),),
            unless=SPLIT_FILE,
        ),
    )

    def make_split(self) -> Split:
        """Half of each class train, a fifth val, the rest test; classes in order of first appearance."""
        label_file = self.raw_file("imagelabels.mat")
        name_file = self.raw_file("cat_to_name.json")
        names = read_names(name_file)
        groups: dict[int, list[Item]] = {}
        for number, raw in enumerate(self.read_mat("imagelabels.mat", "labels"), 1):
            if not isinstance(raw, int) or str(raw) not in names:
                raise ValueError(f"{label_file}: image {number} has label {raw}, which {name_file} does not name")
            item = Item(f"image_{number:05d}.jpg", int(raw) - 1, names[str(raw)])
            groups.setdefault(item.label, []).append(item)
        return split_groups(groups.values())
