"""Learned prompts: from class names to text embeddings with a context, and deep prompts for either tower.

Shape legend: C classes, L tokens of the longest sentence, n context or prompt tokens, D tower width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clip.backbone import Backbone
from clip.precision import to_float32
from clip.towers import SentenceLayout

INIT_STD = 0.02
PLACEHOLDER = "X"
POSITIONS = ("end", "middle", "front")


def prompt_name(classname: str) -> str:
    """A class name as the text encoder reads it: underscores become spaces, nothing else changes."""
    return classname.replace("_", " ")


def random_vectors(*shape: int) -> Tensor:
    """N(0, 0.02^2) of this shape, the initial value of every prompt that does not start from words."""
    return torch.randn(*shape) * INIT_STD


@dataclass(frozen=True)
class ContextInit:
    """How a learned context starts.

    Attributes:
        vectors: initial values, (n, D) or (C, n, D).
        sentences: one per class; their first n words, one token each, are what the vectors replace.
    """

    vectors: Tensor
    sentences: list[str]


def context_from_words(backbone: Backbone, words: str, n: int, sentences: list[str]) -> ContextInit:
    """A context of n vectors that start as the embeddings of the first n of these words.

    Raises:
        ValueError: there are fewer than n words, or a word is not one token.
    """
    count = len(words.split())
    if n > count:
        raise ValueError(f"{n} context tokens (N_CTX) but the init text {words!r} (CTX_INIT) has only {count} words")
    tokens, start = backbone.tokenize([words]), backbone.context_start
    length = int(backbone.end_of_text(tokens)) - start
    if length != count:
        raise ValueError(f"CTX_INIT {words!r} has {count} words but {length} tokens: use plain words")
    return ContextInit(backbone.token_embedding(tokens)[0, start : start + n].clone(), sentences)


def random_context(backbone: Backbone, n: int, classnames: list[str], class_specific: bool = False) -> ContextInit:
    """A context of n random vectors, shared by the classes or one set per class, before `{name}.`.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"a learned context needs at least one token, but N_CTX is {n}")
    placeholder = backbone.end_of_text(backbone.tokenize([PLACEHOLDER]))
    assert int(placeholder) == backbone.context_start + 1, f"{PLACEHOLDER!r} is not one token of {backbone.name}"
    shape = (len(classnames), n) if class_specific else (n,)
    prefix = " ".join([PLACEHOLDER] * n)
    sentences = [f"{prefix} {prompt_name(name)}." for name in classnames]
    return ContextInit(random_vectors(*shape, backbone.text_width), sentences)


class Context(nn.Module):
    """Sentences whose context tokens are learned.

    Args:
        backbone: gives tokens and the embeddings of the fixed words.
        init: initial vectors and the sentences they stand in.
        name_lengths: number of tokens of each class name alone; needed unless `position` is "end".
        position: where the class name stands: after the context ("end"), between its halves, or before it ("front").

    Attributes:
        layout: of these sentences, which begin alike up to the class name unless each has a context of its own.

    Raises:
        ValueError: unknown position.
        ContextLengthError: a sentence does not fit the context length.
    """

    tokens: Tensor
    end: Tensor
    fixed: Tensor
    order: Tensor

    def __init__(
        self, backbone: Backbone, init: ContextInit, name_lengths: list[int] | None = None, position: str = "end"
    ):
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(f"CLASS_TOKEN_POSITION is {position!r}, but must be one of {', '.join(POSITIONS)}")
        tokens = backbone.tokenize(init.sentences)
        end = backbone.end_of_text(tokens)
        length = int(end.max()) + 1
        n = init.vectors.shape[-2]
        lengths = name_lengths or [0] * len(init.sentences)
        order = torch.stack([_token_order(length, backbone.context_start, n, name, position) for name in lengths])
        self.vectors = nn.Parameter(to_float32(init.vectors).to(tokens.device))
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("end", end, persistent=False)
        self.register_buffer("fixed", backbone.token_embedding(tokens[:, :length]), persistent=False)
        self.register_buffer("order", order.to(tokens.device), persistent=False)
        context = -1 - torch.arange(init.vectors[..., 0].numel()).view(-1, n).expand(len(tokens), -1)
        ids = torch.cat([context.to(tokens.device), tokens[:, :length]], dim=1)  # of the context below all others
        self.layout = SentenceLayout.of(ids.gather(1, self.order), end)

    def forward(self, shift: Tensor | None = None) -> Tensor:
        """Embeddings (C, L, D) with the context in place; `shift`, (D,) or (n, D), is added to the context."""
        assert shift is None or shift.ndim < 3, "sentences with a shift of their own would not begin alike"
        context = self.vectors if shift is None else self.vectors + shift
        classes = self.fixed.shape[0]
        pieces = torch.cat([context.expand(classes, -1, -1), self.fixed.to(context.dtype)], dim=1)
        return pieces.gather(1, self.order[:, :, None].expand(-1, -1, pieces.shape[-1]))


def _token_order(length: int, start: int, n: int, name: int, position: str) -> Tensor:
    """For each of the L positions of a sentence, its index in [n context tokens | L tokens of the sentence].

    `start` tokens stand before the first word; the name has `name` tokens and follows the n that the context replaces.
    """
    head, context = list(range(n, n + start)), list(range(n))
    after = n + start + n
    names, rest = list(range(after, after + name)), list(range(after + name, n + length))
    before = {"end": n, "middle": n // 2, "front": 0}[position]
    return torch.tensor(head + context[:before] + names + context[before:] + rest)


class DeepPrompts(nn.Module):
    """Learned tokens for the first blocks of a tower, one set per block.

    Args:
        first: the first block that gets tokens (0 for images; 1 for text, whose block 0 has the context).
        depth: number of prompted blocks counted from 0; cut to `layers`.
        layers: blocks of the tower.
        n: tokens per block.
        width: D of the tower.
        trainable: whether they receive gradient.
    """

    def __init__(self, first: int, depth: int, layers: int, n: int, width: int, trainable: bool = True):
        super().__init__()
        self.depth = min(depth, layers) if n > 0 else 0
        self.tokens = nn.ParameterDict(
            {str(i): nn.Parameter(random_vectors(n, width), requires_grad=trainable) for i in range(first, self.depth)}
        )

    def forward(self) -> list[Tensor | None]:
        """One entry per prompted block, (n, D), None where the block has no tokens of its own."""
        return [self.tokens.get(str(i)) for i in range(self.depth)]


def slot_width(backbone: Backbone) -> int:
    """D of the image tower's token slots.

    Raises:
        ValueError: the image tower is a ResNet.
    """
    if backbone.vision_width is None:
        raise ValueError(
            f"{backbone.name} is a ResNet: its image tower has no token slots for visual prompts; choose a ViT"
        )
    return backbone.vision_width


def image_prompts(backbone: Backbone, depth: int, n: int, trainable: bool = True) -> DeepPrompts:
    """Deep visual prompts of a backbone.

    Raises:
        ValueError: the image tower is a ResNet, or a number is negative.
    """
    for key, value in (("PROMPT_DEPTH_VISION", depth), ("N_CTX_VISION", n)):
        if value < 0:
            raise ValueError(f"{key} is {value}, but must be at least 0")
    if not depth or not n:
        return DeepPrompts(0, 0, 0, 0, 0)
    return DeepPrompts(0, depth, backbone.vision_layers, n, slot_width(backbone), trainable)


def text_prompts(backbone: Backbone, depth: int, n: int, trainable: bool = True) -> DeepPrompts:
    """Deep text prompts of a backbone, for blocks 1 .. depth - 1.

    Raises:
        ValueError: the depth is below 1.
    """
    if depth < 1:
        raise ValueError(f"PROMPT_DEPTH_TEXT is {depth}, but must be at least 1")
    return DeepPrompts(1, depth, backbone.text_layers, n, backbone.text_width, trainable)
