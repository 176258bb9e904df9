"""For third-party code: backbones by name, those that were registered and torchvision's."""

import logging
from typing import Any

from torch import nn

from dassl.modeling.backbone.registry import BACKBONE_REGISTRY

logger = logging.getLogger(__name__)


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Return a registered backbone, or else one of :mod:`dassl.modeling.backbone.vision`.

    Args:
        name: such as ``resnet18``, or ``resnet18_ms_l12``: with MixStyle after its first two layers.
        verbose: log the name.
        kwargs: for the backbone; ``pretrained`` (default True) is understood by all that are not registered.

    Raises:
        ValueError: there is no backbone of this name.
    """
    if verbose:
        logger.info("Backbone: %s", name)
    if name in BACKBONE_REGISTRY:
        return BACKBONE_REGISTRY.get(name)(**kwargs)
    from dassl.modeling.backbone.vision import vision_backbone

    return vision_backbone(name, **kwargs)
