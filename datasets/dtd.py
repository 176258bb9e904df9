"""Describable Textures (Cimpoi et al., CVPR 2014); files of the CoOp family take the folder split from here."""

import os
from collections.abc import Mapping, Sequence

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .fewshot import Counts, FewShotDataset
from .sources import Download, Part, split_part
from .splits import read_folders, split_groups


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    """47 textures."""

    dataset_dir = "dtd"
    image_dir = "images"
    template = "{} texture."
    counts = Counts(classes=47, train=2820, val=1128, test=1692)
    parts = (
        Part(
            "images",
            ("images",),
            (
                Download(
                    "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
                    "dtd-r1.0.1.tar.gz",
                    "fff73e5086ae6bdbea199a49dfb8a4c1",
                    {"dtd/images": "images"},
                ),
            ),
        ),
        split_part("DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
    )

    @staticmethod
    def read_and_split_data(
        image_dir: str,
        p_trn: float = 0.5,
        p_val: float = 0.2,
        ignored: Sequence[str] = (),
        new_cnames: Mapping[str, str] | None = None,
    ) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Split the images of class folders into (train, val, test); the same folders give the same split."""
        names = new_cnames or {}
        groups = read_folders(image_dir, lambda folder: names.get(folder, folder), ignored)
        train, val, test = (
            [Datum(os.path.join(image_dir, item.impath), item.label, classname=item.classname) for item in part]
            for part in split_groups(groups, p_trn, p_val).parts().values()
        )
        return train, val, test
