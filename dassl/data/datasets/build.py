"""Data sets by name."""

from typing import Any

from dassl.utils import Registry
from dassl.utils.registry import build_from

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: Any) -> Any:
    """Make the data set that ``DATASET.NAME`` names.

    Raises:
        ValueError: none of that name is registered.
    """
    return build_from(DATASET_REGISTRY, cfg.DATASET.NAME, cfg)
