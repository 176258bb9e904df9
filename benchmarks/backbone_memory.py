"""Parameters and training memory of the backbones, computed without their weights and without a GPU.

python -m benchmarks.backbone_memory

A model is built from its published sizes with tensors that have shapes but no content, and one training step's forward
pass of APEX (two prompt tokens in every image block, a context of two, 16 images, 100 classes of 12 tokens) is traced.
What autograd keeps for the backward pass is counted once per storage, the weights are added. Attention counts as the
fused kernel. Not counted: what kernels use while they run, the allocator's rounding, the CUDA context (about 0.5 GB).
For an image tower that is no ViT only the context is learned. Prints the table of docs/BACKBONES.md.
"""

import sys

import open_clip
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from clip import openclip, towers
from clip.backbone import Backbone
from clip.clip import tokenize
from clip.model import CLIP
from clip.precision import CPU

IMAGES, CLASSES, LENGTH, PROMPTS = 16, 100, 12, 2
OPENAI = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")
OTHERS = (
    *("EVA02-B-16", "EVA02-L-14", "coca_ViT-B-32", "coca_ViT-L-14", "ViT-B-16-SigLIP", "ViT-L-16-SigLIP-256"),
    *("ViT-SO400M-14-SigLIP-384", "ViT-H-14", "PE-Core-B-16", "MobileCLIP-B", "convnext_base_w"),
)


def _build(name: str, mode: FakeTensorMode) -> Backbone:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = _openai(config) if name in OPENAI else openclip.new_model(config)
    with mode:
        model.to_empty(device=CPU)
    if name in OPENAI:
        return Backbone(name, model, model.visual.tower(), model.text_tower(), tokenize)
    return openclip.backbone_of(name, model, config["embed_dim"], tokenize, None, {})


def _openai(config: dict) -> CLIP:
    """OpenAI's model of these sizes."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    layers = vision["layers"]
    return CLIP(
        embed_dim=config["embed_dim"],
        image_resolution=vision["image_size"],
        vision_layers=layers if isinstance(layers, int) else tuple(layers),
        vision_width=vision["width"],
        vision_patch_size=vision["patch_size"],
        context_length=text["context_length"],
        vocab_size=text["vocab_size"],
        transformer_width=text["width"],
        transformer_heads=text["heads"],
        transformer_layers=text["layers"],
    )


def _size(tensors: list[Tensor]) -> int:
    """Bytes of the storages behind the tensors, each counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def training_memory(backbone: Backbone, mode: FakeTensorMode) -> int:
    """Bytes that the weights and one training step's saved tensors take together."""
    kept = [*backbone.parameters(), *backbone.buffers()]
    with mode, saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        width, size = backbone.vision_width, backbone.image_size
        prompts = [] if width is None else [_learned(PROMPTS, width) for _ in range(backbone.vision_layers)]
        z = towers.encode_image(backbone.image, torch.empty(IMAGES, 3, size, size), prompts)
        context = _learned(PROMPTS, backbone.text_width).expand(CLASSES, -1, -1)
        words = torch.empty(CLASSES, LENGTH - PROMPTS, backbone.text_width)
        end = torch.full((CLASSES,), LENGTH - 1)
        t = towers.encode_text(backbone.text, torch.cat([words[:, :1], context, words[:, 1:]], dim=1), end)
        _ = z.float() @ t.float().T
    return _size(kept)


def _learned(*shape: int) -> Tensor:
    return torch.empty(*shape, requires_grad=True)


def _count(module: nn.Module) -> float:
    """Parameters in millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def row(name: str) -> str:
    """One line of the table."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    backbone = _build(name, mode)
    full = training_memory(backbone, mode)
    with mode:
        backbone.to_half_precision(backbone.model)
    half = training_memory(backbone, mode)
    total, image = _count(backbone.model), _count(backbone.model.visual)
    slots = "-" if backbone.vision_width is None else f"{backbone.vision_width} x {backbone.vision_layers}"
    cells = (
        name,
        backbone.image_size,
        backbone.embed_dim,
        slots,
        f"{backbone.text_width} x {backbone.text_layers}",
        f"{total:.0f} ({image:.0f} image)",
        f"{full / 2**30:.2f}",
        f"{half / 2**30:.2f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    head = "| model | pixels | E | image width x blocks | text width x blocks | parameters, M | fp32, GiB | fp16, GiB |"
    for line in (head, "|" + "---|" * 8):
        sys.stdout.write(line + "\n")
    for model in OPENAI + OTHERS:
        sys.stdout.write(row(model) + "\n")
