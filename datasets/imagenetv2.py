"""ImageNetV2 (Recht et al., ICML 2019), matched frequency."""

import os

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts
from .imagenet_family import CLASSNAMES, EvaluationSet
from .splits import Item, list_folders, list_images


@DATASET_REGISTRY.register()
class ImageNetV2(EvaluationSet):
    """10 new images for each ImageNet class, in folders "0" to "999" in the order of `classnames.txt`."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    counts = Counts(classes=1000, train=0, val=0, test=10000)

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
