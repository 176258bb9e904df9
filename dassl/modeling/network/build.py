"""For third-party code: networks by name."""

import logging
from typing import Any

from torch import nn

from dassl.utils import Registry, check_availability

logger = logging.getLogger(__name__)

NETWORK_REGISTRY = Registry("NETWORK")


def build_network(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Return the registered network of a name, made with ``kwargs``.

    Raises:
        ValueError: there is none.
    """
    check_availability(name, NETWORK_REGISTRY.registered_names(), "network")
    if verbose:
        logger.info("Network: %s", name)
    return NETWORK_REGISTRY.get(name)(**kwargs)
