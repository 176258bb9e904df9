"""A tower as three steps, and the one place where prompt tokens and additions to blocks enter.

Every method of the prompt-learning family puts vectors into token slots before some block, adds something in a block or
beside it, or changes features after the towers. So a tower (text or image, of any library) is described by `embed ->
blocks -> pool`, and one short loop runs it with prompts.

Shape legend: N sequences (images or sentences), T tokens, L text tokens, n prompt tokens, D tower width, E embedding
width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

Block = Callable[..., Tensor]  # tokens (N, T, D) -> (N, T, D), and `delta` where a tower is adaptable
Prompts = Sequence[Tensor | None]
Rows = tuple[slice, slice] | tuple[Tensor, Tensor]  # index into (N, T, D) that gives (N, 1, D)
QKVDelta = Callable[[Tensor], Tensor]  # a block's normalised input (N, T, D) -> (N, T, 3 D)
Adapter = Callable[[Tensor], Tensor]  # a block's normalised input (N, T, D) -> what is added to its output, (N, T, D)
Read = Callable[[Tensor], Tensor]  # the normalised prompts after the last block (N, n, D) -> (N, E)


def largest_id(tokens: Tensor) -> Tensor:
    """Position of the end token of OpenAI's tokenizer, which has the largest id: (N, L) -> (N,)."""
    return tokens.argmax(dim=-1)


@dataclass(frozen=True)
class ImageTower:
    """The steps of an image tower.

    Attributes:
        width: D, or None where the tower has no token slots (a ResNet).
        output_dim: E.
        image_size: height and width of the images that the tower takes, in pixels.
        embed: images (N, 3, H, W) of any precision -> tokens (N, T, D) in the tower's, positions added, before the
            normalisation of the input.
        norm: the normalisation before the first block (the identity where there is none).
        blocks: callables (N, T + n, D) -> (N, T + n, D); the last n tokens are prompts.
        pool: tokens (N, T + n, D) -> features (N, E), not normalised; read from the tower's own T tokens.
        adaptable: whether each block takes `delta`, what is added to its query, key and value projections, and
            `adapter`, what is added to its output.
        last: the last block where it may compute only what `pool` reads: (N, T + n, D) -> the first tokens, at least
            those that are read out. None for a tower that reads more than a few.
        output_norm: the normalisation of single tokens (N, n, D) after the last block, None where the tower has none.
        project: such tokens (..., D) -> (..., E), by the tower's own matrix; None likewise.
    """

    width: int | None
    output_dim: int
    image_size: int
    embed: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]
    blocks: Sequence[Block]
    pool: Callable[[Tensor], Tensor]
    adaptable: bool = False
    last: Block | None = None
    output_norm: Callable[[Tensor], Tensor] | None = None
    project: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class TextTower:
    """The steps of a text tower.

    L may be any length that reaches the last end token of the batch. What the full context would have after it either
    cannot change the result (causal attention) or is put back by `embed`, which then returns more than L tokens.

    Attributes:
        width: D.
        output_dim: E.
        context_length: the longest sentence in tokens.
        lookup: token ids (N, L) -> embeddings (N, L, D).
        embed: embeddings (N, L, D) of any precision -> tokens (N, T, D) in the tower's, positions added, T >= L.
        blocks: callables (N, T, D) -> (N, T, D).
        pool: tokens (N, T, D), positions of the end token (N,) -> features (N, E), not normalised.
        end: token ids (N, L) -> positions of the end token (N,).
        start: position of the first word, where a learned context begins: 1 after a start token, 0 without one.
        bind: tokens (N, T, D), end positions (N,) -> the blocks for these sentences, where their attention mask depends
            on them.
        adaptable: whether each block takes `delta`, what is added to its query, key and value projections, and
            `adapter`, what is added to its output.
        last: the last block for the tokens that are read out alone, where the tower offers that: tokens (N, T, D),
            their index `rows` -> (N, 1, D).
    """

    width: int
    output_dim: int
    context_length: int
    lookup: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]
    blocks: Sequence[Block]
    pool: Callable[[Tensor, Tensor], Tensor]
    end: Callable[[Tensor], Tensor] = largest_id
    start: int = 1
    bind: Callable[[Tensor, Tensor], Sequence[Block]] | None = None
    adaptable: bool = False
    last: Callable[..., Tensor] | None = None


Tower = TypeVar("Tower", ImageTower, TextTower)


def with_additions(tower: Tower, kind: str, additions: Sequence[Callable[[Tensor], Tensor] | None]) -> Tower:
    """The tower with something added in its blocks, which themselves are not changed.

    Args:
        tower: the tower.
        kind: "delta" (`QKVDelta`, to the projections of the attention) or "adapter" (`Adapter`, beside the block).
        additions: one entry per block, None where nothing is added.

    Raises:
        ValueError: the tower's blocks cannot be adapted.
    """
    if not tower.adaptable:
        raise ValueError("this tower has no attention blocks of OpenAI's kind, which could be adapted")
    pairs = zip(tower.blocks, additions, strict=True)
    blocks = tuple(block if added is None else partial(block, **{kind: added}) for block, added in pairs)
    last = tower.last
    if last is not None and additions[-1] is not None:
        last = partial(last, **{kind: additions[-1]})
    return replace(tower, blocks=blocks, last=last)


def split(tower: Tower, block: int) -> tuple[Tower, Tower]:
    """The tower below a block, counted from 0, whose features are tokens; and from it on, which takes these.

    Raises:
        ValueError: the tower has no such block, as a ResNet has none.
    """
    if not 0 < block < len(tower.blocks):
        raise ValueError(f"this tower has {len(tower.blocks)} blocks and cannot be divided at block {block}")
    bind = tower.bind if isinstance(tower, TextTower) else None
    lower = replace(tower, blocks=tower.blocks[:block], pool=lambda x, *end: x, last=None)
    upper = replace(tower, blocks=tower.blocks[block:], embed=lambda x: x)
    if isinstance(tower, ImageTower):
        upper = replace(upper, norm=lambda x: x)
    elif bind is not None:
        lower = replace(lower, bind=lambda x, end: bind(x, end)[:block])
        upper = replace(upper, bind=lambda x, end: bind(x, end)[block:])
    return lower, upper


def place(x: Tensor, prompt: Tensor, start: int, insert: bool = False, share: float = 1.0) -> Tensor:
    """Tokens (N, T, D) with a prompt, (n, D) or (N, n, D), in the slots from `start`; appended where `start` is T.

    With `insert` the prompt gets slots of its own there, (N, T + n, D). Where the slots hold tokens, the prompt counts
    by its `share`, and they by the rest.
    """
    stop = start if insert else start + prompt.shape[-2]
    assert start == x.shape[1] or stop <= x.shape[1], "prompt slots outside the sequence"
    prompt, held = prompt.to(x.dtype).expand(x.shape[0], -1, -1), x[:, start:stop]
    if share != 1 and held.shape[1]:
        prompt = share * prompt + (1 - share) * held
    return torch.cat([x[:, :start], prompt, x[:, stop:]], dim=1)


def run_blocks(
    blocks: Sequence[Block], x: Tensor, prompts: Prompts, start: int, insert: bool = False, share: float = 1.0
) -> Tensor:
    """Run the blocks over tokens (N, T, D); before block `i >= 1` the slots from `start` take `prompts[i]`.

    `prompts[0]` belongs to the input and is the caller's to place; a None leaves the slots as they flow. With `insert`
    the first prompt opens the slots. `share` as in `place`.
    """
    assert len(prompts) <= len(blocks), "more prompts than blocks: cut the depth first"
    for i, block in enumerate(blocks):
        prompt = prompts[i] if 0 < i < len(prompts) else None
        if prompt is not None:
            x = place(x, prompt, start, insert, share)
            insert = False
        x = block(x)
    return x


def encode_image(
    tower: ImageTower, images: Tensor, prompts: Prompts = (), share: float = 1.0, read: Read | None = None
) -> Tensor:
    """Image features (N, E), not normalised; with `read` (N, 2, E), the second ones read from the prompts.

    Args:
        tower: the image tower.
        images: (N, 3, H, W), normalised as the backbone asks.
        prompts: one entry per prompted block, each (n, D) or (N, n, D). The first that is not None is appended after
            the patch tokens before its block (entry 0 before the tower's input normalisation), the others replace it.
        share: of a prompt that replaces; the rest is what the slots held.
        read: makes features of the prompts after the last block.

    Raises:
        ValueError: the image size is not the tower's, or the tower has no token slots or none that can be read.
    """
    if images.ndim == 4 and images.shape[-2:] != (tower.image_size, tower.image_size):
        raise ValueError(
            f"images of {images.shape[-2]}x{images.shape[-1]} pixels, but this image tower takes "
            f"{tower.image_size}x{tower.image_size}: resize them to that"
        )
    if prompts and tower.width is None:
        raise ValueError("this image tower is no ViT: it has no token slots for visual prompts; choose a ViT backbone")
    x = tower.embed(images)
    start = x.shape[1]
    if prompts and prompts[0] is not None:
        x = place(x, prompts[0], start)
    blocks = tower.blocks if tower.last is None or read else (*tower.blocks[:-1], tower.last)
    x = run_blocks(blocks, tower.norm(x), prompts, start, share=share)
    if read is None:
        return tower.pool(x)
    if tower.output_norm is None:
        raise ValueError("this image tower has no normalisation of single tokens: features cannot be read from prompts")
    return torch.stack([tower.pool(x), read(tower.output_norm(x[:, start:]))], dim=1)


def encode_text(
    tower: TextTower,
    embeddings: Tensor,
    end: Tensor,
    prompts: Prompts = (),
    insert: bool = False,
    share: float = 1.0,
) -> Tensor:
    """Text features (N, E), not normalised.

    Args:
        tower: the text tower.
        embeddings: (N, L, D) token embeddings, learned context already in place. L may be any length that reaches the
            last end token: what follows it cannot change the result.
        end: (N,) position of each sentence's end token.
        prompts: entries 1, 2, ... replace the n positions from `tower.start` before their block; entry 0 is ignored (it
            is the context).
        insert: put the first of them in between instead; the sentence moves on by n positions.
        share: of a prompt that replaces; the rest is what the slots held.

    Raises:
        ValueError: tokens cannot be inserted, as the tower's mask belongs to the positions of a sentence.
    """
    x = tower.embed(embeddings)
    blocks = tower.bind(x, end) if tower.bind else tower.blocks
    if insert and tower.bind:
        raise ValueError("this text tower masks by the positions of a sentence: no tokens can be inserted")
    if insert:
        end = end + next((prompt.shape[-2] for prompt in prompts[1:] if prompt is not None), 0)
    if tower.last is not None:
        rows = torch.arange(len(end), device=end.device)[:, None], end[:, None]
        blocks = (*blocks[:-1], partial(tower.last, rows=rows))
    x = run_blocks(blocks, x, prompts, tower.start, insert, share)
    return tower.pool(x, end if tower.last is None else torch.zeros_like(end))
