"""From the learned text vectors of a checkpoint to the words of the vocabulary that lie nearest.

As in Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134), section 4.4.

Shape legend: V words of the vocabulary, C classes, n vectors, D text tower width.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clip.backbone import Backbone
from clip.clip import tokenizer
from clip.precision import to_float32

# name in a checkpoint -> title; the number is that of the text block that the vectors enter before
CONTEXT = re.compile(r"(?:prompt_learner\.)?ctx")
DEEP = (
    (re.compile(r"(?:prompt_learner\.)?compound_prompts_text\.(\d+)"), 1),  # entry k belongs to block k + 1
    (re.compile(r"text_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow"), 0),
)


def text_vectors(state: Mapping[str, Tensor], blocks: int, classnames: Sequence[str] = ()) -> dict[str, Tensor]:
    """The learned vectors of a checkpoint's state that live among word embeddings, each (n, D), by title.

    Class-specific contexts (C, n, D) give one entry per class, named if the class names are known. Of MaPLe, what lies
    beyond the last of the text tower's `blocks` is passed over: no word ever stands beside it.

    Raises:
        ValueError: there are none.
    """
    found: dict[str, Tensor] = {}
    deep: dict[int, Tensor] = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        if CONTEXT.fullmatch(key) and value.ndim == 2:
            found["context"] = value
        elif CONTEXT.fullmatch(key):
            names = classnames if len(classnames) == len(value) else [f"number {i}" for i in range(len(value))]
            found |= {f"context of class {name}": vectors for name, vectors in zip(names, value, strict=True)}
        for pattern, offset in DEEP:
            if match := pattern.fullmatch(key):
                deep[int(match[1]) + offset] = value
    found |= {f"prompt before text block {i}": deep[i] for i in sorted(deep) if i < blocks}
    if not found:
        raise ValueError("the checkpoint holds no learned text context: only those can be read as words")
    return found


def vocabulary(backbone: Backbone) -> tuple[list[str], Tensor]:
    """Words, and their embeddings (V, D); words whose embedding was never trained (all zero) are left out."""
    decoder = tokenizer().decoder
    table = to_float32(backbone.token_embedding(torch.arange(len(decoder), device=backbone.device)))
    trained = table.any(dim=1)
    return [decoder[i] for i in trained.nonzero()[:, 0].tolist()], table[trained]


def nearest_words(vectors: Tensor, words: Sequence[str], table: Tensor, k: int) -> list[list[tuple[str, float]]]:
    """For each of the vectors (n, D) the k words of the table (V, D) at the smallest Euclidean distance, nearest first.

    Raises:
        ValueError: the vectors have another width than the table, or k is not in 1 .. V.
    """
    if vectors.shape[-1] != table.shape[1]:
        raise ValueError(
            f"the learned vectors are {vectors.shape[-1]} wide, but the words of the backbone {table.shape[1]}: name "
            "the backbone of the run (--backbone)"
        )
    if not 1 <= k <= len(words):
        raise ValueError(f"--topk is {k}, but must be in 1 .. {len(words)}")
    exact = "donot_use_mm_for_euclid_dist"  # the shorter way loses the last decimals
    distances = torch.cdist(to_float32(vectors).to(table.device), table, compute_mode=exact)
    values, indices = distances.topk(k, largest=False)
    return [
        [(words[i], value) for i, value in zip(row, row_values, strict=True)]
        for row, row_values in zip(indices.tolist(), values.tolist(), strict=True)
    ]
