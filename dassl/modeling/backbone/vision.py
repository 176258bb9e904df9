"""For third-party code: torchvision's classifiers without their last layer, ResNets also with MixStyle or EFDMix.

This module imports torchvision, which takes seconds.
"""

import re
import warnings

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from dassl.modeling.backbone.backbone import Backbone
from dassl.modeling.backbone.registry import BACKBONE_REGISTRY
from dassl.modeling.ops import EFDMix, MixStyle
from dassl.utils import check_availability

RESNETS = {  # block, blocks of each layer
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}
MIXED = re.compile(r"(resnet\d+)(?:_(ms|efdmix)_l([1-3]+))?")
MIXING = {"ms": MixStyle, "efdmix": EFDMix}


class ResNetBackbone(ResNet, Backbone):
    """A ResNet up to its pooled features. Its weights begin with the random numbers that Dassl's ResNet draws.

    Args:
        name: of ``RESNETS``.
        mixing: ``"ms"`` (MixStyle) or ``"efdmix"``; None for neither.
        layers: after which of the layers 1 to 3 features are mixed.
    """

    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    avgpool: nn.Module
    mixstyle: nn.Module | None

    def __init__(self, name: str, mixing: str | None = None, layers: tuple[int, ...] = ()) -> None:
        block, counts = RESNETS[name]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            super().__init__(block, counts, num_classes=0)  # of a last layer nothing is drawn
        del self.fc
        self._out_features = 512 * block.expansion
        self.mixing_layers = tuple(f"layer{number}" for number in layers)
        self.mixstyle = MIXING[mixing](p=0.5, alpha=0.1) if mixing else None

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, ``out_features``) of images (B, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, name)(x)
            if self.mixstyle is not None and name in self.mixing_layers:
                x = self.mixstyle(x)
        return self.avgpool(x).flatten(1)


class VisionBackbone(Backbone):
    """A torchvision model whose last linear layer passes its input on."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model: nn.Module = models.get_model(name, weights=None)
        *_, (path, last) = ((path, m) for path, m in self.model.named_modules() if isinstance(m, nn.Linear))
        self.last, self._out_features = path, last.in_features

    def drop_last(self) -> None:
        """Take the last layer away, after weights were loaded."""
        parent, _, leaf = self.last.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, ``out_features``) of images (B, 3, H, W)."""
        return self.model(x)


def vision_backbone(name: str, pretrained: bool = True) -> Backbone:
    """Return the backbone of a name.

    Args:
        name: a classifier of torchvision, or a ResNet with ``_ms_l`` or ``_efdmix_l`` and layers, such as ``_ms_l123``.
        pretrained: with torchvision's first weights for ImageNet, which are downloaded once.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: the weights cannot be had.
    """
    found = MIXED.fullmatch(name)
    if found and found[1] in RESNETS:
        resnet = ResNetBackbone(found[1], found[2], tuple(map(int, found[3] or "")))
        if pretrained:
            weights = _imagenet_weights(found[1])
            resnet.load_state_dict({key: value for key, value in weights.items() if not key.startswith("fc.")})
        return resnet
    known = [*BACKBONE_REGISTRY.registered_names(), *models.list_models(module=models)]
    check_availability(name, known, "backbone (MODEL.BACKBONE.NAME)")
    model = VisionBackbone(name)
    if pretrained:
        model.model.load_state_dict(_imagenet_weights(name))
    model.drop_last()
    return model


def _imagenet_weights(name: str) -> dict[str, Tensor]:
    """Return the state dict of the weights."""
    weights = models.get_model_weights(name).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise FileNotFoundError(
            f"MODEL.BACKBONE.PRETRAINED: no weights for {name} ({error}): put {weights.url} into "
            "~/.cache/torch/hub/checkpoints, or set the key to False"
        ) from error
