"""Backbones of the open_clip library: its models, as they are, described by the steps that the prompt loop runs.

No model code is copied or subclassed: each function here reads a built model and returns callables over its modules.

Shape legend: N sequences (images or sentences), T tokens, L text tokens, n prompt tokens, D tower width, E embedding
width.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from timm.layers import RotaryEmbeddingCat
from timm.models import Eva
from timm.models import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from clip import clip
from clip.backbone import Backbone
from clip.hub import FOLDER, SETTINGS, Source, resolve
from clip.model import Attention
from clip.precision import convert_all
from clip.towers import Attend, ImageTower, Rows, TextTower, attend_causal, largest_id
from clip.weight_files import DAMAGE, SIZE_ENTRIES, Weights, looks_like, read_weights, reason, require_small_zip
from clip.weights import DownloadError

Tokenize = Callable[[Sequence[str], int], Tensor]
TextModel: TypeAlias = open_clip.CLIP | TextTransformer  # the text half of a model: part of it, or the model itself
Token = Callable[[Tensor], Tensor]  # (N, T, ...) -> (N, 1, ...), what is read out of each sequence


# -- building and loading ----------------------------------------------------------------------------------------------


def load(name: str, path: str = "") -> Backbone:
    """A backbone by its open_clip name; see `clip.loading.load_backbone`.

    Raises:
        ValueError: unknown name (with the nearest known one), a model whose text tower takes no context, or a file that
            is damaged or holds another model.
        FileNotFoundError: `path` does not exist.
        DownloadError: a download failed; says what to put where.
    """
    source = resolve(name, path)
    tokenize, end_id = tokenizer_of(source)
    model = new_model(source.config)
    load_weights(model, source.name, source.weights, source.config)
    backbone = backbone_of(source.name, model, source.config["embed_dim"], tokenize, end_id, source.preprocess)
    backbone.architecture = {"library": "open_clip", **source.config}
    return backbone


def is_known(name: str) -> bool:
    """Whether a name is one of open_clip's models, with or without weights of it."""
    return name.partition(":")[0].replace("/", "-") in open_clip.list_models()


def new_model(config: dict) -> nn.Module:
    """The library's model of a description, randomly initialised; the global random state is left as it was."""
    config = deepcopy(config)
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    kind = open_clip.CLIP
    if config.pop("custom_text", False):
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    with torch.random.fork_rng(devices=[]):
        try:
            return kind(**config)
        except DAMAGE as error:
            raise ValueError(f"open_clip has no model of these settings: {reason(error)}") from error


def load_weights(model: nn.Module, name: str, file: Path, config: Mapping | None = None) -> None:
    """Fill a model from a file of any layout that is read, or from an .npz of Google's big_vision.

    Args:
        model: the library's model, as `new_model` makes it.
        name: of the backbone, for messages.
        file: the weights.
        config: open_clip's description of the model, with which what the file says of itself is compared.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds another model (both are named).
    """
    if file.suffix == ".npz":
        return _load_big_vision(model, name, file)
    read = read_weights(file)
    read.require(_facts(config or {}), name, "name the model that these weights are of, see docs/BACKBONES.md")
    try:
        model.load_state_dict(_library_state(model, read))
    except DAMAGE as error:
        raise ValueError(
            f"{file} is damaged or does not hold the weights of {name}: {reason(error)}{looks_like(read.state)}"
        ) from error
    return None


def _load_big_vision(model: nn.Module, name: str, file: Path) -> None:
    try:
        require_small_zip(file)
        open_clip.load_checkpoint(model, str(file))
    except DAMAGE as error:
        raise ValueError(f"{file} is damaged or does not hold the weights of {name}: {reason(error)}") from error


def _library_state(model: nn.Module, read: Weights) -> dict[str, Tensor]:
    """The state dict in the names and shapes of the library's model; no weight is resized."""
    state = convert_state_dict(model, {key: value for key, value in read.state.items() if key not in SIZE_ENTRIES})
    if not hasattr(model, "positional_embedding"):  # the text tower is a module of its own
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):
        own = getattr(model, key, None)
        if key in state and own is not None and state[key].numel() == 1:  # a scalar, or of one entry
            state[key] = state[key].reshape(own.shape)
    return state


def _facts(config: Mapping) -> dict:
    """What open_clip's description says of a model beside its sizes, by the names of `clip.weight_files.Weights`."""
    image, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    facts = {"text_heads": text.get("heads", 8), "layer_norm_eps": text.get("norm_kwargs", {}).get("eps", 1e-5)}
    if "timm_model_name" not in image:
        facts["activation"] = "quick_gelu" if config.get("quick_gelu") else "gelu"
        if isinstance(image.get("layers"), int):
            facts["image_heads"] = image["width"] // image.get("head_width", 64)
    return facts


def tokenizer_of(source: Source) -> tuple[Tokenize, int | None]:
    """How a model reads text: its tokenizer and the id of its end token, None where that is the largest id (CLIP's).

    Raises:
        ValueError: the tokenizer needs a package that is not installed.
        DownloadError: the tokenizer's files are neither here nor to be had.
    """
    text = source.config["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        return clip.tokenize, None
    if find_spec("transformers") is None:
        raise ValueError(f"the backbone {source.name} needs a tokenizer of transformers: pip install transformers")
    try:
        hf = HFTokenizer(
            str(source.folder or text["hf_tokenizer_name"]),
            context_length=text.get("context_length", 77),
            tokenizer_mode=text.get("tokenizer_mode"),
            **text.get("tokenizer_kwargs", {}),
        )
    except OSError as error:
        raise DownloadError(
            f"could not get the tokenizer {text['hf_tokenizer_name']} of {source.name} ({reason(error)}). On a machine "
            f"with a connection fetch its files, {SETTINGS} and the weights from https://huggingface.co/ into one "
            f"folder and use the name {FOLDER}<folder>"
        ) from error
    if hf.strip_sep_token:
        return partial(_tokenize, hf), 0
    words = hf.tokenizer
    return partial(_tokenize, hf), words.sep_token_id if words.eos_token_id is None else words.eos_token_id


def _tokenize(hf: HFTokenizer, texts: Sequence[str], context_length: int) -> Tensor:
    """Token ids (N, context length); the library would cut long sentences off, here they are refused."""
    for text in texts:
        length = len(hf.tokenizer(hf.clean_fn(text)).input_ids)
        if length > context_length:
            raise clip.too_long(text, length, context_length)
    return hf(list(texts), context_length)


def backbone_of(
    name: str, model: open_clip.CLIP, embed_dim: int, tokenize: Tokenize, end_id: int | None, preprocess: Mapping
) -> Backbone:
    """The interface of a loaded open_clip model.

    Args:
        name: what the configuration calls it.
        model: the library's model.
        embed_dim: E.
        tokenize: sentences, context length -> token ids (N, context length).
        end_id: id of the end token, None where it is the largest id of each sentence.
        preprocess: open_clip's description of the images (mean, std, interpolation, resize_mode, fill_color), as far as
            it is known.
    """
    names = {"mean": "pixel_mean", "std": "pixel_std", "resize_mode": "resize_mode", "fill_color": "fill_color"}
    constants = {own: preprocess[key] for key, own in names.items() if preprocess.get(key)}
    if preprocess.get("interpolation") == "bilinear":  # the library evaluates all others, "random" too, in bicubic
        constants["interpolation"] = "bilinear"
    image = image_tower(model.visual, embed_dim)
    text = text_tower(model, embed_dim, tokenize, end_id)
    if text.bind is not None:
        tokenize = partial(_refuse_padding_inside, tokenize, text.end)
    return Backbone(name, model, image, text, tokenize, to_half_precision=convert_all, **constants)


# -- image towers ------------------------------------------------------------------------------------------------------


def image_tower(visual: VisionTransformer | TimmModel, embed_dim: int) -> ImageTower:
    """The steps of an image tower; one that is no ViT gets no token slots.

    What is read out are the tower's own tokens: prompts act through attention and are dropped before pooling.

    Raises:
        ValueError: the tower takes images that are not square.
    """
    height, width = visual.image_size if isinstance(visual.image_size, (tuple, list)) else (visual.image_size,) * 2
    if height != width:
        raise ValueError(f"the image tower takes {height}x{width} images; only square ones are supported")
    if isinstance(visual, VisionTransformer):
        return _vit(visual, embed_dim, height)
    if isinstance(visual, TimmModel) and type(visual.trunk) in (TimmVisionTransformer, Eva):
        rope = getattr(visual.trunk, "rope", None)
        if rope is None or isinstance(rope, RotaryEmbeddingCat):
            return _timm_vit(visual, embed_dim, height)
    return ImageTower(
        width=None,
        output_dim=embed_dim,
        image_size=height,
        embed=lambda images: visual(_in_precision_of(visual, images)),
        norm=nn.Identity(),
        blocks=(),
        pool=nn.Identity(),
    )


def _in_precision_of(module: nn.Module, x: Tensor) -> Tensor:
    return x.to(next(module.parameters()).dtype)


def _vit(visual: VisionTransformer, embed_dim: int, image_size: int) -> ImageTower:
    """open_clip's own ViT; CoCa's attentional pooling reads the same tokens."""

    def embed(images: Tensor) -> Tensor:
        patches = visual.conv1(_in_precision_of(visual, images)).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.expand(patches.shape[0], 1, -1).to(patches.dtype)
        return torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)

    def pool(x: Tensor) -> Tensor:
        pooled, _ = visual._pool(x[:, : visual.positional_embedding.shape[0]])
        return pooled @ visual.proj

    blocks = visual.transformer.resblocks
    one = visual.pool_type == "tok" and visual.attn_pool is None and _can_read_one(blocks[-1])
    return ImageTower(
        width=visual.transformer.width,
        output_dim=embed_dim,
        image_size=image_size,
        embed=embed,
        norm=visual.ln_pre,
        blocks=tuple(blocks),
        pool=pool,
        last=partial(_read_one, blocks[-1], lambda x: x[:, :1]) if one else None,
        output_norm=visual.ln_post if visual.attn_pool is None else None,
        project=(lambda x: x @ visual.proj) if visual.attn_pool is None else None,
    )


def _timm_vit(visual: TimmModel, embed_dim: int, image_size: int) -> ImageTower:
    """A ViT of timm: SigLIP's, MobileCLIP-B's, and those of the EVA family, whose blocks take a rotary table."""
    trunk = visual.trunk
    own = trunk.num_prefix_tokens + trunk.patch_embed.num_patches
    rotary = isinstance(trunk, Eva)

    def embed(images: Tensor) -> Tensor:
        tokens = trunk._pos_embed(trunk.patch_embed(_in_precision_of(trunk, images)))
        return tokens[0] if rotary else tokens

    return ImageTower(
        width=trunk.embed_dim,
        output_dim=embed_dim,
        image_size=image_size,
        embed=embed,
        norm=trunk.norm_pre,
        blocks=tuple(partial(_rotary_block, trunk, block) for block in trunk.blocks) if rotary else tuple(trunk.blocks),
        pool=lambda x: visual.head(trunk.forward_head(trunk.norm(x[:, :own]))),
    )


def _rotary_block(trunk: Eva, block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """One block over (N, T + n, D); prompts behind the patches take no rotation (sine 0, cosine 1)."""
    if not isinstance(trunk.rope, RotaryEmbeddingCat):
        return block(x)
    table = trunk.rope.get_embed()
    prompts = x.shape[1] - trunk.num_prefix_tokens - table.shape[0]
    if prompts:
        half = table.new_zeros(prompts, table.shape[1] // 2)
        table = torch.cat([table, torch.cat([half, half + 1], dim=1)])
    return block(x, rope=table)


def _can_read_one(block: ResidualAttentionBlock) -> bool:
    """Whether `_read_one` knows the steps of this block."""
    return type(block) is ResidualAttentionBlock


def _read_one(block: ResidualAttentionBlock, token: Token, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What the last block gives for the token that is read out, (N, T, D) -> (N, 1, D): its own parts, one query.

    The mask, (1 or N, T, T), is added to the attention.
    """
    if mask is not None:
        mask = token(mask.expand(x.shape[0], -1, -1)).repeat_interleave(block.attn.num_heads, dim=0)
    normed = block.ln_1(x)
    x = token(x) + block.ls_1(block.attention(token(normed), normed, normed, mask))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


# -- text towers -------------------------------------------------------------------------------------------------------


def text_tower(model: open_clip.CLIP, embed_dim: int, tokenize: Tokenize, end_id: int | None) -> TextTower:
    """The steps of an open_clip text tower: causal or not, pooled at the end token, at the last position, or at CoCa's
    appended class token.

    What the full context has after the end token is put back where it matters: all padding for a tower that reads it,
    for CoCa the one padding token that its mask lets through.

    Raises:
        ValueError: the tower pools in a way that has no one position.
    """
    text = getattr(model, "text", model)
    pool_type = model.text_pool_type if text is model else text.pool_type
    class_token = getattr(text, "cls_emb", None)
    if class_token is not None:
        pool_type = "last"  # where it stands
    if pool_type not in ("argmax", "eos", "last", "first"):
        raise ValueError(f"the text tower pools by {pool_type!r}, which is not supported")
    end = largest_id if end_id is None or pool_type == "argmax" else partial(_first_of, end_id)
    empty = tokenize([""], text.context_length)
    blocks = text.transformer.resblocks
    packable = pool_type in ("argmax", "eos") and text.attn_mask is not None and all(map(_can_read_one, blocks))
    last = partial(_read_text, text, pool_type) if class_token is None and _can_read_one(blocks[-1]) else None
    return TextTower(
        width=text.transformer.width,
        output_dim=embed_dim,
        context_length=text.context_length,
        lookup=text.token_embedding,
        embed=partial(_embed_text, text, int(empty[0, -1]), pool_type),
        blocks=tuple(
            partial(_block, block, attend=attend_causal) if packable else partial(_text_block, text, block)
            for block in blocks
        ),
        pool=partial(_pool_text, text, pool_type),
        end=end,
        start=int(end(empty)),
        bind=None if class_token is None else partial(_bind_class_token, text),
        last=partial(_block, blocks[-1]) if packable else last,
        packable=packable,
    )


def _first_of(end_id: int, tokens: Tensor) -> Tensor:
    """Position of the first such id: (N, L) -> (N,)."""
    return (tokens == end_id).int().argmax(dim=-1)


def _embed_text(text: TextModel, pad_id: int, pool_type: str, x: Tensor) -> Tensor:
    """Embeddings (N, L, D) -> tokens (N, T, D) with the padding that takes part, the class token and positions."""
    n, length, _ = x.shape
    class_token = getattr(text, "cls_emb", None)
    missing = text.context_length - length
    if class_token is not None:
        missing = min(missing, 1)
    elif text.attn_mask is not None and pool_type != "last":
        missing = 0
    weights = text.token_embedding.weight
    tokens = torch.cat([x.to(weights.dtype), weights[pad_id].expand(n, missing, -1)], dim=1)
    positions = text.positional_embedding[: length + missing]
    if class_token is not None:
        tokens = torch.cat([tokens, class_token.expand(n, 1, -1)], dim=1)
        positions = torch.cat([positions, text.positional_embedding[-1:]])
    return tokens + positions


def _mask(text: TextModel, x: Tensor) -> Tensor | None:
    """The tower's causal mask (T, T) for tokens (N, T, D), where it has one; inserted tokens may make T longer."""
    mask, length = text.attn_mask, x.shape[1]
    if mask is None or length <= mask.shape[0]:
        return None if mask is None else mask[:length, :length]
    return mask.new_full((length, length), float("-inf")).triu(1)


def _text_block(text: TextModel, block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """One block over (N, T, D), under the tower's mask."""
    return block(x, attn_mask=_mask(text, x))


def _block(block: ResidualAttentionBlock, x: Tensor, attend: Attend, rows: Rows | None = None) -> Tensor:
    """One block's own parts over (N, T, D), or for the tokens at `rows`, (N, 1, D), with another attention."""
    own, normed = block.attn, block.ln_1(x)
    attended = Attention.forward(own, normed, attend, rows=rows)  # the library's has the same parameters
    x = (x if rows is None else x[rows]) + block.ls_1(attended)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _read_text(text: TextModel, pool_type: str, x: Tensor, rows: tuple[Tensor, Tensor]) -> Tensor:
    """The last block for the token that is read out: (N, T, D), index of the end tokens -> (N, 1, D)."""
    token = partial(_pooled_token, pool_type, rows[1][:, 0])
    return _read_one(text.transformer.resblocks[-1], token, x, _mask(text, x))


def _bind_class_token(text: TextModel, x: Tensor, end: Tensor) -> tuple[Callable[[Tensor], Tensor], ...]:
    """CoCa's blocks under its mask for tokens (N, T, D), the class token last.

    The library marks padding one position too far to the right: every token sees one padding token, and the class token
    sees itself only where the sentence fills the context. Weights were trained so (`correct_cls_mask` is for new ones).
    """
    positions = torch.arange(x.shape[1], device=x.device)
    positions[-1] = text.context_length
    if text.correct_cls_mask:
        seen = (positions <= end[:, None]) | (positions == text.context_length)
    else:
        seen = positions <= end[:, None] + 1
    causal = _mask(text, x)
    assert causal is not None, "CoCa's text tower is causal"
    mask = causal.masked_fill(~seen[:, None, :], float("-inf"))
    of_heads = mask.repeat_interleave(text.heads, dim=0)
    blocks = [partial(block, attn_mask=of_heads) for block in text.transformer.resblocks]
    if _can_read_one(blocks[-1].func):
        blocks[-1] = partial(_read_one, blocks[-1].func, lambda tokens: tokens[:, -1:], mask=mask)
    return tuple(blocks)


def _refuse_padding_inside(tokenize: Tokenize, end: Callable, texts: Sequence[str], context_length: int) -> Tensor:
    """Token ids; refuses a sentence with the padding id before its end, which CoCa's mask would take for padding."""
    tokens = tokenize(texts, context_length)
    inside = (tokens == 0).int().argmax(dim=-1) < end(tokens)
    for text, cut in zip(texts, (inside & (tokens == 0).any(dim=-1)).tolist(), strict=True):
        if cut:
            raise ValueError(f"{text!r} contains token 0 (a '!' joined to what follows), CoCa's padding: reword it")
    return tokens


def _pooled_token(pool_type: str, end: Tensor, x: Tensor) -> Tensor:
    """The token that is read out, (N, T, ...) -> (N, 1, ...); `end` (N,) is the position of the end token."""
    if pool_type in ("last", "first"):
        return x[:, -1:] if pool_type == "last" else x[:, :1]
    return x[torch.arange(x.shape[0], device=x.device), end][:, None]


def _pool_text(text: TextModel, pool_type: str, x: Tensor, end: Tensor) -> Tensor:
    """Tokens (N, T, D) -> features (N, E)."""
    x, projection = text.ln_final(_pooled_token(pool_type, end, x)[:, 0]), text.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection
