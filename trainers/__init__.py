"""The methods. A trainer is found by being in this folder: importing the package imports every module of it.

A trainer written for Dassl and CoOp may be dropped in as it is. Where it has the name of one that is here, it takes its
place; a file that cannot be imported is left out with a warning, and `LEFT_OUT` says why.
"""

import ast
import logging
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from adaptation import former_names
from adaptation.plugins import load_plugins

former_names.install()
LEFT_OUT: dict[str, str] = {}  # module -> why

for _module in sorted(module.name for module in iter_modules(__path__)):
    try:
        import_module(f"{__name__}.{_module}")
    except Exception as _error:  # code of others can fail with anything, and must not take the other methods with it
        LEFT_OUT[_module] = f"{type(_error).__name__}: {_error}"
        logging.getLogger(__name__).warning("trainers/%s.py is left out: %s", _module, LEFT_OUT[_module])


def unregistered(name: str) -> list[str]:
    """Sentences about the files here that may be meant by a trainer's name that nothing is registered under.

    These are files that could not be imported, and those with a class of that name, or of a trainer, that has no
    decorator; each is named with its line.
    """
    said = [f"trainers/{module}.py was left out: {reason}." for module, reason in LEFT_OUT.items()]
    for module in sorted(module.name for module in iter_modules(__path__)):
        for kind, line in _without_name(f"{__name__}.{module}", name):
            said.append(
                f"trainers/{module}.py, line {line}: class {kind} is not registered, for "
                "@TRAINER_REGISTRY.register() does not stand above it."
            )
    return said


def _without_name(module: str, name: str) -> Iterator[tuple[str, int]]:
    """Class and line of what a module defines and does not register: the class called `name`, or, where the module
    registers no trainer at all, its trainers."""
    from dassl.engine import TRAINER_REGISTRY, TrainerBase

    loaded = sys.modules.get(module)
    if loaded is None:
        return
    registered = {kind for _, kind in TRAINER_REGISTRY if kind.__module__ == module}
    lines = {
        node.name: node.lineno
        for node in ast.parse(Path(str(loaded.__file__)).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    for kind, line in lines.items():
        found = getattr(loaded, kind, None)
        trains = isinstance(found, type) and issubclass(found, TrainerBase)
        if found not in registered and (kind.lower() == name.lower() or (trains and not registered)):
            yield kind, line


load_plugins()
