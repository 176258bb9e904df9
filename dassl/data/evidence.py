"""What records and checkpoints say of the data that a run trains on, and whether test images are among them."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils.file_identity import combine_digests, content_hash, file_digests

logger = logging.getLogger(__name__)

# of a process that only evaluates
NOT_TRAINED = {"train_images_hash": None, "test_in_train": None, "wrong_labels": None, "shots_per_class": None}


def split_hash(root: str, *splits: Iterable[Datum] | None) -> str:
    """Return the SHA-256 over path, label and class name of each sample of each list, in order.

    Args:
        root: the folder to which paths are taken relative, where they lie below it.
        splits: the training and the test list.
    """
    base = Path(os.path.abspath(root))
    rows = []
    for split in splits:
        paths = [Path(os.path.abspath(item.impath)) for item in split or ()]
        names = [(path.relative_to(base) if path.is_relative_to(base) else path).as_posix() for path in paths]
        rows.append([[name, item.label, item.classname] for name, item in zip(names, split or (), strict=True)])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def data_changes(kept: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return in what the data of a checkpoint differ from a run's, one sentence each; unknown on one side is equal.

    Args:
        kept: `classnames` in label order, `train_list` (:func:`split_hash`) and `train_images` (:func:`images_hash`).
        own: the same of the run.
    """
    old, new = (data.get("classnames") for data in (kept, own))
    if old and new and old != new:
        pairs = zip_longest(old, new, fillvalue="nothing")
        label, was, now = next((label, a, b) for label, (a, b) in enumerate(pairs) if a != b)
        return [f"{len(old)} classes, now {len(new)}; label {label} was {was!r} and is {now!r}"]
    names = {"train_list": "the list of training images", "train_images": "the content of training images"}
    return [f"{what} has changed" for key, what in names.items() if kept.get(key) and own.get(key) not in (None, kept[key])]


def images_hash(items: Iterable[Datum]) -> str:
    """Return the SHA-256 over the contents of images in their order, whatever their paths are."""
    return content_hash([item.impath for item in items])


def training_evidence(dataset: DatasetBase) -> dict[str, Any]:
    """Return the fields of ``metrics.json`` about the training images; warn if test images are among them.

    ``train_images_hash`` is the :func:`images_hash` of the training list, ``test_in_train`` the number of test images
    whose content is that of a training image, under whatever path; ``wrong_labels`` how many training images were given
    the label of another class; ``shots_per_class`` the training images of each class by label, None where all have as
    many.
    """
    trained = file_digests([item.impath for item in dataset.train_x])
    tests = dataset.test or []
    known = set(trained)
    digests = file_digests([item.impath for item in tests])
    shared = [item.impath for item, digest in zip(tests, digests, strict=True) if digest in known]
    if shared:
        template = "%d of %d test images are also trained on (same content), such as %s"
        logger.warning(template, len(shared), len(tests), shared[0])
    counts = Counter(item.label for item in dataset.train_x)
    shots = [counts[label] for label in range(max(counts) + 1)]
    return {
        "train_images_hash": combine_digests(trained),
        "test_in_train": len(shared),
        "wrong_labels": getattr(dataset, "wrong_labels", 0),
        "shots_per_class": shots if len(set(shots)) > 1 else None,
    }


def support_name(keys: Mapping[str, Any]) -> str:
    """Return how the training images of a run were chosen, by the node ``DATASET`` of its configuration.

    ``balanced`` (as many of each class), ``list`` (a given list of images), ``power law 1.0``, ``Dirichlet 1.0``, or
    ``given per class``.
    """
    if keys.get("SPLIT_LIST"):
        return "list"
    if keys.get("SHOTS_PER_CLASS"):
        return "given per class"
    drawn = {"power law": keys.get("SHOTS_POWER_LAW"), "Dirichlet": keys.get("SHOTS_DIRICHLET")}
    return next((f"{name} {value}" for name, value in drawn.items() if value), "balanced")


def noise_name(keys: Mapping[str, Any]) -> str:
    """Return the label noise of a run, ``sym 0.5``, by the node ``DATASET`` of its configuration; ``none`` without."""
    return f"{keys['NOISE_TYPE']} {keys['NOISE_RATE']}" if keys.get("NOISE_RATE") else "none"
