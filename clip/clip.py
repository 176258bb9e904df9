"""OpenAI's own surface: `load`, `tokenize`, `available_models`, `build_model`, `_MODELS`, `_download`."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from clip import weights
from clip.model import CLIP, from_state_dict
from clip.precision import HOST, convert_weights, default_device
from clip.simple_tokenizer import END, START, SimpleTokenizer

_MODELS = weights.OPENAI_MODELS
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class ContextLengthError(ValueError, RuntimeError):
    """A text has more tokens than the context holds (a RuntimeError in OpenAI's package)."""


@lru_cache(maxsize=1)
def tokenizer() -> SimpleTokenizer:
    """The one tokenizer of the process."""
    return SimpleTokenizer()


def available_models() -> list[str]:
    """Names that `load` accepts."""
    return [*_MODELS, *weights.CARRIED_MODELS]


def _download(url: str, root: str | None = None) -> str:
    """Path of the verified local copy of a weights address; see `clip.weights.download`."""
    return weights.download(url, root)


def locate(name: str, root: str | None = None) -> str:
    """Path of the weights of a model name, of a file, or of a model inside the folder `root`.

    Raises:
        ValueError: neither a known name nor a file; the sentence has the nearest name and lists all.
    """
    if name in weights.CARRIED_MODELS:
        return str(weights.CARRIED_MODELS[name])
    if name in _MODELS:
        return _download(_MODELS[name], root) if root else _download(_MODELS[name])
    if Path(name).is_file():
        return name
    near = get_close_matches(name, available_models(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(
        f"unknown backbone {name!r}{hint} Known: {', '.join(available_models())}, or a weights file's path"
    )


def build_model(state_dict: Mapping[str, Tensor], design_details: Mapping | None = None) -> CLIP:
    """A CLIP from OpenAI-format weights, converted to half precision as OpenAI's package does.

    `design_details` (a convention of later repositories) asks for prompts built into the towers. A design without any
    is the plain model; every other one is refused, because here prompts are arguments of the towers, not part of them.

    Raises:
        ValueError: unknown format, or a design with prompts in the towers.
    """
    depths = {key: value for key, value in (design_details or {}).items() if key != "trainer" and value}
    if depths:
        raise ValueError(f"design_details asks for prompts inside the towers ({depths}); this CLIP builds none")
    model = from_state_dict(state_dict)
    convert_weights(model)
    return model


def read_model(file: str | Path) -> CLIP:
    """A float32 CLIP from a weights file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or one that holds something else (the file is named).
    """
    state_dict = weights.read_state_dict(file)
    try:
        return from_state_dict(state_dict)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def preprocess(size: int) -> Callable[[Image.Image], Tensor]:
    """OpenAI's test transform: bicubic resize of the short side, centre crop, RGB, normalisation."""
    return T.Compose(
        [
            T.Resize(size, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(size),
            _to_rgb,
            T.ToTensor(),
            T.Normalize(PIXEL_MEAN, PIXEL_STD),
        ]
    )


def load(
    name: str, device: str | torch.device | None = None, jit: bool = False, download_root: str | None = None
) -> tuple[CLIP, Callable[[Image.Image], Tensor]]:
    """A named CLIP (or one from a file) and its image transform.

    Args:
        name: one of `available_models()` or the path of a weights file.
        device: where to put it; by default CUDA where there is one. On a CPU the model is float32.
        jit: only False is supported.
        download_root: folder of the downloads; by default `$CLIP_CACHE` or `~/.cache/clip`.

    Raises:
        ValueError: unknown name, damaged file, or `jit=True`.
    """
    if jit:
        raise ValueError("jit=True is not supported: the model is built from its weights (use jit=False)")
    device = torch.device(device) if device else default_device()
    model = read_model(locate(name, download_root)).to(device)
    if device.type != HOST.type:
        convert_weights(model)
    return model, preprocess(model.visual.input_resolution)


def tokenize(texts: str | Sequence[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Token ids (N, context_length), int64: start token, BPE ids, end token, zeros.

    Raises:
        ContextLengthError: a text is too long and `truncate` is off.
    """
    texts = [texts] if isinstance(texts, str) else texts
    bpe = tokenizer()
    start, end = bpe.encoder[START], bpe.encoder[END]
    tokens = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        ids = [start, *bpe.encode(text), end]
        if len(ids) > context_length:
            if not truncate:
                raise ContextLengthError(
                    f"{text!r} is {len(ids)} tokens long, but the context holds {context_length}: shorten the class "
                    "name or the prompt"
                )
            ids = [*ids[: context_length - 1], end]
        row[: len(ids)] = torch.tensor(ids)
    return tokens
