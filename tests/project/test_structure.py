"""The rules of the house that a program can check: who imports whom, where literals stand, what every YAML says."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import apexvl.names
import datasets  # noqa: F401 - registers what is in the folder
import trainers
from dassl.config import declared_cfg, merge_file
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from sweep.method_configs import RULES

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "adaptation", "apexvl", "benchmarks", "clip", "commands", "dassl", "datasets", "interpret_prompts", "lpclip",
    "protocols",
    "results", "sweep", "synthetic", "trainers",
)  # fmt: skip
MAY_IMPORT = {
    "clip": set(),
    "dassl": set(),
    "synthetic": {"clip"},  # the pretraining script; the drawing itself imports nothing
    "datasets": {"clip", "dassl", "synthetic"},  # clip: the check alone, for the tokens of class names
    "adaptation": {"clip", "dassl"},
    "trainers": {"adaptation", "clip", "dassl"},
    "results": {"adaptation", "dassl", "datasets", "trainers"},  # the last two for the keys that they declare
    "protocols": {"results", "sweep"},
    "commands": {"dassl", "datasets", "results", "trainers"},
}
MAY_ALSO_IMPORT = {  # the command lines, and what reads trees, whose directories the protocols declare
    "results/cli.py": {"protocols", "sweep"},
    "results/__main__.py": {"protocols", "sweep"},
    "results/tree.py": {"protocols"},
}
NAMES_FORMATS = {"clip/precision.py", "dassl/utils/torchtools.py", "dassl/utils/tools.py"}
FORMAT_NAMES = {"float16", "bfloat16", "float32", "float64", "half"}
ENTRY_POINTS = {"train.py", "parse_test_res.py"}


def _sources(*rooms: str) -> list[Path]:
    """Tracked and new Python files of these rooms, or of the whole repository; without git, all that lie there."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.py"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    else:
        there = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
        names = [str(path) for path in there if not path.parts[0].startswith((".", "build", "output"))]
    paths = [Path(name) for name in names if (ROOT / name).is_file()]
    return [path for path in paths if not rooms or path.parts[0] in rooms]


def _tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def _imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_import_directions(room):
    paths = _sources(room)
    assert paths
    ours = {*ROOMS, "train", "predict", "parse_test_res"}
    for path in paths:
        allowed = MAY_IMPORT[room] | MAY_ALSO_IMPORT.get(str(path), set())
        foreign = (_imported(_tree(path)) & ours) - allowed - {room}
        assert not foreign, f"{path} imports {foreign}"


def test_drawing_is_a_leaf():
    for path in _sources("synthetic"):
        if "clip" in _imported(_tree(path)):
            assert path.name in ("pretrain.py", "zeroshot.py"), f"{path} imports clip"


def test_of_datasets_only_the_check_tokenizes():
    assert [path.name for path in _sources("datasets") if "clip" in _imported(_tree(path))] == ["check.py"]


def _is_entry_point(path: Path, tree: ast.Module) -> bool:
    has_main = any(isinstance(n, ast.If) and "__main__" in ast.dump(n.test) for n in tree.body)
    return has_main or path.name == "__main__.py" or str(path) in ENTRY_POINTS


def test_no_print_outside_entry_points():
    for path in _sources(*ROOMS):
        tree = _tree(path)
        if not _is_entry_point(path, tree):
            calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]
            assert not calls, f"{path}:{calls[0].lineno} prints; use logging"


def test_every_room_is_in_the_package():
    there = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {
        "apexvl",
        "benchmarks",
        "dassl",
        "docs",
        "tests",
    }
    assert there == set(apexvl.names.ROOMS), "the rooms that setup.py puts into the package, in apexvl/names.py"


def test_no_bare_except():
    for path in _sources():
        bare = [n for n in ast.walk(_tree(path)) if isinstance(n, ast.ExceptHandler) and n.type is None]
        assert not bare, f"{path}:{bare[0].lineno} has a bare except"


@pytest.mark.parametrize("room", ["adaptation", "clip", "dassl", "trainers"])
def test_formats_and_devices_are_named_in_one_place(room):
    for path in _sources(room):
        if str(path) in NAMES_FORMATS:
            continue
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "torch":
                assert node.attr not in FORMAT_NAMES, f"{path}:{node.lineno} names torch.{node.attr}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in ("cuda", "half"), f"{path}:{node.lineno} calls .{node.func.attr}()"
            if isinstance(node, ast.Constant):
                assert node.value not in ("cuda", "cpu"), f"{path}:{node.lineno} names the device {node.value!r}"


def test_functions_are_short():
    lengths = {}
    for path in _sources(*ROOMS, "train.py"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lengths[f"{path}:{node.name}"] = node.end_lineno - node.lineno + 1
    long = {name: length for name, length in lengths.items() if length > 40}
    assert len(long) <= len(lengths) / 10, long


def _config():
    assert trainers
    return declared_cfg()


@pytest.mark.parametrize(
    "path",
    sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.name != RULES),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_yaml_merges(path):
    cfg = _config()
    merge_file(cfg, path)
    if path.parent.name == "datasets":
        assert cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
    else:
        head = path.read_text().split("\n\n")[0]
        assert head.startswith("#"), "a configuration opens with what it is"
        assert f"configs/trainers/{path.parent.name}/{path.name}" in head, "the head comment gives the command"
        assert "xpected" in head or "No published number" in head or "extracting" in head, (
            "the head says what to expect"
        )


def test_configurations_leave_to_the_backbone_how_images_are_read():
    keys = {"SIZE", "INTERPOLATION", "RESIZE_MODE", "FILL_COLOR", "PIXEL_MEAN", "PIXEL_STD"}
    for path in (ROOT / "configs").rglob("*.yaml"):
        given = yaml.safe_load(path.read_text()).get("INPUT", {}).keys() & keys
        assert not given, f"{path} gives {given}, which are filled from the backbone"


def test_every_trainer_has_a_configuration_of_its_kind():
    names = set(TRAINER_REGISTRY.registered_names())
    said = set()
    for path in (ROOT / "configs" / "trainers").rglob("*.yaml"):
        words = path.read_text().split()
        said |= {words[i + 1] for i, word in enumerate(words) if word == "--trainer"}
    assert said <= names, f"configurations name trainers that do not exist: {said - names}"


# how a package is called in requirements.txt, where it is not imported under that name
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "open_clip": "open_clip_torch"}
OPTIONAL = {"transformers": "some text towers of open_clip", "pandas": "data frames of results"}


def test_every_package_is_required():
    lines = (ROOT / "requirements.txt").read_text().lower().splitlines()
    required = {re.split("[<>=~! ]", line)[0] for line in lines if line and not line.startswith("#")}
    ours = {*ROOMS, "train", "predict", "parse_test_res"}
    for path in _sources(*ROOMS, "train.py", "predict.py"):
        foreign = _imported(_tree(path)) - ours - sys.stdlib_module_names - set(OPTIONAL)
        missing = {name for name in foreign if PACKAGES.get(name, name).lower() not in required}
        assert not missing, f"{path} imports {missing}, which requirements.txt does not have"
