"""For third-party code: what a backbone is."""

from torch import nn


class Backbone(nn.Module):
    """Images (B, 3, H, W) -> features (B, ``out_features``). A subclass sets ``_out_features``."""

    _out_features: int | None = None

    @property
    def out_features(self) -> int | None:
        """Number of features; None where a subclass does not say."""
        return self._out_features
