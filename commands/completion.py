"""Completion of command lines in a shell, by argcomplete where it is installed (the extra `completion`).

    eval "$(register-python-argcomplete train.py)"

Flags, trainers, configuration files, data sets and, behind the flags, configuration keys are completed.
"""

import argparse
import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any

from commands.names import SUFFIXES, configs

ASKED = "_ARGCOMPLETE"  # the environment variable that a shell sets when it asks


def offers(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, and end the process; nothing otherwise, or without argcomplete."""
    if ASKED not in os.environ:
        return
    try:
        argcomplete: Any = importlib.import_module("argcomplete")
    except ImportError:
        return
    for action in parser._actions:
        if action.dest in COMPLETERS:
            action.completer = COMPLETERS[action.dest]  # type: ignore[attr-defined]  # argcomplete reads it
    argcomplete.autocomplete(parser)


def _trainers(**_: Any) -> Iterable[str]:
    return sorted(path.parent.name for path in (configs() / "trainers").glob("*/sweep.yaml"))


def _data_sets(**_: Any) -> Iterable[str]:
    return sorted(path.stem for path in (configs() / "datasets").glob("*.yaml"))


def _files(parsed_args: argparse.Namespace, **_: Any) -> Iterable[str]:
    """The configuration files of the trainer that the line names so far, or of all."""
    trainer = getattr(parsed_args, "trainer", "") or "*"
    found = (configs() / "trainers").glob("*/*")
    files = [path for path in found if path.suffix in SUFFIXES and path.name != "sweep.yaml"]
    return sorted(path.stem for path in files if trainer in ("*", path.parent.name) or _same(trainer, path.parent.name))


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def _keys(prefix: str, **_: Any) -> Iterable[str]:
    """The configuration keys of the engine and of all trainers that begin so."""
    from commands.words import all_keys

    return [key for key in all_keys() if key.startswith(prefix)] if prefix else []


COMPLETERS: dict[str, Callable[..., Iterable[str]]] = {
    "trainer": _trainers,
    "trainers": _trainers,
    "datasets": _data_sets,
    "source": _data_sets,
    "dataset_config_file": _data_sets,
    "config_file": _files,
    "opts": _keys,
}
