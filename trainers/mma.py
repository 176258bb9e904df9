"""MMA: adapters beside the deep blocks of both towers, whose bottleneck the towers share.

Yang, Zhang, Wang, Xie, "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR 2024.

Shape legend: N sequences, T tokens, C classes, E embedding width, D tower width, r bottleneck width.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import Method
from adaptation.templates import fill
from adaptation.trainer import MethodTrainer
from clip.backbone import Backbone
from clip.towers import Adapter
from dassl.engine import TRAINER_REGISTRY


class Linear(nn.Linear):
    """A linear layer in the precision of its input; Kaiming-normal weights (fan-out) and no bias at the start."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__(width_in, width_out)
        nn.init.kaiming_normal_(self.weight, mode="fan_out")
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width in) -> (N, T, width out)."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class TowerAdapter(nn.Module):
    """A block's adapter in one tower: down to the bottleneck, through what the towers share, and up again."""

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.down = nn.Sequential(Linear(width, bottleneck), nn.ReLU())
        self.up = Linear(bottleneck, width)

    def forward(self, x: Tensor, shared: nn.Module, scale: float) -> Tensor:
        """What is added to the output of a block of normalised input x, (N, T, D) -> (N, T, D).

        That is `scale` times the adapter's output. Its weights get the gradient that they would have with a scale of 1:
        the gradient is scaled on its way into the block's input instead.
        """
        x = x.detach() + scale * (x - x.detach())  # the value of x, `scale` times its gradient
        added = self.up(shared(self.down(x)))
        return scale * added.detach() + (added - added.detach())  # `scale` times the value, the gradient as it is


class MMAMethod(Method):
    """CLIP with adapters beside blocks `first .. last` of either tower, counted from 1; one template.

    Learned: per block `text_adapter.<block>.{down.0, up}` and `visual_adapter. ...`, D_t or D_v to r and back, and
    `shared_adapter.<block>.0`, r to r. Blocks that a tower does not have are left out. At the start the method is
    nearly zero-shot CLIP: what is added is small.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of a class.
        first: number of the first block with an adapter. last: of the last one.
        bottleneck: r.
        scale: of what is added.

    Raises:
        ValueError: numbers out of range (named), or a tower that has no attention blocks to adapt.
    """

    tokens: Tensor
    checkpoint_names = {
        "shared_adapter.*.0.*": "adapter_learner.shared_adapter.*.0.*",
        **{
            f"{side}_adapter.*.{name}.*": f"adapter_learner.{side}_adapter.*.{name}.*"
            for side in ("text", "visual")
            for name in ("down.0", "up")
        },
    }

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        template: str = "a photo of a {}.",
        first: int = 5,
        last: int = 12,
        bottleneck: int = 32,
        scale: float = 0.001,
    ):
        if backbone.vision_width is None:
            raise ValueError(f"{backbone.name} is a ResNet: its image tower has no blocks to adapt; choose a ViT")
        deepest = max(backbone.text_layers, backbone.vision_layers)
        if not 1 <= first <= min(last, deepest):
            raise ValueError(
                f"TRAINER.MMADAPTER.ADAPTER_START is {first}, but must lie between 1 and the smaller of ADAPTER_END "
                f"({last}) and the {deepest} blocks of {backbone.name}"
            )
        if bottleneck < 1:
            raise ValueError(f"TRAINER.MMADAPTER.ADAPTER_DIM is {bottleneck}, but must be at least 1")
        numbers = range(first, min(last, deepest) + 1)
        shared = nn.ModuleDict({str(i): nn.Sequential(Linear(bottleneck, bottleneck), nn.ReLU()) for i in numbers})

        def of_tower(width: int, layers: int) -> nn.ModuleDict:
            return nn.ModuleDict({str(i): TowerAdapter(width, bottleneck) for i in numbers if i <= layers})

        def per_block(own: nn.ModuleDict, layers: int) -> list[Adapter | None]:
            names = [str(i) for i in range(1, layers + 1)]
            return [partial(own[i], shared=shared[i], scale=scale) if i in own else None for i in names]

        text = of_tower(backbone.text_width, backbone.text_layers)
        visual = of_tower(backbone.vision_width, backbone.vision_layers)
        sides = per_block(visual, backbone.vision_layers), per_block(text, backbone.text_layers)
        super().__init__(backbone.with_adapters(*sides, tokenwise=True), classnames)
        self.text_adapter, self.visual_adapter, self.shared_adapter = text, visual, shared
        self.register_buffer("tokens", backbone.tokenize(fill(template, classnames)), persistent=False)

    def text_features(self) -> Tensor:
        """Features (C, E) of the template's sentences through the adapted tower."""
        return self.backbone.encode_text(self.tokens)


@TRAINER_REGISTRY.register()
class MMA(MethodTrainer):
    """Trains MMA."""

    checkpoint_dir = "adapter_learner"
    CONFIG = {
        "MMADAPTER": CfgNode(
            {
                "TEXT_CTX_INIT": "a photo of a",  # the words before the class name
                "ADAPTER_START": 5,  # blocks are counted from 1
                "ADAPTER_END": 12,
                "ADAPTER_DIM": 32,
                "ADAPTER_SCALE": 0.001,
                "PREC": "amp",
            }
        )
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """MMA as the keys say."""
        keys = self.settings
        template = f"{keys.TEXT_CTX_INIT.replace('_', ' ')} {{}}."
        sizes = (keys.ADAPTER_START, keys.ADAPTER_END, keys.ADAPTER_DIM, keys.ADAPTER_SCALE)
        return MMAMethod(backbone, classnames, template, *sizes)
