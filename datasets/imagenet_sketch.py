"""ImageNet-Sketch (Wang et al., NeurIPS 2019)."""

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import Counts
from .imagenet_family import EvaluationSet, classnames_part
from .sources import Download, Part


@DATASET_REGISTRY.register()
class ImageNetSketch(EvaluationSet):
    """Sketches of the 1000 ImageNet classes."""

    dataset_dir = "imagenet-sketch"
    image_dir = "images"
    counts = Counts(classes=1000, train=0, val=0, test=50889)
    parts = (
        classnames_part(),
        Part(
            "images",
            ("images",),
            (Download("drive:1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA", "ImageNet-Sketch.zip", moves={"sketch": "images"}),),
            by_hand="the folders nXXXXXXXX of github.com/HaohanWang/ImageNet-Sketch into {folder}/images",
        ),
    )
