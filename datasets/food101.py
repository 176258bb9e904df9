"""Food-101 (Bossard et al., ECCV 2014)."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset
from .sources import Download, Part, split_part


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    """101 dishes."""

    dataset_dir = "food-101"
    image_dir = "images"
    template = "a photo of {}, a type of food."
    counts = Counts(classes=101, train=50500, val=20200, test=30300)
    parts = (
        Part(
            "images",
            ("images",),
            (
                Download(
                    "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                    "food-101.tar.gz",
                    "85eeb15f3717b99a5da872d97d918f87",
                    {"food-101/images": "images"},
                ),
            ),
        ),
        split_part("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
    )
