"""Food-101 (Bossard et al., ECCV 2014)."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    """101 dishes."""

    dataset_dir = "food-101"
    image_dir = "images"
    template = "a photo of {}, a type of food."
    counts = Counts(classes=101, train=50500, val=20200, test=30300)
