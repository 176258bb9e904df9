"""A tower as three steps, and the one place where prompt tokens and additions to blocks enter.

Every method of the prompt-learning family puts vectors into token slots before some block, adds something in a block or
beside it, or changes features after the towers. So a tower (text or image, of any library) is described by `embed ->
blocks -> pool`, and one short loop runs it with prompts.

In a causal text tower a token's hidden states follow from what stands before it alone. So sentences are computed
without padding, and what they all begin with is computed once (`SentenceLayout`).

Shape legend: N sequences (images or sentences), T tokens, L text tokens, n prompt tokens, D tower width, H heads, E
embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Block = Callable[..., Tensor]  # tokens (N, T, D) -> (N, T, D), and `delta` where a tower is adaptable
Prompts = Sequence[Tensor | None]
Rows = tuple[slice, slice] | tuple[Tensor, Tensor]  # index into (N, T, D) that gives (N, 1, D)
QKVDelta = Callable[[Tensor], Tensor]  # a block's normalised input (N, T, D) -> (N, T, 3 D)
Adapter = Callable[[Tensor], Tensor]  # a block's normalised input (N, T, D) -> what is added to its output, (N, T, D)
Read = Callable[[Tensor], Tensor]  # the normalised prompts after the last block (N, n, D) -> (N, E)
# queries (N, T, H, D / H) or (N, 1, H, D / H), keys and values (N, T, 2, H, D / H) -> as the queries
Attend = Callable[[Tensor, Tensor], Tensor]


def largest_id(tokens: Tensor) -> Tensor:
    """Position of the end token of OpenAI's tokenizer, which has the largest id: (N, L) -> (N,)."""
    return tokens.argmax(dim=-1)


def attend_causal(q: Tensor, kv: Tensor) -> Tensor:
    """`Attend` where no token sees a later one."""
    q, k, v = (part.transpose(1, 2) for part in (q, *kv.unbind(2)))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def attend_until(end: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    """`Attend` of the tokens at the positions `end` (N,) to those before them; their queries are (N, 1, H, D / H)."""
    seen = torch.arange(kv.shape[1], device=end.device) <= end[:, None, None, None]
    q, k, v = (part.transpose(1, 2) for part in (q, *kv.unbind(2)))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)


class SentenceLayout:
    """The tokens of a list of sentences that a causal tower computes: those that all sentences begin with once, and of
    each sentence what follows, up to its end token. They stand one after the other in one sequence of R tokens.

    Args:
        lengths: tokens of each of the N sentences, the end token counted.
        shared: P, how many tokens all sentences begin with; fewer than the shortest sentence has.
        device: of the tower.
        copies: M, where the N sentences are M lists of N / M, each with a beginning of its own.

    Attributes:
        length: L of the longest sentence.
        end: position of each sentence's end token, (N,).
        last: its place in the sequence, (N,).
    """

    def __init__(self, lengths: Sequence[int], shared: int, device: torch.device, copies: int = 1):
        assert 0 <= shared < min(lengths), "something of each sentence must be its own"
        self.lengths, self.shared, self.device, self.copies = tuple(lengths), shared, device, copies
        self.length, first = max(lengths), copies * shared
        counts = torch.tensor(self.lengths)
        there = torch.arange(self.length) < counts[:, None]
        slots = there[:, shared:].flatten().nonzero()[:, 0]  # in (N, L - P), of what follows the beginning
        padded = torch.zeros(len(self) * (self.length - shared), dtype=torch.long)
        padded[slots] = torch.arange(len(slots))
        rows = slots + shared * (slots // (self.length - shared) + 1)  # in (N, L)
        last = first - 1 + (counts - shared).cumsum(dim=0)
        causal = torch.ones(self.length - shared, self.length, dtype=torch.bool).tril(shared)
        self._rows, self._slots, self._padded, self._causal = (x.to(device) for x in (rows, slots, padded, causal))
        self.end, self.last, self._there = (x.to(device) for x in (counts - 1, last, there[:, None, None]))
        self._even = len(slots) == len(padded)
        self._derived: dict[object, SentenceLayout] = {}

    @classmethod
    def of(cls, tokens: Tensor, end: Tensor) -> "SentenceLayout":
        """The layout of sentences by what stands in them, (N, L) numbers that are equal where embeddings are; and the
        positions of their end tokens (N,)."""
        lengths = (end + 1).tolist()
        same = (tokens == tokens[:1]).all(dim=0).long().cumprod(dim=0).sum()
        return cls(lengths, min(int(same), min(lengths) - 1), tokens.device)

    def __len__(self) -> int:
        return len(self.lengths)

    def _of(self, key: object, *arguments: object) -> "SentenceLayout":
        """Another layout, made once."""
        if key not in self._derived:
            self._derived[key] = SentenceLayout(*arguments)  # type: ignore[arg-type]  # the callers' are
        return self._derived[key]

    def __getitem__(self, rows: slice) -> "SentenceLayout":
        """Some of the sentences."""
        shared = self.shared if self.copies == 1 else 0
        return self._of((rows.start, rows.stop, rows.step), self.lengths[rows], shared, self.device)

    def repeat(self, copies: int) -> "SentenceLayout":
        """The sentences so many times, each time with a beginning of its own: M = `copies`."""
        return self._of(("copies", copies), self.lengths * copies, self.shared, self.device, copies)

    def lengthened(self, n: int) -> "SentenceLayout":
        """The sentences with n tokens more in what all begin with."""
        lengths = [length + n for length in self.lengths]
        return self._of(("longer", n), lengths, self.shared + n, self.device, self.copies)

    def unshared(self) -> "SentenceLayout":
        """The sentences with nothing that they begin with in common."""
        return self._of("unshared", self.lengths, 0, self.device)

    def attend(self, q: Tensor, kv: Tensor, last: bool = False) -> Tensor:
        """`Attend` for the sequence: queries (1, R, H, D / H), keys and values (1, R, 2, H, D / H).

        With `last` the queries are those of the end tokens, (1, N, H, D / H).
        """
        count, first = len(self.lengths), self.copies * self.shared
        parts = [first, len(self._slots)]
        beginning, own = kv[0].split(parts)
        beginning = beginning.unflatten(0, (self.copies, self.shared))
        of_each = beginning[:, None].expand(-1, count // self.copies, *beginning.shape[1:]).flatten(0, 1)
        own = (own if self._even else own.index_select(0, self._padded)).unflatten(0, (count, -1))
        k, v = (part.transpose(1, 2) for part in torch.cat([of_each, own], dim=1).unbind(2))
        if last:
            return F.scaled_dot_product_attention(q[0, :, :, None], k, v, attn_mask=self._there)[None, :, :, 0]
        of_beginning, own = q[0].split(parts)
        own = (own if self._even else own.index_select(0, self._padded)).unflatten(0, (count, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(own, k, v, attn_mask=self._causal).transpose(1, 2).flatten(0, 1)
        y = y if self._even else y.index_select(0, self._slots)
        if not first:
            return y[None]
        of_beginning = of_beginning.unflatten(0, beginning.shape[:2])
        q, k, v = (part.transpose(1, 2) for part in (of_beginning, *beginning.unbind(2)))
        of_beginning = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return torch.cat([of_beginning.flatten(0, 1), y])[None]

    def run(self, tower: "TextTower", x: Tensor, prompts: Prompts, insert: bool, share: float) -> Tensor:
        """Embedded tokens (N, L, D) through the blocks of a tower -> the end tokens (N, 1, D).

        Prompts, (n, D) each, stand in what all sentences begin with.
        """
        assert tower.last is not None, "a tower that takes a sequence reads one token of each sentence"
        x = x[:, : self.length]
        beginning = x[:: len(self.lengths) // self.copies, : self.shared]
        x = torch.cat([beginning.flatten(0, 1), x.flatten(0, 1).index_select(0, self._rows)])[None]
        layouts = [self] * len(tower.blocks)
        if insert:
            first, n = next(((i, p.shape[-2]) for i, p in enumerate(prompts) if i and p is not None), (0, 0))
            layouts[first:] = [self.lengthened(n)] * (len(layouts) - first)
        blocks = [partial(block, attend=own.attend) for block, own in zip(tower.blocks[:-1], layouts, strict=False)]
        own = layouts[-1]
        last = partial(tower.last, attend=partial(own.attend, last=True), rows=(slice(None), own.last))
        return run_blocks([*blocks, last], x, prompts, tower.start, insert, share).transpose(0, 1)


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
        packable: whether the tower is causal and its blocks and `last` take `attend` and do all else to each token
            alone: then they take the sequence of a `SentenceLayout`.
        tokenwise: whether the same holds for what was added to the blocks.
        varies: says whether something in the blocks differs now between sentences that begin alike, such as dropout.
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
    packable: bool = False
    tokenwise: bool = True
    varies: Callable[[], bool] | None = None


Tower = TypeVar("Tower", ImageTower, TextTower)


def with_additions(
    tower: Tower,
    kind: str,
    additions: Sequence[Callable[[Tensor], Tensor] | None],
    tokenwise: bool = False,
    varies: Callable[[], bool] | None = None,
) -> Tower:
    """The tower with something added in its blocks, which themselves are not changed.

    Args:
        tower: the tower.
        kind: "delta" (`QKVDelta`, to the projections of the attention) or "adapter" (`Adapter`, beside the block).
        additions: one entry per block, None where nothing is added.
        tokenwise: whether each addition is a function of single tokens: only then sentences go without padding.
        varies: says whether it differs now between sentences, as dropout does, so that these share no beginning.

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
    other = replace(tower, blocks=blocks, last=last)
    if not isinstance(other, TextTower):
        return other
    either = [says for says in (other.varies, varies) if says is not None]
    varies = (lambda: any(says() for says in either)) if either else None
    return replace(other, tokenwise=other.tokenwise and tokenwise, varies=varies)


def split(tower: Tower, block: int) -> tuple[Tower, Tower]:
    """The tower below a block, counted from 0, whose features are tokens; and from it on, which takes these.

    Raises:
        ValueError: the tower has no such block, as a ResNet has none.
    """
    if not 0 < block < len(tower.blocks):
        raise ValueError(f"this tower has {len(tower.blocks)} blocks and cannot be divided at block {block}")
    bind = tower.bind if isinstance(tower, TextTower) else None
    lower = replace(tower, blocks=tower.blocks[:block], pool=lambda x, *end: x, last=None)
    if isinstance(lower, TextTower):
        lower = replace(lower, packable=False)  # its tokens are the result
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
    end: Tensor | SentenceLayout,
    prompts: Prompts = (),
    insert: bool = False,
    share: float = 1.0,
) -> Tensor:
    """Text features (N, E), not normalised.

    Args:
        tower: the text tower.
        embeddings: (N, L, D) token embeddings, learned context already in place. L may be any length that reaches the
            last end token: what follows it cannot change the result.
        end: (N,) position of each sentence's end token; or the layout of the sentences, by which a causal tower
            computes what they begin with once and no padding: the result is the same but for rounding.
        prompts: entries 1, 2, ... replace the n positions from `tower.start` before their block; entry 0 is ignored (it
            is the context).
        insert: put the first of them in between instead; the sentence moves on by n positions.
        share: of a prompt that replaces; the rest is what the slots held.

    Raises:
        ValueError: tokens cannot be inserted, as the tower's mask belongs to the positions of a sentence.
    """
    x, layout = tower.embed(embeddings), end if isinstance(end, SentenceLayout) and tower.packable else None
    end = end.end if isinstance(end, SentenceLayout) else end
    given = [prompt for prompt in prompts[1:] if prompt is not None]
    n = given[0].shape[-2] if given else 0
    if layout is not None and tower.tokenwise:
        layout = layout.unshared() if tower.varies is not None and tower.varies() else layout
        in_beginning = layout.copies == 1 and tower.start + (0 if insert else n) <= layout.shared
        if not given or (in_beginning and all(prompt.ndim == 2 for prompt in given)):
            return tower.pool(layout.run(tower, x, prompts, insert, share), torch.zeros_like(end))
    blocks = tower.bind(x, end) if tower.bind else tower.blocks
    if insert and tower.bind:
        raise ValueError("this text tower masks by the positions of a sentence: no tokens can be inserted")
    end = end + n if insert else end
    if tower.last is not None:
        rows = torch.arange(len(end), device=end.device)[:, None], end[:, None]
        options = {"attend": partial(attend_until, end)} if tower.packable else {}
        blocks = (*blocks[:-1], partial(tower.last, rows=rows, **options))
    x = run_blocks(blocks, x, prompts, tower.start, insert, share)
    return tower.pool(x, end if tower.last is None else torch.zeros_like(end))
