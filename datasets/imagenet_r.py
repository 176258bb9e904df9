"""ImageNet-R (Hendrycks et al., ICCV 2021)."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts
from .imagenet_family import EvaluationSet, classnames_part
from .sources import Download, Part


@DATASET_REGISTRY.register()
class ImageNetR(EvaluationSet):
    """Renditions (paintings, toys, graffiti ...) of 200 ImageNet classes."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    counts = Counts(classes=200, train=0, val=0, test=30000)
    parts = (
        classnames_part(),
        Part(
            "images",
            ("imagenet-r",),
            (
                Download(
                    "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                    "imagenet-r.tar",
                    moves={"imagenet-r": "imagenet-r"},
                ),
            ),
            by_hand="the folder imagenet-r of github.com/hendrycks/imagenet-r into {folder}",
        ),
    )
