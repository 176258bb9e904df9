"""Where the rooms are: below the package where it is installed, at the top in a checkout.

An installed package holds them (`setup.py` puts them there). In a checkout `apexvl.clip` is `clip` itself, the same
module object, so that code written for the package runs there too.
"""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOMS = (
    "adaptation", "clip", "commands", "datasets", "interpret_prompts", "lpclip", "protocols", "results", "sweep",
    "synthetic", "trainers",
)  # fmt: skip
SCRIPTS = ("predict", "train")  # modules at the top of a checkout; `apexvl.train` is the function
ROOT = Path(__file__).resolve().parents[1]
IS_CHECKOUT = not (Path(__file__).parent / "clip").is_dir()


class _Same(Loader):
    """Gives a module that goes by another name."""

    def __init__(self, name: str):
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module of the other name."""
        module = import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing but to leave it as it was: the import system has given it the specification of this name."""
        module.__spec__ = self.spec


class Aliases(MetaPathFinder):
    """Finds modules under other names.

    Args:
        others: the beginning of a name, and what it stands for.
    """

    def __init__(self, others: Mapping[str, str]):
        self.others = dict(others)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a module that goes by another name, None for others."""
        for beginning, other in self.others.items():
            if fullname == beginning or fullname.startswith(f"{beginning}."):
                real = other + fullname.removeprefix(beginning)
                return ModuleSpec(fullname, _Same(real)) if importlib.util.find_spec(real) else None
        return None


def find_rooms() -> None:
    """In a checkout: let its rooms be found, under their own names and below the package."""
    if not IS_CHECKOUT:
        return
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    rooms = {f"apexvl.{room}": room for room in ROOMS}
    sys.meta_path.insert(0, Aliases({**rooms, **{f"apexvl.programs.{name}": name for name in SCRIPTS}}))


def as_top_level(*rooms: str) -> None:
    """Let rooms of an installed package be imported under their names in the repository, in this process.

    `apexvl.as_top_level("clip")` makes `import clip` OpenAI's interface (`load`, `tokenize`, `available_models`) for
    code that was written for it. In a checkout, where they have these names already, nothing happens.

    Raises:
        ValueError: there is no such room, or another package of that name has been imported.
    """
    for room in rooms:
        if room not in ROOMS:
            raise ValueError(f"there is no {room!r} in apexvl: choose from {', '.join(ROOMS)}")
        if room in sys.modules and sys.modules[room] is not import_module(f"apexvl.{room}"):
            raise ValueError(f"{room} has been imported from {getattr(sys.modules[room], '__file__', 'elsewhere')}")
    if not IS_CHECKOUT:
        sys.meta_path.insert(0, Aliases({room: f"apexvl.{room}" for room in rooms}))
