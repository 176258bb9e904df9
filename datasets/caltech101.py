"""Caltech101 (Fei-Fei et al., CVPRW 2004)."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset
from .sources import Download, Part, split_part


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    """100 object classes; the background folder and the second faces folder are left out."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    ignored = ("BACKGROUND_Google", "Faces_easy")
    renamed = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
    counts = Counts(classes=100, train=4128, val=1649, test=2465)
    parts = (
        Part(
            "images",
            ("101_ObjectCategories",),
            (
                Download(
                    "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                    "caltech-101.zip",
                    "3138e1922a9193bfa496528edbbc45d0",
                    {"caltech-101/101_ObjectCategories.tar.gz!101_ObjectCategories": "101_ObjectCategories"},
                ),
                Download(
                    "http://www.vision.caltech.edu/Image_Datasets/Caltech101/101_ObjectCategories.tar.gz",
                    "101_ObjectCategories.tar.gz",
                    moves={"101_ObjectCategories": "101_ObjectCategories"},
                ),
            ),
        ),
        split_part("Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
    )
