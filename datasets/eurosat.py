"""EuroSAT (Helber et al., 2019), RGB version."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts, FewShotDataset
from .sources import Download, Part, split_part


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
    parts = (
        Part(
            "images",
            ("2750",),
            (
                Download(
                    "https://madm.dfki.de/files/sentinel/EuroSAT.zip",
                    "EuroSAT.zip",
                    "c8fa014336c82ac7804f0398fcb19387",
                    {"2750": "2750"},
                ),
                Download(
                    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                    "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                    "EuroSAT.zip",
                    "c8fa014336c82ac7804f0398fcb19387",
                    {"2750": "2750"},
                ),
            ),
        ),
        split_part("EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
    )
