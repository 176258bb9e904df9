"""Image features of a whole data set, computed once.

Shape legend: N images, E embedding width.
"""

import json
import logging
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from clip.backbone import Backbone
from clip.precision import Precision, to_float32
from dassl.data import build_data_loader
from dassl.data.datasets import DatasetBase
from dassl.data.evidence import split_hash
from dassl.data.transforms import build_transform
from dassl.engine.comparison import to_dict
from dassl.utils import atomic_write
from dassl.utils.digests import content_digest
from dassl.utils.file_identity import content_hash

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test")


class Features(NamedTuple):
    """Images as features `x` (N, E), not normalised, with labels `y` (N,)."""

    x: np.ndarray
    y: np.ndarray


@torch.no_grad()
def encode(loader: DataLoader, backbone: Backbone, precision: Precision) -> Features:
    """Features of every image of a loader, in its order."""
    features, labels = [], []
    for batch in loader:
        with precision.autocast():
            features.append(to_float32(backbone.encode_image(batch["img"].to(precision.device))).cpu())
        labels.append(batch["label"])
    return Features(torch.cat(features).numpy(), torch.cat(labels).numpy())


def describe(cfg: CfgNode, dataset: DatasetBase, backbone: Backbone, precision: Precision) -> str:
    """All that the features depend on, as JSON."""
    lists = split_hash(cfg.DATASET.ROOT, dataset.train_x, dataset.val, dataset.test)
    settings = {
        "dataset": cfg.DATASET.NAME,
        "lists": lists,
        "images": content_hash([item.impath for item in [*dataset.train_x, *dataset.val, *dataset.test]]),
        "backbone": [backbone.name, backbone.identity()],
        "precision": precision.name,
        "input": to_dict(cfg.INPUT),
    }
    return json.dumps(settings, sort_keys=True)


def dataset_features(
    cfg: CfgNode, dataset: DatasetBase, backbone: Backbone, precision: Precision, path: Path
) -> dict[str, Features]:
    """Features of the training, validation and test lists under the test transform.

    They are kept in the file `path`, and read from there by a run with the same data, backbone and settings.

    Raises:
        ValueError: the data set has no validation list.
    """
    sources = {"train": dataset.train_x, "val": dataset.val, "test": dataset.test}
    missing = [part for part, source in sources.items() if not source]
    if missing:
        raise ValueError(
            f"DATASET.NAME {cfg.DATASET.NAME} has no {missing[0]} list; the linear probe trains on train, chooses its "
            "regularisation on val and is measured on test"
        )
    description = describe(cfg, dataset, backbone, precision)
    kept = _read(path, description)
    if kept is not None:
        logger.info("Loading features from %s", path)
        return kept
    transform = build_transform(cfg, is_train=False)
    encoded: dict[int, Features] = {}  # where the test list stands for val, it is encoded once
    for part, source in sources.items():
        if id(source) not in encoded:
            logger.info("Encoding %d %s images", len(source), part)
            batch_size = cfg.DATALOADER.TEST.BATCH_SIZE
            settings = {"batch_size": batch_size, "tfm": transform, "is_train": False, "random_streams": "keyed"}
            loader = build_data_loader(cfg, data_source=source, **settings)
            encoded[id(source)] = encode(loader, backbone, precision)
    features = {part: encoded[id(source)] for part, source in sources.items()}
    _write(path, description, features)
    return features


def _write(path: Path, description: str, features: dict[str, Features]) -> None:
    arrays = {f"{part}_{name}": array for part in PARTS for name, array in features[part]._asdict().items()}
    arrays["description"] = np.array(description)
    digest = np.array(content_digest(arrays))
    with atomic_write(path, "wb") as file:
        np.savez(file, **arrays, digest=digest)
    logger.info("Saved features to %s", path)


def _read(path: Path, description: str) -> dict[str, Features] | None:
    """What the file holds, or None if there is none, one of other features, or a damaged one (which is said)."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:  # NumPy leaves a damaged one open
            arrays = {name: file[name] for name in file.files if name != "digest"}
            whole = str(file["digest"]) == content_digest(arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        logger.warning("%s is damaged or no file of features: they are computed anew", path)
        return None
    if not whole:
        logger.warning("%s does not hold what was written to it: features are computed anew", path)
        return None
    if str(arrays["description"]) != description:
        logger.info("%s holds features of other data or settings: they are computed anew", path)
        return None
    return {part: Features(arrays[f"{part}_x"], arrays[f"{part}_y"]) for part in PARTS}
