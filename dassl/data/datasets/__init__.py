"""The data set base class and the registry."""

from dassl.data.datasets.base_dataset import (
    DatasetBase,
    Datum,
    MissingFileError,
    check_labels,
    class_name_clash,
    subsample_classes,
)
from dassl.data.datasets.build import DATASET_REGISTRY, OF_DOMAINS, build_dataset
from dassl.utils.third_party import names_from

__all__ = [
    "DATASET_REGISTRY",
    "DatasetBase",
    "Datum",
    "MissingFileError",
    "build_dataset",
    "check_labels",
    "class_name_clash",
    "subsample_classes",
]

__getattr__ = names_from(__name__, dict.fromkeys(OF_DOMAINS, "dassl.data.datasets.domains"))
