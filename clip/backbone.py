"""One interface for every frozen CLIP: sizes, tokenizer, constants, and features with or without prompts.

Shape legend: N sequences (images or sentences), L text tokens, n prompt tokens, D_t and D_v tower widths, E embedding
width.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from clip import clip, towers
from clip.chunking import ENCODERS, ChunkedEncoder
from clip.precision import convert_weights, free_memory, to_float32
from clip.substitution import Weights, WithWeights, tower_of
from clip.towers import Adapter, ImageTower, Prompts, QKVDelta, Read, SentenceLayout, TextTower

UNKNOWN_MEMORY = 2**32  # bytes, where the system does not say how many are free

_living: "WeakSet[Backbone]" = WeakSet()


class Backbone(nn.Module):
    """A frozen CLIP-like model behind one interface.

    Args:
        name: what the configuration calls it.
        model: the module that owns all weights.
        image: the image tower's steps.
        text: the text tower's steps.
        tokenize: sentences, context length -> token ids (N, context length).
        pixel_mean: channel means of the image normalisation, in units of the [0, 1] range.
        pixel_std: channel standard deviations, likewise.
        interpolation: how images are resized: "bicubic" or "bilinear".
        resize_mode: how the model was evaluated: images resized by their short side and cropped ("shortest"), by their
            long side and padded ("longest"), or squeezed into the square ("squash").
        fill_color: what "longest" pads with, 0 to 255.
        to_half_precision: converts the weights in place for half precision.

    Attributes:
        digest: `weights_digest` of the weights as `load_backbone` read them, before any change of precision; empty for
            a backbone that was made otherwise.
        architecture: what decides the function of the weights beside them and is not seen in their shapes (activation,
            heads, mask, pooling), as plain data; empty for a backbone that does not say.
        logit_bias: the bias of the logits, where the model has one.
        run_image: `towers.encode_image`, or what takes its place under a limit of memory (`clip.chunking`).
        run_text: `towers.encode_text`, likewise.
        memory_limit: bytes that the activations of a training step may take; None for what is free.
        plain_images: whether the image tower is the model's own, with nothing added to its blocks and its own weights.
        reload: reads the backbone once more, in float32 on the CPU; None for one that was made otherwise.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        image: ImageTower,
        text: TextTower,
        tokenize: Callable[..., Tensor],
        pixel_mean: Sequence[float] = clip.PIXEL_MEAN,
        pixel_std: Sequence[float] = clip.PIXEL_STD,
        interpolation: str = "bicubic",
        resize_mode: str = "shortest",
        fill_color: int = 0,
        to_half_precision: Callable[[nn.Module], None] = convert_weights,
    ):
        super().__init__()
        self.name = name
        self.model = model.requires_grad_(False).eval()
        self.image = image
        self.text = text
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)
        self.interpolation = interpolation
        self.resize_mode = resize_mode
        self.fill_color = fill_color
        self.to_half_precision = to_half_precision
        self._tokenize = tokenize
        self.digest = ""
        self.architecture: dict = {}
        self.logit_bias: Tensor | None = getattr(model, "logit_bias", None)
        self.run_image: Callable[..., Tensor] = towers.encode_image
        self.run_text: Callable[..., Tensor] = towers.encode_text
        self.memory_limit: int | None = None
        self.plain_images = True
        self.reload: Callable[[], Backbone] | None = None
        self._layouts = WeakTensorKeyDictionary()
        _living.add(self)

    def __copy__(self) -> "Backbone":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        _living.add(other)
        return other

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.image.image_size

    @property
    def embed_dim(self) -> int:
        """E."""
        return self.text.output_dim

    @property
    def text_width(self) -> int:
        """D_t."""
        return self.text.width

    @property
    def vision_width(self) -> int | None:
        """D_v, or None where the image tower has no token slots (a ResNet)."""
        return self.image.width

    @property
    def text_layers(self) -> int:
        """Number of text blocks."""
        return len(self.text.blocks)

    @property
    def vision_layers(self) -> int:
        """Number of image blocks that take prompts."""
        return len(self.image.blocks)

    @property
    def context_length(self) -> int:
        """Longest sentence in tokens."""
        return self.text.context_length

    @property
    def context_start(self) -> int:
        """Position of a sentence's first word, where a learned context begins."""
        return self.text.start

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.get_parameter("logit_scale").device

    @property
    def logit_scale(self) -> Tensor:
        """The factor of the cosine, `exp` of the stored parameter; a scalar."""
        return self.model.get_parameter("logit_scale").exp().squeeze()

    def with_qkv_deltas(
        self,
        image: Sequence[QKVDelta | None] = (),
        text: Sequence[QKVDelta | None] = (),
        tokenwise: bool = False,
        varies: Callable[[], bool] | None = None,
    ) -> "Backbone":
        """This backbone with something added to the projections of its blocks; the weights are the same ones.

        Args:
            image: one entry per image block, None where nothing is added; empty to leave the image tower as it is.
            text: likewise for the text blocks.
            tokenwise: whether each addition is a function of single tokens: then sentences go without padding, and what
                they begin with is computed once.
            varies: says whether it differs now between sentences, as dropout does, so that these share no beginning.

        Raises:
            ValueError: a tower's blocks cannot be adapted.
        """
        return self._with_additions("delta", image, text, tokenwise, varies)

    def with_adapters(
        self,
        image: Sequence[Adapter | None] = (),
        text: Sequence[Adapter | None] = (),
        tokenwise: bool = False,
        varies: Callable[[], bool] | None = None,
    ) -> "Backbone":
        """This backbone with adapters beside its blocks; arguments and errors as in `with_qkv_deltas`."""
        return self._with_additions("adapter", image, text, tokenwise, varies)

    def _with_additions(
        self, kind: str, image: Sequence, text: Sequence, tokenwise: bool, varies: Callable[[], bool] | None
    ) -> "Backbone":
        other = copy(self)
        if any(isinstance(getattr(self, name), ChunkedEncoder) for name in ENCODERS):
            other = self.with_memory_limit(self.memory_limit)
        other.image = towers.with_additions(self.image, kind, image) if image else self.image
        other.text = towers.with_additions(self.text, kind, text, tokenwise, varies) if text else self.text
        other.plain_images = self.plain_images and not image
        return other

    def split(self, image_block: int, text_block: int) -> tuple["Backbone", "Backbone"]:
        """This backbone below a block of each tower and from it on, without limits of memory below.

        The first half's `run_image` and `run_text` give tokens (N, T, D), which the second half takes in the place of
        images and token embeddings.
        """
        halves = copy(self), self.with_memory_limit(self.memory_limit)
        images, texts = towers.split(self.image, image_block), towers.split(self.text, text_block)
        for half, image, text in zip(halves, images, texts, strict=True):
            half.image, half.text = image, text
        return halves

    def with_weights(self, weights: Callable[[], Weights]) -> "Backbone":
        """This backbone whose towers compute with other values of some weights; its own are shared and not changed.

        Args:
            weights: gives the values whenever a tower is run, always of the same weights; float32 in every precision
                (`clip.substitution`).
        """
        other = copy(self)
        for name, tower in (("run_image", "vision"), ("run_text", "text")):
            encode = getattr(self, name)
            plain = getattr(encode, "encode", encode)
            setattr(other, name, WithWeights(self.model, tower, weights, plain))
        other.text = replace(self.text, lookup=WithWeights(self.model, "text", weights, self.text.lookup))
        other.plain_images = self.plain_images and all(tower_of(name) != "vision" for name in weights())
        chunked = any(isinstance(getattr(self, name), ChunkedEncoder) for name in ENCODERS)
        return other.with_memory_limit(self.memory_limit) if chunked else other

    def original_weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Copies in float32 of some of the model's parameters, as they were before any change of precision.

        Where this backbone is in half precision its weights are read once more.

        Raises:
            ValueError: the weights that are read now are others than these.
        """
        source, own = self, [self.model.get_parameter(name) for name in names]
        if self.reload is not None and any(to_float32(value) is not value for value in own):
            source = self.reload()
            if source.digest != self.digest:
                raise ValueError(f"the weights of {self.name} were changed since this process read them: start again")
        values = {name: source.model.get_parameter(name).detach() for name in names}
        return {name: to_float32(value).to(self.device, copy=True) for name, value in values.items()}

    def with_memory_limit(self, limit: int | None) -> "Backbone":
        """This backbone, with the same weights, whose batches are encoded in chunks where memory asks for it.

        Args:
            limit: bytes that the activations of a training step may take; None for what is free.
        """
        other = copy(self)
        other.memory_limit = limit
        for name, samples in ENCODERS.items():
            setattr(other, name, getattr(getattr(self, name), "encode", getattr(self, name)))
            setattr(other, name, ChunkedEncoder(other, name, samples))
        return other

    def lower_memory_limit(self) -> int:
        """Encode in smaller chunks from here on, with this backbone and its copies: a step was out of memory.

        Returns:
            How many bytes the activations of a training step may now take: half of what they might.
        """
        limit = (self.memory_limit or self.memory_for_activations() or UNKNOWN_MEMORY) // 2
        for other in [other for other in _living if other.model is self.model]:
            other.memory_limit = limit
            for name, samples in ENCODERS.items():
                setattr(other, name, getattr(getattr(other, name), "encode", getattr(other, name)))
                setattr(other, name, ChunkedEncoder(other, name, samples))
        return limit

    def memory_for_activations(self) -> int | None:
        """Bytes that the activations of a training step may take now, None if nothing says so."""
        return self.memory_limit or free_memory(self.device)

    @property
    def is_chunked(self) -> bool:
        """Whether a batch had to be encoded in chunks."""
        return any(getattr(getattr(self, name), "divided", False) for name in ENCODERS)

    def identity(self) -> dict:
        """What decides the features, as plain data: the digest of the weights, and what no weight tells.

        That is the architecture where no shape shows it, how images are read, and the length and start of contexts.
        """
        text = {"context_length": self.context_length, "context_start": self.context_start}
        architecture = {**self.architecture, "input": self.input_settings(), "text": text}
        return {"backbone_digest": self.digest, "backbone_architecture": json.loads(json.dumps(architecture))}

    def require_identity(self, recorded: Mapping, path: str | Path) -> None:
        """Refuse to go on with a backbone that is not the one that the checkpoint at `path` was trained on.

        Args:
            recorded: the checkpoint, with the entries of `identity` as far as it has them.
            path: of the checkpoint.

        Raises:
            ValueError: these are other weights (both digests are named), or the same ones in another architecture (the
                entries that differ are named).
        """
        own, digest = self.identity(), recorded.get("backbone_digest")
        if digest and digest != self.digest:
            raise ValueError(
                f"{path} was trained on other weights of {self.name} (digest {str(digest)[:12]}) than this run has "
                f"loaded (digest {self.digest[:12]}): give the file that it was trained on as the path of the backbone"
            )
        old, new = recorded.get("backbone_architecture"), own["backbone_architecture"]
        if other := _differences(old, new) if old else []:
            raise ValueError(
                f"{path} was trained on the same weights of {self.name} in another architecture ({'; '.join(other)}): "
                "give the name or the settings that it was trained with"
            )

    def input_settings(self) -> dict:
        """How images have to be read, by the names of the engine's INPUT keys."""
        return {
            "SIZE": (self.image_size, self.image_size),
            "PIXEL_MEAN": list(self.pixel_mean),
            "PIXEL_STD": list(self.pixel_std),
            "INTERPOLATION": self.interpolation,
            "RESIZE_MODE": self.resize_mode,
            "FILL_COLOR": self.fill_color,
        }

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, context length) on the backbone's device.

        Raises:
            ContextLengthError: a sentence is longer than the context (the sentence is named).
        """
        return self._tokenize(texts, self.context_length).to(self.device)

    def end_of_text(self, tokens: Tensor) -> Tensor:
        """Position of each sentence's end token: (N, L) -> (N,)."""
        return self.text.end(tokens)

    def token_embedding(self, tokens: Tensor) -> Tensor:
        """Ids (N, L) -> embeddings (N, L, D_t)."""
        return self.text.lookup(tokens)

    def encode_image(
        self, images: Tensor, prompts: Prompts = (), *, share: float = 1.0, read: Read | None = None
    ) -> Tensor:
        """Images (N, 3, H, W) -> float32 features (N, E), not normalised, with `read` (N, 2, E).

        Arguments as in `clip.towers.encode_image`.
        """
        return to_float32(self.run_image(self.image, images, prompts, share=share, read=read))

    def layout(self, tokens: Tensor) -> SentenceLayout:
        """The layout of sentences of these ids (N, L); computed once for a tensor."""
        known = self._layouts.get(tokens)
        if known is None or known[0] != tokens._version:
            known = tokens._version, SentenceLayout.of(tokens, self.end_of_text(tokens))
            self._layouts[tokens] = known
        return known[1]

    def encode_text(self, tokens: Tensor, prompts: Prompts = (), *, insert: bool = False, share: float = 1.0) -> Tensor:
        """Token ids (N, L) -> float32 features (N, E), not normalised."""
        layout = self.layout(tokens)
        embeddings = self.token_embedding(tokens[:, : layout.length])
        return self.encode_embeddings(embeddings, layout, prompts, insert=insert, share=share)

    def encode_embeddings(
        self,
        embeddings: Tensor,
        end: Tensor | SentenceLayout,
        prompts: Prompts = (),
        *,
        insert: bool = False,
        share: float = 1.0,
    ) -> Tensor:
        """Token embeddings (N, L, D_t) -> float32 features (N, E), not normalised.

        Arguments as in `clip.towers.encode_text`: `end` is the positions of the end tokens (N,), or the layout of the
        sentences, if these still begin alike where it says so.
        """
        return to_float32(self.run_text(self.text, embeddings, end, prompts, insert=insert, share=share))


def _differences(old: object, new: object, name: str = "") -> list[str]:
    """Entries, as `name old -> new`, in which two nested dictionaries differ; one that is missing is like None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(old.keys() | new.keys(), key=str)
        return [said for key in keys for said in _differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))]
    return [] if old == new or not (old or new) else [f"{name} {old!r} -> {new!r}"]


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names and values of a model's weights: the same whatever file format they came in."""
    state = model.state_dict()
    with ThreadPoolExecutor() as pool:  # hashing does not hold the interpreter's lock
        digests = pool.map(_tensor_digest, state.values())
        parts = [f"{name} {digest}" for name, digest in zip(state, digests, strict=True)]
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def _tensor_digest(value: Tensor) -> str:
    digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def end_of_text(tokens: Tensor) -> Tensor:
    """Position of the end token of OpenAI's tokenizer: (N, L) -> (N,)."""
    return towers.largest_id(tokens)
