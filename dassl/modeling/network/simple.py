"""For third-party code: backbone, head and classifier as the configuration names them."""

from typing import Any, cast

from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.modeling.backbone import build_backbone
from dassl.modeling.head import build_head


class SimpleNet(nn.Module):
    """A backbone, a head where ``HEAD.NAME`` and ``HEAD.HIDDEN_LAYERS`` name one, and a linear classifier.

    Args:
        cfg: ``VERBOSE`` is read.
        model_cfg: a node with the keys of ``MODEL``.
        num_classes: number C of classes; 0: no classifier.
        kwargs: handed on to backbone and head.
    """

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs: Any) -> None:
        super().__init__()
        verbose, node, head = cfg.get("VERBOSE", True), model_cfg.BACKBONE, model_cfg.get("HEAD", {})
        self.backbone = build_backbone(node.NAME, verbose=verbose, pretrained=node.PRETRAINED, **kwargs)
        self._fdim = cast(int, self.backbone.out_features)
        self.head = None
        if head.get("NAME") and head.get("HIDDEN_LAYERS"):
            settings = {"activation": head.ACTIVATION, "bn": head.BN, "dropout": head.DROPOUT, **kwargs}
            sizes = {"in_features": self._fdim, "hidden_layers": head.HIDDEN_LAYERS}
            self.head = build_head(head.NAME, verbose=verbose, **sizes, **settings)
            self._fdim = cast(int, self.head.out_features)
        self.classifier = nn.Linear(self._fdim, num_classes) if num_classes > 0 else None

    @property
    def fdim(self) -> int:
        """Width F of the features that the classifier gets."""
        return self._fdim

    def forward(self, x: Tensor, return_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return scores (B, C) of images (B, 3, H, W), with ``return_feature`` also the features (B, F).

        Without a classifier, return the features.
        """
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        scores = self.classifier(features)
        return (scores, features) if return_feature else scores
