"""Former names, for methods of users that are older than this room; they go with the next release.

`trainers.base`, `trainers.method`, `trainers.prompts` and `trainers.templates` are found where they are now. Class
attributes by their former names are understood. Both with a DeprecationWarning that says what is written now.
"""

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __name__.removesuffix("adaptation.former_names")  # "" in a checkout, where the rooms are at the top
MODULES = {
    f"{PACKAGE}trainers.{former}": f"{PACKAGE}adaptation.{now}"
    for former, now in {"base": "trainer", "method": "method", "prompts": "prompts", "templates": "templates"}.items()
}
ATTRIBUTES = {"registered": "checkpoint_dir", "stackable": "supports_stacking", "recipe": "code_version"}
TRANSFERS = {"any": "any", "part": "subset", "own": "none"}  # what `serves` said, and `class_transfer` says


def warn(former: str, now: str) -> None:
    """Say what takes the place of a former name."""
    warnings.warn(f"{former} goes with the next release: write {now}", DeprecationWarning, stacklevel=4)


def patterns(table: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """A table of names in checkpoints in its former shape: pattern and replacement of each name."""
    rows = []
    for own, official in table.items():
        first, *rest = official.split("*")
        replacement = first + "".join(rf"\{number}{piece}" for number, piece in enumerate(rest, 1))
        rows.append((re.escape(own).replace(r"\*", r"(\w+)"), replacement))
    return tuple(rows)


class FormerModule(Loader):
    """Gives a former module the contents of the present one, its own former names among them."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The usual one."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill it."""
        now = import_module(MODULES[module.__name__])
        warn(f"the module {module.__name__}", now.__name__)
        own = {name: value for name, value in vars(now).items() if not name.startswith("__")}
        names: dict[str, Any] = {name: patterns(table) for name, table in own.items() if name.endswith("_PROMPT_NAMES")}
        if "CONTEXT_NAMES" in own:
            names |= {"CONTEXT_NAMES": patterns(own["CONTEXT_NAMES"]), "Names": tuple[tuple[str, str], ...]}
        spoken = {"spoken": own["prompt_name"]} if "prompt_name" in own else {}
        vars(module).update({**own, **names, **spoken})


class Finder(MetaPathFinder):
    """Finds the former modules, after all others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a former module, None for others."""
        return ModuleSpec(fullname, FormerModule()) if fullname in MODULES else None


def install() -> None:
    """Let the former modules be found."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())


def translate_trainer(cls: type) -> None:
    """Give a trainer class that uses former attributes the present ones."""
    own = dict(vars(cls))
    for former in own.keys() & ATTRIBUTES.keys():
        warn(f"{cls.__name__}.{former}", ATTRIBUTES[former])
        setattr(cls, ATTRIBUTES[former], own[former])
    if "serves" in own:
        warn(f"{cls.__name__}.serves", "the class method class_transfer(cfg)")
        cls.class_transfer = classmethod(lambda cls, cfg: TRANSFERS[own["serves"]])  # type: ignore[attr-defined]  # made here


def translate_method(cls: Any) -> None:
    """Give a method class that uses former attributes the present ones."""
    if "names" not in vars(cls):
        return
    warn(f"{cls.__name__}.names", "the table checkpoint_names")
    rows, usual = cls.names, cls.official_name

    def official_name(self: Any, own: str) -> str:
        found = (re.sub(pattern, official, own) for pattern, official in rows if re.fullmatch(pattern, own))
        return next(found, None) or usual(self, own)

    cls.official_name = official_name
