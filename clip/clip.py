"""OpenAI's own surface: `load`, `tokenize`, `available_models`, `build_model`, `_MODELS`, `_download`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from clip import weights
from clip.model import ARCHITECTURES, CLIP, described, from_state_dict, require_architecture
from clip.precision import CPU, convert_weights, default_device
from clip.simple_tokenizer import END, START, SimpleTokenizer
from clip.weight_files import looks_like, read_weights, weights_file

# names that third-party trainers look up and hand to `_download`; the carried ones are files already
_MODELS = {**weights.OPENAI_MODELS, **{name: str(path) for name, path in weights.CARRIED_MODELS.items()}}
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


logger = logging.getLogger(__name__)


class ContextLengthError(ValueError, RuntimeError):
    """A text has more tokens than the context holds (a RuntimeError in OpenAI's package)."""


def too_long(text: str, length: int, context_length: int) -> ContextLengthError:
    """The error for a text of more tokens than fit."""
    return ContextLengthError(
        f"{text!r} is {length} tokens long, but the context holds {context_length}: shorten the class name or the "
        "prompt"
    )


@lru_cache(maxsize=1)
def tokenizer() -> SimpleTokenizer:
    """The one tokenizer of the process."""
    return SimpleTokenizer()


def available_models() -> list[str]:
    """Names that `load` accepts."""
    return list(_MODELS)


def _download(url: str, root: str | None = None) -> str:
    """Path of the verified local copy of a weights address (see `clip.weights.download`); a path stays what it is."""
    return weights.download(url, root) if "://" in url else url


def locate(name: str, root: str | None = None) -> str:
    """Path of the weights of a model name, of a file, or of a model inside the folder `root`.

    Raises:
        ValueError: neither a known name nor a file; the sentence has the nearest name and lists all.
    """
    if name in _MODELS:
        return _download(_MODELS[name], root) if root else _download(_MODELS[name])
    if file := weights_file(name) if Path(name).exists() else None:
        return str(file)
    near = get_close_matches(name, available_models(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(
        f"unknown backbone {name!r}{hint} Known: {', '.join(available_models())}, or a weights file's path"
    )


def build_model(state_dict: Mapping[str, Tensor], design_details: Mapping | None = None) -> CLIP:
    """A CLIP for trainers written by others, in the conventions of OpenAI's package and in half precision as there.

    Transformers take tokens sequence first and hold their mask: see `clip.design_details`.

    Args:
        state_dict: OpenAI-format weights.
        design_details: the prompts that are to be part of the towers, as the MaPLe family names them; None for none.

    Raises:
        ValueError: unknown format, or visual prompts for a ResNet.
    """
    model = _in_openai_conventions(state_dict, design_details)
    convert_weights(model)
    return model


def _in_openai_conventions(state_dict: Mapping[str, Tensor], design_details: Mapping | None = None) -> CLIP:
    from clip import design_details as conventions

    return conventions.build(state_dict, design_details)


def read_model(
    file: str | Path, build: Callable[[Mapping[str, Tensor]], CLIP] = from_state_dict, name: str = ""
) -> CLIP:
    """A float32 CLIP from a weights file.

    Args:
        file: of a CLIP in one of the layouts of `clip.layouts`, or a folder as transformers saves it.
        build: makes the model from the file's tensors.
        name: one of `available_models()`, whose architecture the file has to have; empty for any.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or one that holds something else (the file is named, and what it looks like).
    """
    read = read_weights(file)
    try:
        if name in ARCHITECTURES:
            require_architecture(read.state, name)
        model = build(read.state)
    except ValueError as error:
        raise ValueError(f"{file}: {error}{looks_like(read.state)}") from error
    if "activation" not in read.facts and Path(file) not in weights.CARRIED_MODELS.values():
        logger.warning(
            "%s does not say with which activation it was trained: QuickGELU is taken, as in all of OpenAI's models "
            "(weights of open_clip go by its names, see docs/BACKBONES.md)",
            file,
        )
    read.require(
        described(model), name or str(file), "name the open_clip model of these weights (see docs/BACKBONES.md)"
    )
    return model


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
    """A named CLIP (or one from a file) in OpenAI's conventions (see `build_model`), and its image transform.

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
    model = read_model(locate(name, download_root), _in_openai_conventions).to(device)
    if device.type != CPU.type:
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
                raise too_long(text, len(ids), context_length)
            ids = [*ids[: context_length - 1], end]
        row[: len(ids)] = torch.tensor(ids)
    return tokens
