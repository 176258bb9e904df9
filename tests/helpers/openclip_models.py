"""open_clip models of the real architectures at a reduced size, with random weights, and the files they are found in.

timm's models are sized by their name, so reduced ones are registered under names of their own.
"""

import json
import re
from pathlib import Path

import open_clip
import torch
from timm.models import eva, register_model, vision_transformer
from torch import Tensor, nn

from clip import openclip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
VIT = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16}
SIGLIP_TEXT = {
    "context_length": 16,
    "vocab_size": 100,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "width": 64,
    "heads": 2,
    "layers": 3,
}
SIZES = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 2}


def _reduced(real, **overrides):
    """A timm model of the settings of a real one, at other sizes, registered as `reduced_<name>`."""

    def build(pretrained=False, **kwargs):
        return real(pretrained=False, **{**SIZES, **overrides, **kwargs})

    build.__name__, build.__module__ = f"reduced_{real.__name__}", __name__
    return register_model(build)


_reduced(eva.eva02_base_patch16_clip_224)
_reduced(eva.eva_giant_patch14_224)
_reduced(eva.vit_pe_core_base_patch16_224, attn_pool_num_heads=2, ref_feat_shape=(2, 2))
_reduced(vision_transformer.vit_base_patch16_siglip_224)


def _timm(name: str, pool: str, proj: str | None) -> dict:
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 32}


CONFIGS = {
    "reduced-ViT": {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT},
    "reduced-ViT-quickgelu": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "reduced-CLIPA": {
        "embed_dim": 32,
        "vision_cfg": {**VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": {**TEXT, "context_length": 16, "pool_type": "last", "no_causal_mask": True},
    },
    "reduced-CoCa": {
        "embed_dim": 64,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "context_length": 20, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
        "custom_text": True,
    },
    "reduced-EVA02": {
        "embed_dim": 32,
        "vision_cfg": _timm("reduced_eva02_base_patch16_clip_224", "token", None),
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "reduced-EVA01": {
        "embed_dim": 32,
        "vision_cfg": _timm("reduced_eva_giant_patch14_224", "token", None),
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "reduced-PE": {
        "embed_dim": 32,
        "vision_cfg": _timm("reduced_vit_pe_core_base_patch16_224", "map", None),
        "text_cfg": {**TEXT, "context_length": 32},
        "custom_text": True,
    },
    "reduced-SigLIP": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "vision_cfg": _timm("reduced_vit_base_patch16_siglip_224", "map", "none"),
        "text_cfg": SIGLIP_TEXT,
        "custom_text": True,
    },
    "reduced-MobileCLIP2": {
        "embed_dim": 32,
        "vision_cfg": _timm("reduced_eva_giant_patch14_224", "token", None),
        "text_cfg": {**TEXT, "no_causal_mask": True},
        "custom_text": True,
    },
    "reduced-ResNet": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "reduced-ConvNeXt": {
        "embed_dim": 32,
        "vision_cfg": {**_timm("test_convnext", "", "linear"), "image_size": 64},
        "text_cfg": TEXT,
    },
}


def register(folder: Path) -> None:
    """Make open_clip know the reduced models by name."""
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def random_model(name: str, seed: int = 0) -> nn.Module:
    """The library's model with weights at which every part matters: no zero biases, no damped projections."""
    model = openclip.new_model(CONFIGS[name]).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(_random(key, value, generator))
    return model


def _random(key: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if key in ("logit_scale", "logit_bias"):
        return torch.full(like.shape, {"logit_scale": 3.0, "logit_bias": -10.0}[key])
    draw = torch.randn(like.shape, generator=generator)
    if key.endswith("running_var"):
        return 1 + 0.1 * draw.abs()
    if like.ndim == 1 and key.endswith("weight"):
        return 1 + 0.1 * draw
    if like.ndim < 2:
        return 0.1 * draw
    if "embed" in key or "token" in key:
        return 0.3 * draw
    return draw * like[0].numel() ** -0.5


def siglip_tokenize(texts, context_length: int) -> Tensor:
    """Ids in SigLIP's manner: no start token, one id per word or sign, end token 1, padding 1."""
    tokens = torch.ones(len(texts), context_length, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        ids = [2 + sum(word.encode()) % 90 for word in re.findall(r"\w+|\S", text)]
        row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
    return tokens


def write_safetensors(model: nn.Module, path: Path) -> None:
    """The hub's format."""
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


def write_training_checkpoint(model: nn.Module, path: Path) -> None:
    """What open_clip's training writes."""
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, path)
