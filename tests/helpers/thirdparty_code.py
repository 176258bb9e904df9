"""Putting files of `thirdparty/trainers` among the project's own trainers, for the length of a test."""

import importlib
import sys
from pathlib import Path

import trainers
from dassl.engine import TRAINER_REGISTRY

FILES = Path(__file__).parents[1] / "thirdparty" / "trainers"


def drop_in(monkeypatch, folder: Path, *names: str) -> list:
    """Import files of a folder as modules of the package `trainers`; return the modules."""
    monkeypatch.setattr(TRAINER_REGISTRY, "_objects", dict(TRAINER_REGISTRY))
    monkeypatch.setattr(trainers, "__path__", [*trainers.__path__, str(folder)])
    full = [f"trainers.{name}" for name in names]
    for name in full:
        monkeypatch.setitem(sys.modules, name, None)  # forgotten when the test ends
        del sys.modules[name]
    return [importlib.import_module(name) for name in full]
