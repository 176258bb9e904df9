"""Byte-pair encoding of CLIP's text, as OpenAI's package has it.

The vocabulary of merges is read from the installed `open_clip` package (found without importing it).
"""

import gzip
import html
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_NUM_MERGES = 49152 - 256 - 2


def default_bpe() -> str:
    """Path of `bpe_simple_vocab_16e6.txt.gz` in the installed open_clip package.

    Raises:
        FileNotFoundError: open_clip_torch is not installed or ships no vocabulary.
    """
    spec = find_spec("open_clip")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        path = Path(folder) / "bpe_simple_vocab_16e6.txt.gz"
        if path.is_file():
            return str(path)
    raise FileNotFoundError("CLIP's vocabulary bpe_simple_vocab_16e6.txt.gz was not found: pip install open_clip_torch")


@lru_cache
def bytes_to_unicode() -> dict[int, str]:
    """A printable character for each of the 256 bytes: its own where it has one, else one from 256 upwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in table)
    table.update((byte, chr(256 + i)) for i, byte in enumerate(others))
    return table


def clean(text: str) -> str:
    """Text with broken encodings and HTML entities mended and white space folded."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text).strip()


class SimpleTokenizer:
    """Encoder and decoder between text and CLIP's 49408 token ids.

    Attributes:
        encoder: token string -> id. decoder: id -> token string. bpe_ranks: pair of token strings -> rank of its merge.
    """

    def __init__(self, bpe_path: str | None = None):
        with gzip.open(bpe_path or default_bpe(), "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
        merges = [tuple(line.split()) for line in lines[1 : _NUM_MERGES + 1]]
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {char: byte for byte, char in self.byte_encoder.items()}
        alphabet = list(self.byte_encoder.values())
        # ids follow OpenAI's order: printable bytes first, then word-final forms, merges, the two special tokens
        tokens = [*alphabet, *(char + "</w>" for char in alphabet), *("".join(pair) for pair in merges), START, END]
        self.encoder = {token: i for i, token in enumerate(tokens)}
        self.decoder = dict(enumerate(tokens))
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.cache = {START: START, END: END}
        self.pat = regex.compile(_WORDS, regex.IGNORECASE)

    def bpe(self, token: str) -> str:
        """Split one word (already in the byte alphabet) into merged pieces, joined by spaces."""
        if token in self.cache:
            return self.cache[token]
        pieces = [*token[:-1], token[-1] + "</w>"]
        while len(pieces) > 1:
            ranks = [self.bpe_ranks.get(pair) for pair in pairwise(pieces)]
            best = min((rank for rank in ranks if rank is not None), default=None)
            if best is None:
                break
            pieces = _merge(pieces, ranks, best)
        self.cache[token] = " ".join(pieces)
        return self.cache[token]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end tokens."""
        ids: list[int] = []
        for word in self.pat.findall(clean(text).lower()):
            word = "".join(self.byte_encoder[byte] for byte in word.encode("utf-8"))
            ids.extend(self.encoder[piece] for piece in self.bpe(word).split(" "))
        return ids

    def decode(self, tokens) -> str:
        """Text of a sequence of token ids; word ends become spaces."""
        text = "".join(self.decoder[int(token)] for token in tokens)
        data = bytes(self.byte_decoder[char] for char in text)
        return data.decode("utf-8", errors="replace").replace("</w>", " ")


def _merge(pieces: list[str], ranks: list[int | None], best: int) -> list[str]:
    """Merge, from the left, every non-overlapping pair whose rank is `best`."""
    merged, i = [], 0
    while i < len(pieces):
        if i < len(ranks) and ranks[i] == best:
            merged.append(pieces[i] + pieces[i + 1])
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged
