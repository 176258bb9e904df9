"""Data sets by name."""

from typing import Any

from dassl.utils import Registry
from dassl.utils.registry import build_from

DATASET_REGISTRY = Registry("DATASET")
OF_DOMAINS = (  # in dassl.data.datasets.domains
    "DigitsDG", "DomainNet", "Office31", "OfficeHome", "OfficeHomeDG", "PACS", "VLCS", "VisDA17", "miniDomainNet",
)  # fmt: skip


# Keys under DATASET that change the lists of a data set which declares them: elsewhere they would change nothing.
OF_LISTS = (
    "FOLD", "SPLIT_LIST", "SHOTS_PER_CLASS", "SHOTS_POWER_LAW", "SHOTS_DIRICHLET", "NOISE_RATE", "OOD",
)  # fmt: skip


def build_dataset(cfg: Any) -> Any:
    """Make the data set that ``DATASET.NAME`` names: a registered one, or one of :mod:`dassl.data.datasets.domains`.

    Raises:
        ValueError: there is none of that name; a key is set that it does not know, though what is trained or tested on
            should depend on it.
    """
    name = cfg.DATASET.NAME
    if name in OF_DOMAINS and name not in DATASET_REGISTRY:
        from dassl.data.datasets import domains

        DATASET_REGISTRY.register(getattr(domains, name))
    if name in DATASET_REGISTRY:
        declared = {key for kind in DATASET_REGISTRY.get(name).__mro__ for key in vars(kind).get("CONFIG", {})}
        unknown = next((key for key in OF_LISTS if cfg.DATASET.get(key) and key not in declared), "")
        if unknown:
            raise ValueError(f"DATASET.{unknown} is {cfg.DATASET[unknown]}, but the data set {name} knows no such key")
    return build_from(DATASET_REGISTRY, name, cfg)
