"""ImageNet-R (Hendrycks et al., ICCV 2021)."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts
from .imagenet_family import EvaluationSet


@DATASET_REGISTRY.register()
class ImageNetR(EvaluationSet):
    """Renditions (paintings, toys, graffiti ...) of 200 ImageNet classes."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    counts = Counts(classes=200, train=0, val=0, test=30000)
