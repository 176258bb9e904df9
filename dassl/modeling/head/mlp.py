"""For third-party code: linear layers between a backbone and its classifier."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from dassl.modeling.head.build import HEAD_REGISTRY
from dassl.utils import check_availability

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Module):
    """Linear layers, each with batch norm, activation and dropout after it.

    Args:
        in_features: width of what comes in.
        hidden_layers: widths of the layers, at least one.
        activation: ``"relu"`` or ``"leaky_relu"``.
        bn: with batch norm.
        dropout: share of the features that is dropped; 0: no dropout.

    Attributes:
        out_features: width of the last layer.

    Raises:
        ValueError: no layer, or an unknown activation.
    """

    def __init__(
        self,
        in_features: int = 2048,
        hidden_layers: int | Sequence[int] = (),
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise ValueError("MODEL.HEAD.HIDDEN_LAYERS: a head needs at least one layer")
        check_availability(activation, list(ACTIVATIONS), "value of MODEL.HEAD.ACTIVATION")
        activate = partial(ACTIVATIONS[activation], inplace=True)
        layers: list[nn.Module] = []
        for before, after in zip([in_features, *widths], widths, strict=False):
            norm, drop = [nn.BatchNorm1d(after)] if bn else [], [nn.Dropout(dropout)] if dropout > 0 else []
            layers += [nn.Linear(before, after), *norm, activate(), *drop]
        self.mlp = nn.Sequential(*layers)
        self.out_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, ``out_features``) for features (B, ``in_features``)."""
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs: Any) -> MLP:
    """Return an :class:`MLP`."""
    return MLP(**kwargs)
