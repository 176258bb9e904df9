"""CLIP in the calling conventions of OpenAI's package and of the code grown from it, for trainers written by others.

Two things differ from `clip.model`. Transformers and blocks take tokens (T, N, D), sequence first, and hold the causal
mask themselves; and prompts may be part of the towers, as the dictionary `design_details` of the MaPLe family asks:

    vision_depth, vision_ctx       the image tower's first `vision_depth` blocks get `vision_ctx` learned tokens each:
                                   `visual.VPT`, `visual.transformer.resblocks.i.VPT_shallow`
    language_depth, language_ctx   so do the text tower's blocks 1 .. language_depth - 1:
                                   `transformer.resblocks.i.VPT_shallow`
    trainer, maple_length          not needed: prompts that the caller computes (MaPLe) come as arguments

This project's own methods hand prompts to plain towers instead (`clip.towers`) and never use this module.

Shape legend: N sequences, T tokens, n prompt tokens, D tower width, E embedding width.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from clip.model import CLIP, ResidualAttentionBlock, VisionTransformer, from_state_dict
from clip.precision import CPU
from clip.towers import ImageTower, TextTower, encode_image, run_blocks

logger = logging.getLogger(__name__)

SIZES = ("vision_depth", "vision_ctx", "language_depth", "language_ctx")
UNUSED = ("trainer", "maple_length")
PROMPT_STD = 0.02


def _prompt(n: int, width: int) -> nn.Parameter:
    """Tokens (n, D) from N(0, 0.02^2). On the host whatever the default device: no weights file holds their values."""
    return nn.Parameter(torch.randn(n, width, device=CPU) * PROMPT_STD)


class SequenceFirstBlock(ResidualAttentionBlock):
    """The block of `clip.model`, sequence first, with its mask and perhaps tokens of its own.

    Args:
        width: D.
        heads: attention heads.
        mask: (L, L), added to the attention scores; None for no mask.
        prompt: tokens (n, D) that overwrite the slots before attention: positions 1..n under a mask (text), the last n
            without (images).
    """

    attn: nn.MultiheadAttention  # type: ignore[assignment]  # that of OpenAI's package, not of clip.model

    def __init__(self, width: int, heads: int, mask: Tensor | None = None, prompt: nn.Parameter | None = None):
        super().__init__(width, heads)
        self.attn = nn.MultiheadAttention(width, heads)
        self.attn_mask = mask
        if prompt is not None:
            self.VPT_shallow = prompt

    def attention(self, x: Tensor) -> Tensor:
        """(T, N, D) -> (T, N, D)."""
        mask = None if self.attn_mask is None else self.attn_mask[: x.shape[0], : x.shape[0]].to(x)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the calling convention of OpenAI's package
        """(T, N, D) -> (T, N, D)."""
        if hasattr(self, "VPT_shallow"):
            prompt = self.VPT_shallow.to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
            start = 1 if self.attn_mask is not None else x.shape[0] - prompt.shape[0]
            x = torch.cat([x[:start], prompt, x[start + prompt.shape[0] :]])
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SequenceFirstTransformer(nn.Module):
    """A stack of sequence-first blocks.

    Args:
        width: D.
        layers: number of blocks.
        heads: attention heads.
        mask: the causal mask of a text tower; None for an image tower.
        depth: blocks 1 .. depth - 1 get `n` tokens of their own.
        n: tokens per prompted block.
    """

    def __init__(self, width: int, layers: int, heads: int, mask: Tensor | None = None, depth: int = 0, n: int = 0):
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(
            *(
                SequenceFirstBlock(width, heads, mask, _prompt(n, width) if 0 < i < depth else None)
                for i in range(layers)
            )
        )

    def batch_first_blocks(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """The blocks as the prompt loop of `clip.towers` calls them: (N, T, D) -> (N, T, D)."""
        return tuple(partial(_batch_first, block) for block in self.resblocks)

    def forward(self, x: Tensor | Sequence) -> Tensor | list:
        """Tokens (T, N, D) -> (T, N, D); or [tokens, prompts, counter] -> the same list, done (MaPLe's convention).

        With a list, before each block from the second on, the slots are overwritten with the next of the prompts, each
        (n, D) or (N, n, D), starting from number `counter`; it counts those that were used.
        """
        if isinstance(x, Tensor):
            return self.resblocks(x)
        tokens, prompts, counter = x
        used = list(prompts)[counter : counter + self.layers - 1]
        text = self.resblocks[0].attn_mask is not None
        start = 1 if text or not used else tokens.shape[0] - used[0].shape[-2]
        tokens = run_blocks(self.batch_first_blocks(), tokens.transpose(0, 1), [None, *used], start)
        return [tokens.transpose(0, 1), prompts, counter + len(used)]


def _batch_first(block: nn.Module, x: Tensor) -> Tensor:
    return block(x.transpose(0, 1)).transpose(0, 1)


class PromptedVisionTransformer(VisionTransformer):
    """The ViT image tower with sequence-first blocks and perhaps prompts of its own.

    Args:
        depth: blocks that get `n` tokens of their own, the input's counted; 0 for none.
        n: tokens per prompted block.
        sizes: arguments of `VisionTransformer`.
    """

    transformer: SequenceFirstTransformer  # type: ignore[assignment]  # sequence first

    def __init__(self, *sizes: int, depth: int = 0, n: int = 0):
        super().__init__(*sizes)
        width, layers, heads = sizes[2:5]
        if depth:
            self.VPT = _prompt(n, width)
        self.transformer = SequenceFirstTransformer(width, layers, heads, None, depth, n)

    def tower(self) -> ImageTower:
        """This module as the steps that the prompt loop runs; its own deep tokens are inside the blocks."""
        return replace(super().tower(), blocks=self.transformer.batch_first_blocks(), last=None, adaptable=False)

    def forward(
        self, images: Tensor, shared_ctx: Tensor | None = None, compound_deeper_prompts: Sequence[Tensor] = ()
    ) -> Tensor:
        """Image features (N, E), not normalised.

        Args:
            images: (N, 3, H, W).
            shared_ctx: tokens (n, D) appended to the patches, where the tower has none of its own (MaPLe).
            compound_deeper_prompts: tokens (n, D) that take their slots before blocks 1, 2, ...; what is beyond the
                last block is not used.
        """
        prompts = [getattr(self, "VPT", shared_ctx), *compound_deeper_prompts]
        return encode_image(self.tower(), images, prompts[: self.transformer.layers])


class PromptedCLIP(CLIP):
    """CLIP with sequence-first transformers and the prompts of a design.

    Args:
        design: the sizes named in the module's head; what is absent is 0.
        sizes: arguments of `CLIP`.

    Raises:
        ValueError: visual prompts for a ResNet.
    """

    transformer: SequenceFirstTransformer  # type: ignore[assignment]  # sequence first

    def __init__(self, design: Mapping[str, int], **sizes):
        super().__init__(**sizes)
        depth, n = design.get("vision_depth", 0), design.get("vision_ctx", 0)
        if isinstance(sizes["vision_layers"], int):
            names = ("image_resolution", "vision_patch_size", "vision_width", "vision_layers")
            heads = sizes["vision_width"] // 64
            tower = (*(sizes[name] for name in names), heads, sizes["embed_dim"])
            self.visual = PromptedVisionTransformer(*tower, depth=depth, n=n)
        elif depth:
            raise ValueError(f"vision_depth is {depth}, but a ResNet image tower has no token slots: choose a ViT")
        length, width = sizes["context_length"], sizes["transformer_width"]
        mask = torch.full((length, length), float("-inf"), device=CPU).triu(1)
        layers, heads = sizes["transformer_layers"], sizes["transformer_heads"]
        depth, n = design.get("language_depth", 0), design.get("language_ctx", 0)
        self.transformer = SequenceFirstTransformer(width, layers, heads, mask, depth, n)

    def text_tower(self) -> TextTower:
        """The text half as the steps that the prompt loop runs; its own deep tokens are inside the blocks."""
        blocks = self.transformer.batch_first_blocks()
        return replace(super().text_tower(), blocks=blocks, last=None, adaptable=False, packable=False)


def build(state_dict: Mapping[str, Tensor], design_details: Mapping | None = None) -> PromptedCLIP:
    """A float32 CLIP in evaluation mode, in these conventions, with weights of its own.

    Args:
        state_dict: OpenAI-format weights; prompts need not be among them.
        design_details: see the module's head; None for no prompts.

    Raises:
        ValueError: as `clip.model.from_state_dict`, or the design does not suit the image tower.
    """
    design = dict(design_details or {})
    unknown = sorted(design.keys() - {*SIZES, *UNUSED})
    if unknown:
        logger.warning("design_details: nothing here knows %s, so it changes nothing", ", ".join(unknown))
    # two models built from one state dict share nothing
    copies = {key: value.clone() for key, value in state_dict.items()}
    model = from_state_dict(copies, partial(PromptedCLIP, design))
    assert isinstance(model, PromptedCLIP)
    missing = [key for key in model.state_dict() if key not in state_dict]
    if missing:
        logger.info("Weights not found for some missing keys: %s", missing)
    return model
