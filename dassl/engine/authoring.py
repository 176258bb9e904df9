"""Sentences for the mistakes of somebody who writes a trainer: each names the file and the line."""

import ast
import inspect
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def place_of(thing: Any, attribute: str = "") -> str:
    """Return where a class or function is defined, ``trainers/coop.py, line 40``; its name where that is unknown.

    Args:
        thing: the class or function.
        attribute: of a class: the line where ``self.<attribute>`` is assigned, if there is one.
    """
    thing = inspect.unwrap(thing) if callable(thing) else thing
    try:
        lines, first = inspect.getsourcelines(thing)
        file = Path(inspect.getsourcefile(thing) or "")
    except (OSError, TypeError):
        return str(getattr(thing, "__qualname__", thing))
    line = _assigned(lines, attribute) if attribute else _named(lines)
    return f"{file.parent.name}/{file.name}, line {first + line}"


def _named(lines: list[str]) -> int:
    """Return how far below its decorators a definition stands."""
    return next((at for at, line in enumerate(lines) if line.lstrip().startswith(("class ", "def "))), 0)


def _assigned(lines: list[str], attribute: str) -> int:
    """Return how far below its first line a class assigns ``self.<attribute>``; the class itself if it does not."""
    for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Attribute) and target.attr == attribute for target in targets):
                return node.lineno - 1
    return _named(lines)


def defining_class(kind: type, attribute: str) -> type:
    """Return the class, of a class and its bases, whose source assigns ``self.<attribute>``; else the class itself."""
    for base in kind.__mro__[:-1]:
        try:
            lines, _ = inspect.getsourcelines(base)
        except (OSError, TypeError):
            continue
        if f"self.{attribute}" in "".join(lines):
            return base
    return kind


@contextmanager
def keys_are_there() -> Iterator[None]:
    """Answer, for the block, an attribute of a configuration node that there is not.

    Raises:
        ValueError: it names the line that asks, the key, and those that the node has.
    """
    try:
        yield
    except AttributeError as error:
        node = getattr(error, "obj", None)
        frames = traceback.extract_tb(error.__traceback__)
        if not frames or Path(frames[-1].filename).parent.name != "yacs" or frames[-1].name != "__getattr__":
            raise
        asking = next(frame for frame in reversed(frames) if Path(frame.filename).parent.name != "yacs")
        file = Path(asking.filename)
        known = f"; there are {', '.join(node)}" if isinstance(node, dict) else ""
        raise ValueError(
            f"{file.parent.name}/{file.name}, line {asking.lineno}: the configuration has no key {error} in "
            f"`{asking.line}`{known}: declare it in CONFIG, or write it as it is declared"
        ) from error


def require_initialised(trainer: Any, attribute: str, call: str) -> None:
    """Raise a ValueError if an object lacks what the ``__init__`` of its base sets.

    Args:
        trainer: the object.
        attribute: what is set.
        call: how the base is called, such as ``super().__init__(cfg)``.
    """
    kind = type(trainer)
    if attribute not in vars(trainer) and kind.__init__ is not object.__init__:
        raise ValueError(f"{place_of(kind.__init__)}: {kind.__name__}.__init__ does not call {call}")
