"""Caltech101 (Fei-Fei et al., CVPRW 2004)."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    """100 object classes; the background folder and the second faces folder are left out."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    ignored = ("BACKGROUND_Google", "Faces_easy")
    renamed = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
    counts = Counts(classes=100, train=4128, val=1649, test=2465)
