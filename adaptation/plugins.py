"""Methods and data sets of users that lie elsewhere than in `trainers/` and `datasets/`: plug-ins.

A plug-in is a Python file that registers trainers or data sets, as a file in those folders does. It is named by its
path in the environment variable APEXVL_PLUGINS, or by an installed package as an entry point of the group
`apexvl.plugins`. In a file the names of the rooms (`from clip import clip`, `from adaptation.method import Method`)
mean this project's, also where it is installed as the package `apexvl`, below which they are then.
"""

import builtins
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = __name__.removesuffix("adaptation.plugins")  # "" in a checkout, where the rooms are at the top
ROOMS = {path.parent.name for path in Path(__file__).parents[1].glob("*/__init__.py")} - {"programs"}
VARIABLE = "APEXVL_PLUGINS"  # paths, separated as those of PATH are
GROUP = "apexvl.plugins"  # of entry points
LOADED: dict[str, ModuleType | None] = {}  # by path or name; None while it is being loaded


def load_plugins() -> None:
    """Load the plug-ins that the environment variable and installed packages name, each once.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: one cannot be imported; the sentence names its file and line.
    """
    for path in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        load_plugin(path)
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.value not in LOADED:
            LOADED[point.value] = None
            LOADED[point.value] = _imported(point.load, f"the plug-in {point.name} ({point.value})")


def load_plugin(path: str | os.PathLike[str]) -> ModuleType | None:
    """Load a plug-in from a file, or return it if it is loaded; None while it is being loaded. Raises as above."""
    file = Path(path).expanduser().resolve()
    if str(file) in LOADED:
        return LOADED[str(file)]
    if not file.is_file():
        raise FileNotFoundError(f"the plug-in {path}: there is no such file")
    spec = spec_from_file_location(f"apexvl_plugin_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"the plug-in {path} is no Python file: its name ends in .py")
    module = module_from_spec(spec)
    if PACKAGE:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
    LOADED[str(file)] = None
    sys.modules[spec.name] = module  # where dataclasses, pickle and Dassl's configuration look for it
    loader = spec.loader
    _imported(lambda: loader.exec_module(module), f"the plug-in {path}", str(file))
    LOADED[str(file)] = module
    return module


def _imported(load: Callable[[], Any], what: str, key: str = "") -> Any:
    """What `load` returns; ValueError naming the line that failed, whatever it failed with."""
    try:
        return load()
    except Exception as error:  # code of others can fail with anything
        LOADED.pop(key, None)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == key]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        place = f", line {line}" if line else ""
        raise ValueError(f"{what} cannot be imported{place}: {type(error).__name__}: {error}") from error


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> ModuleType:
    """`__import__` in which the names of rooms mean those below the package."""
    root = name.partition(".")[0]
    if level or root not in ROOMS:
        return builtins.__import__(name, globals, locals, fromlist, level)
    module = builtins.__import__(f"{PACKAGE}{name}", globals, locals, fromlist or ("__name__",), 0)
    return module if fromlist else import_module(f"{PACKAGE}{root}")
