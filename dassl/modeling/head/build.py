"""For third-party code: heads by name."""

import logging
from typing import Any

from torch import nn

from dassl.utils import Registry, check_availability

logger = logging.getLogger(__name__)

HEAD_REGISTRY = Registry("HEAD")


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Return the registered head of a name, made with ``kwargs``.

    Raises:
        ValueError: there is none.
    """
    check_availability(name, HEAD_REGISTRY.registered_names(), "head (MODEL.HEAD.NAME)")
    if verbose:
        logger.info("Head: %s", name)
    return HEAD_REGISTRY.get(name)(**kwargs)
