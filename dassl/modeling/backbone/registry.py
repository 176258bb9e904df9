"""For third-party code: the registry of backbones."""

from dassl.utils import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")
