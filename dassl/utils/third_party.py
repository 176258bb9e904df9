"""Names that Dassl has in a module and that come from elsewhere here, found when third-party code asks for them."""

import importlib
from collections.abc import Callable
from typing import Any


def names_from(module: str, places: dict[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module.

    Args:
        module: its name.
        places: for each name the module that has it.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(places[name]), name)

    return get
