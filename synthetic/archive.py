"""Writing the small CLIP as an ordinary weights file: half precision, whole token table, compressed.

`torch.save` stores its archive uncompressed. The token table is almost all zeros (rows of words that no caption has),
so the same archive with its members deflated is a tenth of the size, and `torch.load` reads it as it is.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def expand_vocabulary(state: Mapping[str, Tensor], used: Tensor, size: int) -> dict[str, Tensor]:
    """State dict whose token table has `size` rows: trained row i at token id `used[i]`, zeros elsewhere.

    Id 0 pads and is never read by a causal tower, so its row is zero too.
    """
    rows = state["token_embedding.weight"]
    table = rows.new_zeros(size, rows.shape[1])
    table[used] = rows
    table[0] = 0
    return {**state, "token_embedding.weight": table}


def write_weights(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a state dict in half precision (the logit scale stays float32), deflated, whole or not at all."""
    half = {name: value.detach().half() if value.ndim else value.detach().float() for name, value in state.items()}
    plain = io.BytesIO()
    torch.save(half, plain)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(beside, "w") as target:
            for member in source.infolist():
                fixed = zipfile.ZipInfo(member.filename)  # no time stamp: the same weights give the same bytes
                target.writestr(fixed, source.read(member), zipfile.ZIP_DEFLATED, compresslevel=9)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
