"""ImageNet-A (Hendrycks et al., CVPR 2021)."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts
from .imagenet_family import EvaluationSet, classnames_part
from .sources import Download, Part


@DATASET_REGISTRY.register()
class ImageNetA(EvaluationSet):
    """Natural images that mislead classifiers, of 200 ImageNet classes."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    counts = Counts(classes=200, train=0, val=0, test=7500)
    parts = (
        classnames_part(),
        Part(
            "images",
            ("imagenet-a",),
            (
                Download(
                    "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
                    "imagenet-a.tar",
                    moves={"imagenet-a": "imagenet-a"},
                ),
            ),
            by_hand="the folder imagenet-a of github.com/hendrycks/natural-adv-examples into {folder}",
        ),
    )
