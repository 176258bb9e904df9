"""How the weights of a CLIP are named: the layouts that are read, and what other files look like.

Every layout is brought to the names of OpenAI's release. The table is `LAYOUTS`; `describe` says of other state dicts
what they look like.

Shape legend: D tower width, E embedding width.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]
WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "module",
)  # entries of training checkpoints that hold the weights
PREFIXES = (
    "_orig_mod.",
    *(f"{name}." for name in WRAPPERS),
)  # of compiled and data-parallel models, flattened wrappers


@dataclass(frozen=True)
class Layout:
    """One way to name the weights of a CLIP.

    Attributes:
        name: what it is called in messages.
        keys: that every state dict of this layout has.
        convert: gives the state dict in OpenAI's names.
    """

    name: str
    keys: tuple[str, ...]
    convert: Callable[[State], dict[str, Tensor]]


_TRANSFORMERS = (  # names of transformers' CLIPModel, in this order, and OpenAI's
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", ""),
    (r"embeddings\.class_embedding$", "class_embedding"),
    (r"embeddings\.patch_embedding\.weight$", "conv1.weight"),
    (r"embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"embeddings\.token_embedding\.", "token_embedding."),
    (r"pre_layrnorm\.", "ln_pre."),
    (r"post_layernorm\.", "ln_post."),
    (r"final_layer_norm\.", "ln_final."),
    (r"encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"\.self_attn\.(?=out_proj)", ".attn."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_QUERY = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)")


def _from_transformers(state: State) -> dict[str, Tensor]:
    """OpenAI's names: projections (E, D) become (D, E), and query, key and value one packed (3 D, D).

    Raises:
        ValueError: a part of an attention's input projection is missing.
    """
    out = {}
    for key, value in state.items():
        if key in _PROJECTIONS:
            out[_PROJECTIONS[key]] = value.T.contiguous()
        elif match := _QUERY.fullmatch(key):
            parts = [f"{match[1]}.self_attn.{part}_proj.{match[2]}" for part in "qkv"]
            if missing := [part for part in parts if part not in state]:
                raise ValueError(f"not the weights of a CLIP: no {', '.join(missing)}")
            out[_openai_name(f"{match[1]}.attn.in_proj_{match[2]}")] = torch.cat([state[part] for part in parts])
        elif not key.endswith((".position_ids", "k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias")):
            out[_openai_name(key)] = value
    return out


def _openai_name(key: str) -> str:
    for pattern, name in _TRANSFORMERS:
        key = re.sub(pattern, name, key)
    return key


LAYOUTS = (
    Layout("OpenAI's", ("token_embedding.weight", "text_projection", "logit_scale"), dict),
    Layout("open_clip's", ("text.token_embedding.weight", "logit_scale"), dict),
    Layout(
        "transformers' CLIPModel",
        (
            "logit_scale",
            "text_model.embeddings.token_embedding.weight",
            "vision_model.embeddings.class_embedding",
            "visual_projection.weight",
        ),
        _from_transformers,
    ),
)


def layout_of(state: State) -> Layout | None:
    """The layout of a state dict, None where it is none that is read."""
    return next((layout for layout in LAYOUTS if all(key in state for key in layout.keys)), None)


def unwrap(tree: object) -> object:
    """What training checkpoints hold as weights: out of their entries, however nested, without their prefixes.

    Raises:
        ValueError: a checkpoint holds the weights of several CLIPs, such as a model and its running average.
    """
    for _ in range(8):  # wrappers in wrappers: no real file has more than three
        if not isinstance(tree, Mapping) or layout_of(tree):
            return tree
        wrapped = [name for name in WRAPPERS if isinstance(tree.get(name), Mapping)]
        whole = [name for name in wrapped if _holds_layout(tree[name])]
        if len(whole) > 1:
            raise ValueError(f"it holds several sets of weights, {' and '.join(whole)}: keep one of them")
        name = next(iter(whole or wrapped), None)
        inner = _without_prefix(tree) if name is None else tree[name]
        if inner is None:
            return tree
        tree = inner
    return tree


def _without_prefix(tree: Mapping) -> Mapping | None:
    """The entries under a prefix that all entries have, or under which the weights of a CLIP are; None without one."""
    for prefix in PREFIXES:
        inner = {key[len(prefix) :]: value for key, value in tree.items() if str(key).startswith(prefix)}
        if inner and (len(inner) == len(tree) or _holds_layout(inner)):
            if _holds_layout({key: value for key, value in tree.items() if not str(key).startswith(prefix)}):
                raise ValueError(f"it holds the weights of another CLIP beside those below {prefix}: keep one of them")
            return inner
    return None


def _holds_layout(tree: Mapping) -> bool:
    """Whether a tree has a known layout's keys, below further prefixes or at once."""
    names = list(map(str, tree))
    return any(all(any(name.endswith(key) for name in names) for key in layout.keys) for layout in LAYOUTS)


TEXT_HALF, IMAGE_HALF = "the text half of a CLIP", "the image half of a CLIP"
_LOOKS = (  # the first pattern that some key matches
    (r"prompt_learner\.|^ctx$|^token_prefix$", "a checkpoint of learned prompts, not of a backbone"),
    (r"lora_[AB]|\.lora\.|_lora", "an adapter (LoRA), not whole weights"),
    (r"^vision_model\.head\.probe$", "transformers' SiglipModel; use open_clip's weights of it"),
    (r"^text_model\.", "a part of transformers' CLIPModel"),
    (r"^vision_model\.", "the image half of transformers' CLIPModel"),
    (r"^text_decoder\.|^text\.cls_emb$", "an open_clip checkpoint of a CoCa"),
    (r"^visual\.trunk\.(blocks|patch_embed)", "an open_clip checkpoint with an image tower of timm (EVA, SigLIP, ...)"),
    (r"^visual\.trunk\.", "an open_clip checkpoint with an image tower of timm (ConvNeXt, Swin, ...)"),
    (r"^text\.transformer\.(encoder|embeddings)", "an open_clip checkpoint with a Hugging Face text tower"),
    (r"^text\.(token_embedding|transformer)", "an open_clip checkpoint with a text tower of its own"),
    (r"^visual_encoder\.|^text_encoder\.", "a BLIP or ALBEF checkpoint"),
    (r"^(backbone\.|student\.|teacher\.)?blocks\.\d+\.", "a DINO backbone or a ViT classifier"),
    (r"^(backbone\.|encoder_q\.)?layer4\.\d+\.conv", "a ResNet classifier"),
    (r"^(features|classifier)\.", "a classifier of torchvision"),
    (r"^(model\.)?encoder\.layers?\.|^(bert|roberta)\.", "a language model or an encoder alone"),
    (r"^transformer\.resblocks\.", TEXT_HALF),
    (r"^visual\.", IMAGE_HALF),
)


def describe(state: State) -> str:
    """What a state dict looks like that is not read, "" where nothing is recognised."""
    found = [name for pattern, name in _LOOKS if any(re.search(pattern, str(key)) for key in state)]
    return found[0] if found and found != [TEXT_HALF, IMAGE_HALF] else ""
