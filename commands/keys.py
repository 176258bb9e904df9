"""docs/CONFIG.md: every configuration key with its type, default, meaning and readers.

    python -m commands.keys          # compares the page with the code
    python -m commands.keys --write  # writes it

Keys and defaults are those that the code declares, readers are the files whose code asks a configuration for them;
what they mean stands in `commands/key_meanings.py`.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from commands.key_meanings import MEANINGS
from dassl.output import printable_streams

KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)*")
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "CONFIG.md"
DEFAULTS = "dassl/config/defaults.py"
ROOMS = ("dassl", "clip", "adaptation", "trainers", "datasets", "lpclip", "interpret_prompts", "predict.py", "train.py")
SHOWN = 4  # readers of a key
HEAD = """# Configuration keys

Every key with its type, its default, what it means and which files read it; made by
`python -m commands.keys --write`, and held by `tests/commands/test_commands_keys.py`. Keys are given in YAML files and
on command lines as `KEY VALUE` or `KEY=VALUE` ([RUN.md](RUN.md)); `python train.py --print-config` shows those of a
run. Trainers and data sets declare their own keys ([EXTENDING.md](EXTENDING.md)).
"""


def meaning(key: str) -> str:
    """What a key means; "" for one that nobody has described, such as a key of a trainer that was dropped in."""
    if key in MEANINGS:
        return MEANINGS[key]
    return next((text for name, text in MEANINGS.items() if "*" in name and fnmatchcase(key, name)), "")


def comments(leaf: str, files: Iterable[str]) -> str:
    """The comment beside a key's default in the first of the files that has one; "" without one."""
    for file in files:
        text = (ROOT / file).read_text(encoding="utf-8")
        if found := re.search(rf'^\s*"{re.escape(leaf)}": .*?,\s+# (.+)$', text, re.M):
            return found[1].replace("|", "\\|")
    return ""


def sources() -> dict[str, set[str]]:
    """The names of configuration keys that each file reads: attributes and items in capitals."""
    found = {}
    places = [ROOT / room for room in ROOMS]
    files = [path for place in places for path in ([place] if place.suffix else place.rglob("*.py"))]
    for path in sorted(files):
        if path.parent.name != "config":
            found[path.relative_to(ROOT).as_posix()] = set(_paths(ast.parse(path.read_text(encoding="utf-8"))))
    return found


def _paths(tree: ast.AST) -> Iterable[str]:
    """Dotted names in capitals as code has them, `cfg.OPTIM.LR`, and the texts of keys, as `'VAL_SHOTS`, `'GB_*`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.isupper():
            yield _dotted(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and KEY.fullmatch(node.value):
            yield f"'{node.value}"
        elif isinstance(node, ast.JoinedStr) and node.values:
            text = getattr(node.values[0], "value", "")
            if isinstance(text, str) and KEY.fullmatch(text):
                yield f"'{text}*"


def _dotted(node: ast.expr) -> str:
    """The name of an attribute with those before it."""
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def readers(key: str, found: dict[str, set[str]], declaring: Iterable[str]) -> list[str]:
    """The files that read a key.

    Args:
        key: dotted.
        found: of `sources`.
        declaring: files whose trainers declare the key's node, which read it by its last part alone.
    """
    node, _, leaf = key.rpartition(".")
    tail = f"{node.rpartition('.')[2]}.{leaf}" if node else leaf
    files = []
    for file, names in found.items():
        texts = [name[1:] for name in names if name.startswith("'")]
        by_name = any(name == tail or name.endswith(f".{tail}") for name in names)
        by_leaf = any(name.rpartition(".")[2] == leaf for name in names) or any(fnmatchcase(leaf, t) for t in texts)
        if by_name or key in texts or (by_leaf and (file in declaring or _is_of(file, node))):
            files.append(file)
    return files


def _is_of(file: str, node: str) -> bool:
    """Whether a file is given one node alone, whose keys it reads by their last parts."""
    return {
        "OPTIM": file.startswith("dassl/optim/"),
        "INPUT": file.startswith("dassl/data/transforms/"),
        "DATASET": file.startswith("datasets/"),
        "MODEL.HEAD": file.startswith("dassl/modeling/"),
        "MODEL.BACKBONE": file.startswith("dassl/modeling/"),
    }.get(node, node.startswith("DATALOADER.") and file == "dassl/data/data_manager.py")


def declared() -> dict[str, list[str]]:
    """Node of a trainer -> the files that declare it, with those of the bases that read it too."""
    from dassl.engine import TRAINER_REGISTRY

    found: dict[str, list[str]] = {}
    for _, kind in sorted(TRAINER_REGISTRY, key=lambda item: item[0]):
        for node in getattr(kind, "CONFIG", {}):
            own = [base.__module__.replace(".", "/") + ".py" for base in kind.__mro__]
            own = [file for file in own if file.startswith(("trainers/", "adaptation/"))]
            own += ["adaptation/dept.py"] if node == "DEPT" else []
            found.setdefault(f"TRAINER.{node}", []).extend(own)
    return found


def page() -> str:
    """The text of docs/CONFIG.md."""
    import datasets  # noqa: F401 - registers what is in the folder
    import trainers  # noqa: F401
    from commands.settings import values
    from dassl.config import declared_cfg

    found, nodes, rows = sources(), declared(), values(declared_cfg())
    lines, section = [HEAD], ""
    for key in sorted(rows, key=lambda key: (key.startswith("TRAINER."), "." in key, key.partition(".")[0], key)):
        parts = key.split(".")
        top = (
            ".".join(parts[: 2 if parts[0] == "TRAINER" and len(parts) > 2 else 1]) if parts[1:] else "of the whole run"
        )
        if top != section:
            section = top
            lines += [f"\n## {top}\n", "| key | type | default | meaning | read by |", "|---|---|---|---|---|"]
        files = readers(key, found, nodes.get(key.rpartition(".")[0], ()))
        more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        said = ", ".join(f"`{file}`" for file in files[:SHOWN]) + more
        about = meaning(key) or comments(key.rpartition(".")[2], [DEFAULTS, *files])
        cells = f"`{key}`", type(rows[key]).__name__, f"`{_shown(rows[key])}`", about, said or "-"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return repr(value).replace("|", "\\|")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.keys", description="Compare docs/CONFIG.md with the code."
    )
    parser.add_argument("--write", action="store_true", help="write the page")
    return parser


@printable_streams()
def main(argv: list[str] | None = None) -> int:
    """Compare the page with the code, or write it; 1 where they differ."""
    args, text = build_parser().parse_args(argv), page()
    if args.write:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
    sys.stdout.write("" if same else f"{PAGE.name} is not what the code says: python -m commands.keys --write\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
