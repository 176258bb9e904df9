"""OpenAI CLIP: ViT and ResNet image towers and the text transformer, in the parameter names of the released weights.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.

Shape legend: N sequences, T tokens, L text tokens, D tower width, E embedding width, H heads.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.precision import convert_weights as convert_weights
from clip.precision import to_float32
from clip.towers import (
    Adapter,
    Attend,
    ImageTower,
    QKVDelta,
    Rows,
    TextTower,
    attend_causal,
    encode_image,
    encode_text,
    largest_id,
)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in the precision of its own weights, whatever the activations' is."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), in the dtype of x."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that the released models were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise x * sigmoid(1.702 x), in the form that keeps least for the backward pass."""
        return F.silu(1.702 * x) / 1.702


class Attention(nn.Module):
    """Multi-head self-attention with one packed input projection, through the fused kernel of PyTorch.

    Parameter names are those of `nn.MultiheadAttention`, so released weights load as they are.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, x: Tensor, attend: Attend | None = None, delta: QKVDelta | None = None, rows: Rows | None = None
    ) -> Tensor:
        """(N, T, D) -> (N, T, D), or only the tokens at `rows`, (N, 1, D), at a fraction of the cost.

        Args:
            x: tokens.
            attend: which tokens see which, and the products of that; None where all see all.
            delta: x -> what is added to the projections, (N, T, 3 D).
            rows: index of the tokens that are wanted.
        """
        added, d = None if delta is None else delta(x), x.shape[-1]
        if rows is None:
            qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
            q, kv = (qkv if added is None else qkv + added).split([d, 2 * d], dim=-1)
        else:
            q = F.linear(x[rows], self.in_proj_weight[:d], self.in_proj_bias[:d])
            kv = F.linear(x, self.in_proj_weight[d:], self.in_proj_bias[d:])
            if added is not None:
                q, kv = q + added[rows][..., :d], kv + added[..., d:]
        q, kv = q.unflatten(-1, (self.num_heads, -1)), kv.unflatten(-1, (2, self.num_heads, -1))
        if attend is not None:
            return self.out_proj(attend(q, kv).flatten(2))
        q, k, v = (part.transpose(1, 2) for part in (q, *kv.unbind(2)))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ResidualAttentionBlock(nn.Module):
    """The pre-norm transformer block: attention and a four times wider MLP, both residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width))
        )
        self.ln_2 = LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        attend: Attend | None = None,
        delta: QKVDelta | None = None,
        rows: Rows | None = None,
        adapter: Adapter | None = None,
    ) -> Tensor:
        """(N, T, D) -> (N, T, D), or (N, 1, D) with `rows`; arguments as in `Attention`, and an adapter beside the
        block: normalised input (N, T, D) -> what is added to the output."""
        normed = self.ln_1(x)
        x = self.attn(normed, attend, delta, rows) + (x if rows is None else x[rows])
        x = x + self.mlp(self.ln_2(x))
        return x if adapter is None else x + adapter(normed if rows is None else normed[rows])


class Transformer(nn.Module):
    """A stack of residual attention blocks."""

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width, heads) for _ in range(layers)))
        std = width**-0.5
        for block in self.resblocks:
            nn.init.normal_(block.get_parameter("attn.in_proj_weight"), std=std)
            nn.init.normal_(block.get_parameter("attn.out_proj.weight"), std=std * (2 * layers) ** -0.5)
            nn.init.normal_(block.get_parameter("mlp.c_fc.weight"), std=(2 * width) ** -0.5)
            nn.init.normal_(block.get_parameter("mlp.c_proj.weight"), std=std * (2 * layers) ** -0.5)

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        for block in self.resblocks:
            x = block(x, attend)
        return x


class VisionTransformer(nn.Module):
    """The ViT image tower: patches and a class token, of which the class token is read out."""

    def __init__(self, input_resolution: int, patch_size: int, width: int, layers: int, heads: int, output_dim: int):
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((input_resolution // patch_size) ** 2 + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def embed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> class and patch tokens (N, 1 + patches, D) with positions, before `ln_pre`."""
        patches = self.conv1(images.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([class_token, patches], dim=1) + self.positional_embedding.to(patches.dtype)

    def pool(self, x: Tensor) -> Tensor:
        """Tokens (N, T, D) -> features (N, E), read from the class token."""
        return self.ln_post(x[:, 0]) @ self.proj

    def tower(self) -> ImageTower:
        """This module as the steps that the prompt loop runs."""
        return ImageTower(
            width=self.transformer.width,
            output_dim=self.output_dim,
            image_size=self.input_resolution,
            embed=self.embed,
            norm=self.ln_pre,
            blocks=tuple(self.transformer.resblocks),
            pool=self.pool,
            adaptable=True,
            last=partial(self.transformer.resblocks[-1], rows=(slice(None), slice(1))),
            output_norm=self.ln_post,
            project=lambda x: x @ self.proj,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> features (N, E), not normalised."""
        return encode_image(self.tower(), images)


class Bottleneck(nn.Module):
    """The ResNet block of CLIP: instead of striding, a convolution of stride 1 is followed by average pooling."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1):
        super().__init__()
        outplanes = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride > 1 or inplanes != outplanes:
            shortcut = nn.Conv2d(inplanes, outplanes, 1, bias=False)
            self.downsample = nn.Sequential(
                OrderedDict([("-1", nn.AvgPool2d(stride)), ("0", shortcut), ("1", nn.BatchNorm2d(outplanes))])
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) -> (N, 4 planes, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class AttentionPool2d(nn.Module):
    """Attention pooling: the mean of the feature map asks, the map and the mean answer."""

    def __init__(self, spacial_dim: int, embed_dim: int, num_heads: int, output_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(spacial_dim**2 + 1, embed_dim) * embed_dim**-0.5)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.c_proj = nn.Linear(embed_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (N, D, H, W) -> features (N, E)."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding.to(x.dtype)
        q, k, v = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    """The ResNet image tower of CLIP: three-convolution stem, anti-aliased strides, attention pooling."""

    def __init__(self, layers: tuple[int, ...], output_dim: int, heads: int, input_resolution: int, width: int):
        super().__init__()
        self.output_dim = output_dim
        self.input_resolution = input_resolution
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.relu = nn.ReLU()
        self._inplanes = width
        self.layer1 = self._stage(width, layers[0], stride=1)
        self.layer2 = self._stage(width * 2, layers[1], stride=2)
        self.layer3 = self._stage(width * 4, layers[2], stride=2)
        self.layer4 = self._stage(width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool2d(input_resolution // 32, width * 32, heads, output_dim)

    def _stage(self, planes: int, blocks: int, stride: int) -> nn.Sequential:
        stage = [Bottleneck(self._inplanes, planes, stride)]
        self._inplanes = planes * Bottleneck.expansion
        stage += [Bottleneck(self._inplanes, planes) for _ in range(1, blocks)]
        return nn.Sequential(*stage)

    def embed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> feature map (N, 32 width, H / 32, W / 32)."""
        x = images.to(self.conv1.weight.dtype)
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = self.relu(bn(conv(x)))
        x = self.avgpool(x)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def tower(self) -> ImageTower:
        """This module as the steps that the prompt loop runs: no token slots, no blocks."""
        return ImageTower(
            width=None,
            output_dim=self.output_dim,
            image_size=self.input_resolution,
            embed=self.embed,
            norm=nn.Identity(),
            blocks=(),
            pool=self.attnpool,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> features (N, E), not normalised."""
        return encode_image(self.tower(), images)


class CLIP(nn.Module):
    """OpenAI CLIP with its parameter names, `encode_image` and `encode_text`.

    Args:
        embed_dim: E.
        image_resolution: image size in pixels.
        vision_layers: number of ViT blocks, or the four stage depths of a ResNet.
        vision_width: D of the image tower (the stem's width of a ResNet).
        vision_patch_size: patch size in pixels, None for a ResNet.
        context_length: longest sentence in tokens.
        vocab_size: rows of the token table.
        transformer_width: D of the text tower.
        transformer_heads: heads of the text tower.
        transformer_layers: blocks of the text tower.
    """

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int | tuple[int, ...],
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
    ):
        super().__init__()
        self.context_length = context_length
        self.visual: VisionTransformer | ModifiedResNet
        if isinstance(vision_layers, int):
            assert vision_patch_size is not None, "a ViT has patches"
            heads = vision_width // 64
            self.visual = VisionTransformer(
                image_resolution, vision_patch_size, vision_width, vision_layers, heads, embed_dim
            )
        else:
            heads = vision_width * 32 // 64
            self.visual = ModifiedResNet(vision_layers, embed_dim, heads, image_resolution, vision_width)
        self.transformer = Transformer(transformer_width, transformer_layers, transformer_heads)
        self.vocab_size = vocab_size
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.randn(context_length, transformer_width) * 0.01)
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.randn(transformer_width, embed_dim) * transformer_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the image tower's first convolution, which stands for the model's."""
        return self.visual.conv1.weight.dtype

    def text_tower(self) -> TextTower:
        """The text half as the steps that the prompt loop runs."""

        def embed(x: Tensor) -> Tensor:
            # autocast converts where it must
            dtype = x.dtype if torch.is_autocast_enabled(x.device.type) else self.visual.conv1.weight.dtype
            return x.to(dtype) + self.positional_embedding[: x.shape[1]].to(dtype)

        def pool(x: Tensor, end: Tensor) -> Tensor:
            return self.ln_final(x[torch.arange(x.shape[0], device=x.device), end]) @ self.text_projection

        return TextTower(
            width=self.transformer.width,
            output_dim=self.text_projection.shape[1],
            context_length=self.context_length,
            lookup=self.token_embedding,
            embed=embed,
            blocks=tuple(partial(block, attend=attend_causal) for block in self.transformer.resblocks),
            pool=pool,
            adaptable=True,
            last=self.transformer.resblocks[-1],
            packable=True,
        )

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> features (N, E), not normalised."""
        return self.visual(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L) -> features (N, E), not normalised; runs on the longest real length only."""
        tower, end = self.text_tower(), largest_id(tokens)
        return encode_text(tower, tower.lookup(tokens[:, : int(end.max()) + 1]), end)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosine logits: per image (images, texts) and per text (texts, images)."""
        z = F.normalize(self.encode_image(images), dim=-1)
        t = F.normalize(self.encode_text(tokens), dim=-1)
        logits = self.logit_scale.exp() * z @ t.T
        return logits, logits.T


def _published(
    embed_dim: int, resolution: int, layers: int | tuple[int, ...], width: int, patch: int | None, text_width: int
) -> dict:
    """The arguments of `CLIP` of a released model."""
    return {
        "embed_dim": embed_dim,
        "context_length": 77,
        "vocab_size": 49408,
        "transformer_width": text_width,
        "transformer_heads": _heads(text_width),
        "transformer_layers": 12,
        "image_resolution": resolution,
        "vision_layers": layers,
        "vision_width": width,
        "vision_patch_size": patch,
    }


def architecture(state_dict: Mapping[str, Tensor]) -> dict:
    """Read the arguments of `CLIP` from the shapes of an OpenAI-format state dict.

    Raises:
        ValueError: a key that every OpenAI CLIP has is missing (named).
    """
    _require(state_dict, "text_projection", "positional_embedding", "token_embedding.weight", "ln_final.weight")
    _require(state_dict, "logit_scale")
    text_width = state_dict["ln_final.weight"].shape[0]
    return {
        "embed_dim": state_dict["text_projection"].shape[1],
        "context_length": state_dict["positional_embedding"].shape[0],
        "vocab_size": state_dict["token_embedding.weight"].shape[0],
        "transformer_width": text_width,
        "transformer_heads": _heads(text_width),
        "transformer_layers": _count(state_dict, "transformer.resblocks.", 2),
        **(_vit_sizes(state_dict) if "visual.proj" in state_dict else _resnet_sizes(state_dict)),
    }


def _require(state_dict: Mapping[str, Tensor], *keys: str) -> None:
    missing = [key for key in keys if key not in state_dict]
    if missing:
        raise ValueError(f"not the weights of an OpenAI CLIP: no {', '.join(missing)}")


def _heads(width: int) -> int:
    """Attention heads of a tower of this width: every OpenAI CLIP has heads of 64."""
    if width % 64:
        raise ValueError(f"not the weights of an OpenAI CLIP: its heads are 64 wide, but a tower is {width} wide")
    return width // 64


def _count(state_dict: Mapping[str, Tensor], prefix: str, part: int) -> int:
    """How many different numbers stand at dotted position `part` of the keys with this prefix."""
    return len({key.split(".")[part] for key in state_dict if key.startswith(prefix)})


def _vit_sizes(state_dict: Mapping[str, Tensor]) -> dict:
    _require(state_dict, "visual.conv1.weight", "visual.positional_embedding")
    width, _, patch, _ = state_dict["visual.conv1.weight"].shape
    _heads(width)
    grid = round((state_dict["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "image_resolution": grid * patch,
        "vision_layers": _count(state_dict, "visual.transformer.resblocks.", 3),
        "vision_width": width,
        "vision_patch_size": patch,
    }


def _resnet_sizes(state_dict: Mapping[str, Tensor]) -> dict:
    positions = state_dict.get("visual.attnpool.positional_embedding")
    if positions is None:
        raise ValueError("not the weights of an OpenAI CLIP: neither visual.proj nor visual.attnpool")
    _require(state_dict, "visual.layer1.0.conv1.weight")
    return {
        "image_resolution": 32 * round((positions.shape[0] - 1) ** 0.5),
        "vision_layers": tuple(_count(state_dict, f"visual.layer{i}.", 2) for i in (1, 2, 3, 4)),
        "vision_width": state_dict["visual.layer1.0.conv1.weight"].shape[0],
        "vision_patch_size": None,
    }


ARCHITECTURES = {  # of the names that stand for one
    "RN50": _published(1024, 224, (3, 4, 6, 3), 64, None, 512),
    "RN101": _published(512, 224, (3, 4, 23, 3), 64, None, 512),
    "RN50x4": _published(640, 288, (4, 6, 10, 6), 80, None, 640),
    "RN50x16": _published(768, 384, (6, 8, 18, 8), 96, None, 768),
    "RN50x64": _published(1024, 448, (3, 15, 36, 10), 128, None, 1024),
    "ViT-B/32": _published(512, 224, 12, 768, 32, 512),
    "ViT-B/16": _published(512, 224, 12, 768, 16, 512),
    "ViT-L/14": _published(768, 224, 24, 1024, 14, 768),
    "ViT-L/14@336px": _published(768, 336, 24, 1024, 14, 768),
    "tiny-ViT": {**_published(128, 32, 6, 128, 8, 128), "transformer_layers": 3},
}


def require_architecture(state_dict: Mapping[str, Tensor], name: str) -> None:
    """Refuse an OpenAI-format state dict that is not of the architecture that a name stands for.

    Raises:
        ValueError: it is another one's (which, or in which sizes it differs), or no OpenAI CLIP's at all.
    """
    own, wanted = architecture(state_dict), ARCHITECTURES[name]
    if own == wanted:
        return
    for other, sizes in ARCHITECTURES.items():
        if own == sizes:
            raise ValueError(
                f"this is {other}, but the backbone is named {name}: name it {other}, or give the weights of {name}"
            )
    others = ", ".join(f"{key} {own[key]} instead of {value}" for key, value in wanted.items() if own[key] != value)
    raise ValueError(
        f"this is not {name} ({others}): give the weights of {name}, or name the backbone by the path of the file"
    )


def described(model: CLIP) -> dict:
    """What decides the function of a model beside its weights: the entries of its architecture that no shape tells.

    They are the same for all of OpenAI's models but for the heads.
    """
    width = model.transformer.width
    visual = model.visual
    heads = visual.attnpool.num_heads if isinstance(visual, ModifiedResNet) else _heads(visual.transformer.width)
    return {
        "activation": "quick_gelu",
        "image_heads": heads,
        "text_heads": _heads(width),
        "layer_norm_eps": LayerNorm(1).eps,
        "text_mask": "causal",
        "image_pool": "attention" if isinstance(visual, ModifiedResNet) else "first token",
        "text_pool": "end token",
    }


def from_state_dict(state_dict: Mapping[str, Tensor], kind: Callable[..., CLIP] = CLIP) -> CLIP:
    """An evaluation-mode float32 CLIP of the sizes that the state dict has, holding its weights.

    Args:
        state_dict: OpenAI-format weights.
        kind: makes the model from the arguments of `CLIP`, on the meta device. What it puts on a real device has values
            and need not be among the weights.

    Raises:
        ValueError: the state dict is not an OpenAI CLIP's, or keys are missing, left over, no floats or of another
            shape (named).
    """
    weights = {k: v for k, v in state_dict.items() if k not in ("input_resolution", "context_length", "vocab_size")}
    sizes = architecture(weights)
    with torch.device("meta"):
        model = kind(**sizes)
    own = model.state_dict()
    shapes = {key: value.shape for key, value in own.items()}
    problems = {
        "missing": [key for key, value in own.items() if value.is_meta and key not in weights],
        "not used": [key for key in weights if key not in shapes],
        "no floats": [
            key
            for key, value in weights.items()
            if key in own and own[key].is_floating_point() and not value.is_floating_point()
        ],
        "of another shape": [key for key, value in weights.items() if shapes.get(key, value.shape) != value.shape],
    }
    if any(problems.values()):
        said = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"weights do not fit the architecture they imply ({sizes}); {said}")
    full_weights = {k: to_float32(v) if v.is_floating_point() else v for k, v in weights.items()}
    model.load_state_dict(full_weights, strict=False, assign=True)
    return model.eval()
