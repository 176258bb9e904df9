"""For third-party code: backbones by name."""

from dassl.modeling.backbone.backbone import Backbone
from dassl.modeling.backbone.build import BACKBONE_REGISTRY, build_backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]
