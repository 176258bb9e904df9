"""EuroSAT (Helber et al., 2019), RGB version."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset


@DATASET_REGISTRY.register()
class EuroSAT(FewShotDataset):
    """10 kinds of land in satellite pictures."""

    dataset_dir = "eurosat"
    image_dir = "2750"
    renamed = {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    }
    template = "a centered satellite photo of {}."
    counts = Counts(classes=10, train=13500, val=5400, test=8100)
