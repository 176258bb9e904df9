"""Images of none of the evaluated classes, for out-of-distribution detection: of the new classes, or of another set."""

import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from yacs.config import CfgNode

from dassl.config import declared_cfg, merge_file
from dassl.data.datasets import Datum, build_dataset
from dassl.utils import check_availability

from .splits import Item, Split

logger = logging.getLogger(__name__)

NEW = "new"  # the value of DATASET.OOD for the images of the new classes
NO_LABEL = -1  # of an image of none of the classes
YAML_FOLDER = Path(__file__).resolve().parents[1] / "configs" / "datasets"


def spoken(classname: str) -> str:
    """A class name as two data sets would have it in common."""
    return " ".join(classname.replace("_", " ").lower().split())


def new_class_images(split: Split, kept: Collection[str]) -> list[Item]:
    """The test images of the classes that were not kept.

    Args:
        split: of the whole data set.
        kept: names of the classes that are evaluated.

    Raises:
        ValueError: all classes are.
    """
    others = [item for item in split.test if item.classname not in kept]
    if not others:
        raise ValueError(
            f'DATASET.OOD is "{NEW}", but all classes are evaluated: set DATASET.SUBSAMPLE_CLASSES to "base"'
        )
    return others


def images_of(name: str, root: str, kept: Iterable[str]) -> list[Datum]:
    """The test images of another data set, less those of classes that are evaluated, which are none of others.

    Args:
        name: stem of a file in configs/datasets, path of a YAML file, or folder of class folders.
        root: folder of the data sets.
        kept: names of the classes that are evaluated.

    Raises:
        ValueError: there is no such data set, or all of its classes are evaluated.
        FileNotFoundError: it is not below the folder.
    """
    test = build_dataset(_configuration(name, root)).test or []
    known = set(map(spoken, kept))
    shared = sorted({item.classname for item in test if spoken(item.classname) in known})
    if shared:
        logger.warning(
            "DATASET.OOD %s: %d classes are evaluated too and left out: %s", name, len(shared), ", ".join(shared)
        )
    others = [item for item in test if spoken(item.classname) not in known]
    if not others:
        raise ValueError(f"DATASET.OOD {name}: it has no test image of a class that is not evaluated")
    return others


def _configuration(name: str, root: str) -> CfgNode:
    """The configuration of a data set with all its images and classes."""
    cfg = declared_cfg()
    if Path(name).is_dir():
        folder = Path(name).absolute()
        cfg.DATASET.NAME, root, cfg.DATASET.FOLDER = "OwnData", str(folder.parent), folder.name
    elif name.lower().endswith((".yaml", ".yml")):
        merge_file(cfg, name)
    else:
        check_availability(name, [NEW, *(path.stem for path in YAML_FOLDER.glob("*.yaml"))], "value of DATASET.OOD")
        merge_file(cfg, str(YAML_FOLDER / f"{name}.yaml"))
    cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS = root, -1
    return cfg


def without_label(items: Iterable[Datum]) -> list[Datum]:
    """The same images as ones of none of the classes."""
    return [Datum(impath=item.impath, label=NO_LABEL, domain=item.domain, classname=item.classname) for item in items]
