"""The words of a command line before argparse sees them: `KEY=VALUE`, and flags that are configuration keys."""

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence

PAIR = re.compile(r"([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)=(.*)", re.DOTALL)
ALIASES = {  # what a setting is called in the command lines of others
    "epoch": "OPTIM.MAX_EPOCH", "epochs": "OPTIM.MAX_EPOCH", "batch_size": "DATALOADER.TRAIN_X.BATCH_SIZE",
    "bs": "DATALOADER.TRAIN_X.BATCH_SIZE", "workers": "DATALOADER.NUM_WORKERS", "shots": "DATASET.NUM_SHOTS",
    "learning_rate": "OPTIM.LR", "wd": "OPTIM.WEIGHT_DECAY", "optimizer": "OPTIM.NAME", "arch": "MODEL.BACKBONE.NAME",
    "precision": "PREC", "subsample": "DATASET.SUBSAMPLE_CLASSES",
}  # fmt: skip


def is_pair(word: str) -> bool:
    """Whether a word is `KEY=VALUE` with a configuration key: one with a node that there is, or one of the top."""
    match = PAIR.fullmatch(word)
    if not match:
        return False
    from dassl.config.defaults import DEFAULTS  # only now: it takes PyTorch, which takes seconds

    node, point, _ = match[1].partition(".")
    return isinstance(DEFAULTS.get(node), dict) if point else node in DEFAULTS and not isinstance(DEFAULTS[node], dict)


def split_pairs(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The words, those that are `KEY=VALUE` as two; the value of a flag that takes one stays as it is."""
    words: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        action = parser._option_string_actions.get(before)
        takes_one = action is not None and action.nargs is None
        words += word.split("=", 1) if not takes_one and is_pair(word) else [word]
    return words


def keys_called(word: str, known: Iterable[str]) -> list[str]:
    """The configuration keys that somebody means by a word such as `lr`, `--batch-size` or `OPTIM.LR` in any case."""
    known = list(known)
    wanted = word.lstrip("-").replace("-", "_").lower()
    alias = ALIASES.get(wanted, wanted).lower()
    for name in dict.fromkeys((wanted, alias)):
        found = [key for key in known if key.lower() == name or key.lower().endswith(f".{name}")]
        if found:
            return found
    return []


def all_keys() -> list[str]:
    """All configuration keys, those of trainers and data sets among them."""
    import datasets  # noqa: F401 - registers what is in the folder
    import trainers  # noqa: F401
    from dassl.config import declared_cfg, dotted

    return list(dotted(declared_cfg()))


def refuse_unknown_flags(words: Sequence[str], parser: argparse.ArgumentParser, own: Sequence[str] = ()) -> None:
    """Refuse flags that the command does not have, and say how the setting is written that is meant.

    Args:
        words: the words before the KEY VALUE pairs.
        parser: of the command.
        own: configuration keys of the trainer in use go before those of others: their nodes, such as `TRAINER.COOP.`.

    Raises:
        ValueError: an unknown flag.
    """
    flags = list(parser._option_string_actions)
    for index, word in enumerate(words):
        flag, sign, value = word.partition("=")
        if not re.fullmatch(r"--[A-Za-z][\w-]*", flag) or any(known.startswith(flag) for known in flags):
            continue
        following = value if sign else next(iter(words[index + 1 : index + 2]), "VALUE")
        following = "VALUE" if following.startswith("--") else following
        near = difflib.get_close_matches(flag, flags, n=3, cutoff=0.75)
        if near:
            raise ValueError(f"there is no flag {flag}: do you mean {' or '.join(near)}? (--help lists them)")
        keys = keys_called(flag, all_keys())
        mine = [key for key in keys if any(key.startswith(node) for node in own)]
        general = [key for key in keys if not key.startswith("TRAINER.")]
        if chosen := mine or general or keys:
            written = " or ".join(f"{key} {following}" for key in chosen[:4])
            raise ValueError(
                f"there is no flag {flag}: a setting is written as KEY VALUE behind all flags, here {written}"
            )
        raise ValueError(f"there is no flag {flag} (--help lists them; settings are KEY VALUE pairs behind all flags)")
