"""CLIP-LoRA: low-rank additions to the query, key and value projections of both towers.

Zanella, Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024 (arXiv 2405.18541).

Shape legend: N sequences, T tokens, C classes, E embedding width, D tower width, r rank, L
adapted blocks, P adapted projections.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import Method
from adaptation.step_budget import StepBudgetTrainer
from adaptation.templates import DEFAULT, IMAGENET_SELECT, fill
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import stream_seed

PROJECTIONS = ("q", "k", "v")
ENCODERS = ("text", "vision", "both")
# which of L blocks are adapted, as (first, past the last) in twelfths of L
POSITIONS = {
    "all": (0, 12),
    "bottom": (0, 4),
    "mid": (4, 8),
    "up": (8, 12),
    "half-bottom": (0, 6),
    "half-up": (6, 12),
    "top3": (9, 12),
}


class SeededDropoutMask(torch.autograd.Function):
    """Which entries of P copies of (N, T, D) dropout keeps, (P, N, T, D) booleans: a function of a stream.

    The stream is a scalar in the host's memory. Where several runs are computed together (`adaptation.stacking`), each
    draws what it draws alone.
    """

    @staticmethod
    def forward(x: Tensor, stream: Tensor, copies: int, kept: float) -> Tensor:
        """Draw with this share that is kept."""
        generator = torch.Generator(x.device).manual_seed(int(stream))
        mask = torch.empty((copies, *x.shape), dtype=torch.bool, device=x.device)
        return mask.bernoulli_(kept, generator=generator)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        """Nothing is differentiable."""
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, in_dims: tuple, x: Tensor, stream: Tensor, copies: int, kept: float) -> tuple[Tensor, int]:
        """Draw for each run."""
        runs = range(info.batch_size)
        own = [x if in_dims[0] is None else x.select(in_dims[0], r) for r in runs]
        streams = [stream if in_dims[1] is None else stream[r] for r in runs]
        pairs = zip(own, streams, strict=True)
        return torch.stack([SeededDropoutMask.forward(*pair, copies, kept) for pair in pairs]), 0


class LowRank(nn.Module):
    """The addition to one projection: `(alpha / sqrt(r)) B A drop(x)` (paper, equation 3; the root is the code's).

    Learned: `w_lora_A` (r, D) and `w_lora_B` (D, r), which starts at zero.
    """

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.w_lora_A = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, width), a=5**0.5))
        self.w_lora_B = nn.Parameter(torch.zeros(width, rank))


class BlockDelta(nn.ModuleDict):
    """The additions to the P adapted projections of one block, by name: `q_proj`, `k_proj`, `v_proj`, or some of them.

    Args:
        projections: the adapted ones.
        width: D.
        rank: r.
        dropout: share of the input that each of them loses in training.

    Attributes:
        stream: of the dropout; another one for each step, and for each of several runs. Stays on the host.
        weights: A (P, r, D) and, scaled, B (P r, 3 D); the tower assembles them before it is run.
    """

    stream: Tensor
    weights: tuple[Tensor, Tensor]

    def __init__(self, projections: Sequence[str], width: int, rank: int, dropout: float):
        super().__init__({f"{p}_proj": LowRank(width, rank) for p in projections})
        self.dropout = dropout
        self.register_buffer("stream", torch.tensor(0), persistent=False)

    def _apply(self, fn, recurse: bool = True) -> "BlockDelta":
        stream = self.stream
        super()._apply(fn, recurse)
        self.stream = stream
        return self

    def drop(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (P, N, T, D), of which each copy has lost other entries, and none is scaled.

        A function of `stream`: what else draws random numbers does not matter to it. A batch that goes through its
        tower in chunks (`clip.chunking`) drops the same places in each part.
        """
        return x * SeededDropoutMask.apply(x, self.stream, len(self), 1 - self.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, 3 D), zero where a projection is not adapted."""
        a, b = self.weights
        if not self.training or self.dropout == 0:
            return F.linear(x, a.flatten(0, 1)) @ b
        low = self.drop(x).flatten(1, -2) @ a.mT  # (P, N T, r)
        return low.transpose(0, 1).flatten(1).unflatten(0, x.shape[:-1]) @ b


class TowerDeltas(nn.ModuleDict):
    """The additions to the blocks of one tower, by block number.

    Args:
        width: D. layers: blocks of the tower.
        position: which of them are adapted, one of `POSITIONS`; None for none.
        params: which projections.
        settings: the rank, alpha and dropout.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        position: str | None,
        params: Sequence[str],
        settings: tuple[int, float, float],
    ):
        first, stop = (layers * twelfths // 12 for twelfths in POSITIONS[position]) if position else (0, 0)
        rank, alpha, dropout = settings
        own = [p for p in PROJECTIONS if p in params]
        super().__init__({str(i): BlockDelta(own, width, rank, dropout) for i in range(first, stop)})
        self.layers = layers
        self.scale, self.dropout = alpha / rank**0.5, dropout
        # which third of (3 D) belongs to each adapted projection, (P, 1, 3, 1)
        places = torch.eye(len(PROJECTIONS))[[PROJECTIONS.index(p) for p in own]]
        self.register_buffer("places", places[:, None, :, None], persistent=False)

    def assemble(self, dtype: torch.dtype) -> None:
        """Make the weights of all blocks from what is learned, at once; called before each pass through the tower."""
        blocks: list[BlockDelta] = [*self.values()]  # type: ignore[list-item]  # of this class by __init__
        if not blocks:
            return
        pairs = [pair for block in blocks for pair in block.values()]
        a, b = (torch.stack([getattr(pair, name) for pair in pairs]) for name in ("w_lora_A", "w_lora_B"))
        scale = self.scale / (1 - self.dropout if self.training else 1)
        placed = b.mT[..., None, :].unflatten(0, (len(blocks), -1)) * (scale * self.places)  # (L, P, r, 3, D)
        every = a.to(dtype).unflatten(0, (len(blocks), -1)), placed.to(dtype).flatten(-2).flatten(1, 2)
        for block, *own in zip(blocks, *(weights.unbind() for weights in every), strict=True):
            block.weights = own[0], own[1]

    def per_block(self) -> list[BlockDelta | None]:
        """One entry per block of the tower, None where it is not adapted; empty if none is."""
        blocks = {number: block for number, block in self.items() if isinstance(block, BlockDelta)}
        return [blocks.get(str(i)) for i in range(self.layers)] if blocks else []


class CLIPLoRAMethod(Method):
    """CLIP with adapted towers and one template.

    Learned: per adapted block `text.<block>.<q|k|v>_proj.w_lora_A` and `w_lora_B`, and `vision. ...`. At the start the
    method is zero-shot CLIP.

    Args:
        backbone: the frozen CLIP.
        classnames: the classes.
        template: the sentence of a class.
        rank: r. alpha: the scale of the additions times the root of r. dropout: on the input of the additions.
        encoder: which towers are adapted: "text", "vision", "both".
        position: which blocks, one of `POSITIONS`.
        params: which projections, some of "q", "k", "v".

    Raises:
        ValueError: a value out of range (named), or a tower that has no attention blocks to adapt.
    """

    tokens: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classnames: list[str],
        template: str = DEFAULT,
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        encoder: str = "both",
        position: str = "all",
        params: Sequence[str] = PROJECTIONS,
    ):
        _check(backbone, rank, dropout, encoder, position, params)
        settings = rank, alpha, dropout
        in_text, in_vision = (position if encoder in (name, "both") else None for name in ("text", "vision"))
        text = TowerDeltas(backbone.text_width, backbone.text_layers, in_text, params, settings)
        vision = TowerDeltas(backbone.vision_width or 0, backbone.vision_layers, in_vision, params, settings)
        layers = vision.per_block(), text.per_block()
        # each sentence drops its own places
        adapted = backbone.with_qkv_deltas(*layers, tokenwise=True, varies=lambda: text.training and dropout > 0)
        super().__init__(adapted, classnames)
        self.text, self.vision = text, vision
        self.register_buffer("tokens", backbone.tokenize(fill(template, classnames)), persistent=False)

    def text_features(self) -> Tensor:
        """Features (C, E) of the template's sentences through the adapted tower."""
        self.text.assemble(self.number_format)
        return self.backbone.encode_text(self.tokens)

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W) through the adapted tower."""
        self.vision.assemble(self.number_format)
        return super().image_features(images)

    @property
    def number_format(self) -> torch.dtype:
        """What the towers' products are computed in."""
        return self.backbone.model.get_parameter("visual.conv1.weight").dtype

    def choose_dropout(self, seed: int, *keys: str | int) -> None:
        """Choose what the forward passes drop from now on: a function of (seed, keys) and the place in the towers."""
        for name, module in self.named_modules():
            if isinstance(module, BlockDelta):
                module.stream.fill_(stream_seed(seed, "dropout", *keys, name))


def _check(backbone: Backbone, rank: int, dropout: float, encoder: str, position: str, params: Sequence[str]) -> None:
    """Refuse values out of range, by the names of their keys."""
    choices = (("ENCODER", encoder, ENCODERS), ("POSITION", position, tuple(POSITIONS)))
    for key, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"TRAINER.CLIP_LORA.{key} is {value!r}, but must be one of {', '.join(allowed)}")
    if not params or not set(params) <= set(PROJECTIONS):
        raise ValueError(f"TRAINER.CLIP_LORA.PARAMS is {tuple(params)}, but must be some of {', '.join(PROJECTIONS)}")
    if rank < 1:
        raise ValueError(f"TRAINER.CLIP_LORA.RANK is {rank}, but must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"TRAINER.CLIP_LORA.DROPOUT is {dropout}, but must lie in [0, 1)")
    if encoder != "text" and backbone.vision_width is None:
        raise ValueError(
            f"{backbone.name} is a ResNet: its image tower has no attention blocks to adapt; set "
            "TRAINER.CLIP_LORA.ENCODER to 'text' or choose a ViT"
        )


@TRAINER_REGISTRY.register()
class CLIP_LoRA(StepBudgetTrainer):
    """Trains CLIP-LoRA. The learning rate follows the steps; their number may be given per shot."""

    model: CLIPLoRAMethod
    code_version = 2
    checkpoint_dir = "clip_lora"
    CONFIG = {
        "CLIP_LORA": CfgNode(
            {
                "RANK": 2,
                "ALPHA": 1.0,
                "DROPOUT": 0.25,
                "ENCODER": "both",
                "POSITION": "all",
                "PARAMS": PROJECTIONS,
                "N_ITERS": 0,  # steps per shot, in place of OPTIM.MAX_EPOCH; 0: the epochs count
                "LR_MIN": 1e-6,  # where the cosine ends
                "PREC": "amp",
            }
        )
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """CLIP-LoRA as the keys say; one template serves all data sets, another one ImageNet and its variants."""
        keys = self.settings
        template = IMAGENET_SELECT[0] if self.cfg.DATASET.NAME.startswith("ImageNet") else DEFAULT
        names = ("RANK", "ALPHA", "DROPOUT", "ENCODER", "POSITION", "PARAMS")
        return CLIPLoRAMethod(backbone, classnames, template, *(keys[name] for name in names))

    def forward_backward(self, batch) -> dict:
        """One step, with a dropout of its own."""
        self.model.choose_dropout(self.cfg.SEED, self.epoch, self.batch_idx)
        return super().forward_backward(batch)
