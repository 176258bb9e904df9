"""Tiles: pictures in one folder per class. The example of docs/EXTENDING.md."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset


@DATASET_REGISTRY.register()
class Tiles(FewShotDataset):
    """Pictures under `tiles/images/<class>/`; half of each class trains, a fifth validates, the rest tests."""

    dataset_dir = "tiles"
    image_dir = "images"
    template = "a drawing of a {}."
    renamed = {"grn_tile": "green tile"}
