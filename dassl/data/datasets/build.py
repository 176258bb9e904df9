"""Data sets by name."""

from typing import Any

from dassl.utils import Registry
from dassl.utils.registry import build_from

DATASET_REGISTRY = Registry("DATASET")
OF_DOMAINS = (  # in dassl.data.datasets.domains
    "DigitsDG", "DomainNet", "Office31", "OfficeHome", "OfficeHomeDG", "PACS", "VLCS", "VisDA17", "miniDomainNet",
)  # fmt: skip


def build_dataset(cfg: Any) -> Any:
    """Make the data set that ``DATASET.NAME`` names: a registered one, or one of :mod:`dassl.data.datasets.domains`.

    Raises:
        ValueError: there is none of that name.
    """
    name = cfg.DATASET.NAME
    if name in OF_DOMAINS and name not in DATASET_REGISTRY:
        from dassl.data.datasets import domains

        DATASET_REGISTRY.register(getattr(domains, name))
    return build_from(DATASET_REGISTRY, name, cfg)
