"""What a record says of the images that a number comes from, and whether test images were trained on."""

import logging
from collections.abc import Iterable
from typing import Any

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils.file_identity import combine_digests, content_hash, file_digests

logger = logging.getLogger(__name__)

NOT_TRAINED = {"train_images_hash": None, "test_in_train": None}  # of a process that only evaluates


def images_hash(items: Iterable[Datum]) -> str:
    """Return the SHA-256 over the contents of images in their order, whatever their paths are."""
    return content_hash([item.impath for item in items])


def training_evidence(dataset: DatasetBase) -> dict[str, Any]:
    """Return the fields of ``metrics.json`` about the training images; warn if test images are among them.

    ``train_images_hash`` is the :func:`images_hash` of the training list, ``test_in_train`` the number of test images
    whose content is that of a training image, under whatever path.
    """
    trained = file_digests([item.impath for item in dataset.train_x])
    tests = dataset.test or []
    known = set(trained)
    digests = file_digests([item.impath for item in tests])
    shared = [item.impath for item, digest in zip(tests, digests, strict=True) if digest in known]
    if shared:
        template = "%d of %d test images are also trained on (same content), such as %s"
        logger.warning(template, len(shared), len(tests), shared[0])
    return {"train_images_hash": combine_digests(trained), "test_in_train": len(shared)}
