"""Builds the package: puts the rooms of the repository below `apexvl`, where they shadow nobody's `clip` or `datasets`.

All else stands in pyproject.toml. Rooms import each other by absolute names, which are changed on the way: `from clip
import clip` becomes `from apexvl.clip import clip`, found by its place in the syntax tree. Commands in help texts
become those of the installed program. An editable install changes nothing: there `apexvl/names.py` finds the rooms.
"""

import ast
import runpy
import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NAMES = runpy.run_path(str(ROOT / "apexvl" / "names.py"))
PLACES = {room: f"apexvl.{room}" for room in NAMES["ROOMS"]} | {
    script: f"apexvl.programs.{script}" for script in NAMES["SCRIPTS"]
}
DATA = (".json", ".log", ".pt", ".py", ".yaml")
COMMANDS = {  # as they are called in a checkout, and where the package is installed
    "python train.py": "apexvl train",
    "python predict.py": "apexvl predict",
    "python parse_test_res.py": "apexvl tables",
    "python -m interpret_prompts": "apexvl interpret",
    "python -m datasets.check": "apexvl check",
    "python -m datasets.prepare": "apexvl prepare",
    "python -m datasets.": "python -m apexvl.datasets.",
    "python -m commands.": "python -m apexvl.commands.",
    "python -m lpclip": "apexvl lpclip",
    "python -m results": "apexvl results",
    "python -m sweep": "apexvl sweep",
    "python -m synthetic.": "python -m apexvl.synthetic.",
    "  parse_test_res.py ": "  apexvl tables ",
    "train.py: ": "apexvl train: ",
    "predict.py: ": "apexvl predict: ",
}


def moved(name: str) -> str:
    """Where a module of the repository is in the package; its own name for one of others."""
    root, dot, rest = name.partition(".")
    return PLACES.get(root, root) + dot + rest


def names_room(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import is of something that is elsewhere in the package."""
    if isinstance(node, ast.ImportFrom):
        return not node.level and moved(node.module or "") != node.module
    return any(moved(alias.name) != alias.name for alias in node.names)


def import_statement(node: ast.Import | ast.ImportFrom) -> str:
    """An import with the names of rooms changed, on one line; what it binds stays the same."""
    if isinstance(node, ast.ImportFrom):
        return f"from {moved(node.module or '')} import ({ast.unparse(ast.Import(node.names)).removeprefix('import ')})"
    parts = []
    for alias in node.names:
        name, bound = moved(alias.name), alias.name.partition(".")[0]
        if name == alias.name or alias.asname:
            parts.append(ast.unparse(ast.Import([ast.alias(name, alias.asname)])))
        else:
            parts += [f"import {name}"] * ("." in alias.name) + [
                f"from {moved(bound).rpartition('.')[0]} import {bound}"
            ]
    return "; ".join(parts)


def relocated(source: str) -> str:
    """A file of a room as it is in the package, line for line."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Import | ast.ImportFrom) or not names_room(node):
            continue
        first, last, end = node.lineno - 1, (node.end_lineno or node.lineno) - 1, node.end_col_offset or 0
        after = lines[last].encode()[end:].decode()
        before = lines[first].encode()[: node.col_offset].decode()
        lines[first : last + 1] = [before + import_statement(node) + after, *["\n"] * (last - first)]
    text = "".join(lines)
    for there, here in COMMANDS.items():
        text = text.replace(there, here)
    return text


class BuildRooms(build_py):
    """Copies `apexvl` and `dassl` as usual, and the rooms below `apexvl`."""

    def run(self) -> None:
        """Build; an editable install is left to the checkout."""
        shutil.rmtree(self.build_lib, ignore_errors=True)  # what an earlier build left is not packed again
        super().run()
        if self.editable_mode:
            return
        for source, target in self.files().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".py":
                target.write_text(relocated(source.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                target.write_bytes(source.read_bytes())
        if commit := git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"):
            Path(self.build_lib, "dassl", "engine", "commit.txt").write_text(commit, encoding="utf-8")

    def get_source_files(self) -> list[str]:
        """What a source distribution has to hold."""
        return [*super().get_source_files(), *(str(path.relative_to(ROOT)) for path in self.files())]

    def files(self) -> dict[Path, Path]:
        """The files of the rooms, and where they go."""
        package = Path(self.build_lib, "apexvl")
        found = {ROOT / f"{name}.py": package / "programs" / f"{name}.py" for name in NAMES["SCRIPTS"]}
        for room in (*NAMES["ROOMS"], "apexvl", "configs"):
            for path in sorted((ROOT / room).rglob("*")):
                if path.suffix in DATA and path.is_file():
                    below = path.relative_to(ROOT)
                    found[path] = package.parent / below if room == "apexvl" else package / below
        return found


def git(*words: str) -> str:
    """What git says of the checkout that is built; "" where it is none."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 and (ROOT / ".git").exists() else ""


setup(cmdclass={"build_py": BuildRooms})
