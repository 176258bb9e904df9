"""A stand-in for the CLIP that such a repository brings along: the same calls, a model of two small layers."""

import hashlib
import os

import torch

from .model import Small

__all__ = ["build_model", "tokenize"]

_CACHE = os.environ.get("SMALL_CLIP", os.path.expanduser("~/.cache/clip"))
_MODELS = {"Small": "https://models.invalid/small.pt"}


def _download(url, root=_CACHE):
    """Stands in for the fetched file: the same weights each time."""
    path = os.path.join(root, os.path.basename(url))
    if not os.path.isfile(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        torch.manual_seed(7)
        torch.save(Small().state_dict(), path)
    return path


def build_model(state_dict):
    model = Small()
    model.load_state_dict(state_dict)
    return model.eval()


def tokenize(texts, context_length=12):
    texts = [texts] if isinstance(texts, str) else texts
    rows = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = [1 + hashlib.sha256(word.encode()).digest()[0] % 200 for word in text.split()]
        row[: len(ids) + 1] = torch.tensor([*ids, 255])
    return rows
