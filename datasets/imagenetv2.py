"""ImageNetV2 (Recht et al., ICML 2019), matched frequency."""

import os

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts
from .imagenet_family import CLASSNAMES, EvaluationSet, classnames_part
from .sources import Download, Part
from .splits import Item, list_folders, list_images

FOLDER = "imagenetv2-matched-frequency-format-val"


@DATASET_REGISTRY.register()
class ImageNetV2(EvaluationSet):
    """10 new images for each ImageNet class, in folders "0" to "999" in the order of `classnames.txt`."""

    dataset_dir = "imagenetv2"
    image_dir = FOLDER
    counts = Counts(classes=1000, train=0, val=0, test=10000)
    parts = (
        classnames_part(),
        Part(
            "images",
            (FOLDER,),
            tuple(
                Download(url, "imagenetv2-matched-frequency.tar.gz", moves={FOLDER: FOLDER})
                for url in (
                    "https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz",
                    "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
                )
            ),
        ),
    )

    def read_items(self) -> list[Item]:
        """All images; the label is the folder's number."""
        names = list(self.class_names_by_id().values())
        folders = list_folders(self.image_dir)
        wrong = [folder for folder in folders if not folder.isdigit() or int(folder) >= len(names)]
        if wrong:
            raise ValueError(
                f"{self.image_dir}: folders must be numbers below {len(names)} ({CLASSNAMES}); found {wrong[:5]}"
            )
        return [
            Item(f"{folder}/{file}", int(folder), names[int(folder)])
            for folder in sorted(folders, key=int)
            for file in list_images(os.path.join(self.image_dir, folder))
        ]
