"""The package `apexvl`: built, installed beside packages of others, used from an empty folder outside the checkout."""

import ast
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import apexvl
from adaptation import plugins
from apexvl.__main__ import COMMANDS, main
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLUGIN = ROOT / "docs/extending/trainers/feature_gain.py"
TINY = ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0"]


def _tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("no git, which knows the files of the repository")
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built of the source distribution, so that both are whole; without a network."""
    folder, tracked = tmp_path_factory.mktemp("wheel"), _tracked()
    for name in tracked:
        if not name.startswith("tests/"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    program = (
        "import os, shutil, sys, setuptools.build_meta as build\n"
        "source, built = sys.argv[1:]\n"  # the build changes the arguments
        "os.chdir(source)\n"
        "name = os.path.join(built, build.build_sdist(built))\n"
        "shutil.unpack_archive(name, built, filter='data')\n"
        "os.chdir(name.removesuffix('.tar.gz'))\n"
        "build.build_wheel(built)\n"
    )
    command = [sys.executable, "-c", program, str(folder / "source"), str(folder / "built")]
    (folder / "built").mkdir()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((folder / "built").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run a program where the wheel is installed, beside packages of others, in an empty folder elsewhere."""
    place = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(place / "site")]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    for name in ("clip", "datasets", "results", "trainers"):
        (place / "others" / name).mkdir(parents=True)
        (place / "others" / name / "__init__.py").write_text(f"owner = 'somebody else, {name}'\n")
    (place / "empty").mkdir()
    paths = os.pathsep.join([str(place / "site"), str(place / "others")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def run(*words: str, **more: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=place / "empty", capture_output=True, text=True, env={**environment, **more})
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run.place, run.command = place, str(place / "site/bin/apexvl")
    return run


def test_the_wheel_holds_two_packages_and_all_files_of_the_rooms(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"apexvl", "dassl"}
    rooms = (*apexvl.names.ROOMS, "configs")
    tracked = _tracked()
    for name in tracked:
        if name.split("/")[0] in rooms:
            assert f"apexvl/{name}" in names
        if name.startswith(("apexvl/", "dassl/")):
            assert name in names
    assert {"apexvl/programs/train.py", "apexvl/programs/predict.py", "apexvl/clip/checkpoints/tiny-ViT.pt"} < set(
        names
    )
    assert not [name for name in names if name.startswith("apexvl/benchmarks")]


def test_no_file_of_the_wheel_imports_a_room_from_the_top(wheel):
    moved = {*apexvl.names.ROOMS, *apexvl.names.SCRIPTS}
    archive = zipfile.ZipFile(wheel)
    for name in (name for name in archive.namelist() if name.endswith(".py")):
        text = archive.read(name).decode()
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {one.split(".")[0] for one in names} & moved, f"{name}:{node.lineno}"
        source = ROOT / name.removeprefix("apexvl/").removeprefix("programs/")
        source = source if source.is_file() and not name.startswith("apexvl/__") else ROOT / name
        assert text.count("\n") == source.read_text().count("\n"), "a traceback names the line of the repository"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import clip\n", "from apexvl import clip\n"),
        ("    import clip.model, os  # why\n", None),
        ("from clip import (\n    clip,  # why\n    model as m,\n)\nx = 1\n", None),
        ("import datasets.fewshot as f\n", "import apexvl.datasets.fewshot as f\n"),
        ("from .clip import x\nimport clipper\n", "from .clip import x\nimport clipper\n"),
        ("from predict import Predictor\n", "from apexvl.programs.predict import (Predictor)\n"),
        ('"""python -m datasets.check, `python train.py`"""\n', '"""apexvl check, `apexvl train`"""\n'),
        ("# python -m datasets.write_split_lists\n", "# python -m apexvl.datasets.write_split_lists\n"),
        ("é = 1; import clip; ü = 2\n", "é = 1; from apexvl import clip; ü = 2\n"),
    ],
)
def test_imports_bind_what_they_did(before, after, monkeypatch):
    monkeypatch.setattr("setuptools.setup", lambda **settings: None)
    relocated = runpy.run_path(str(ROOT / "setup.py"))["relocated"](before if before[0] != " " else "if 1:\n" + before)
    assert relocated == after or after is None
    names = {}
    if after is None:
        exec(relocated, names)
        import clip.model

        assert names.get("clip") in (clip, clip.clip)
        assert names.get("x") or names["os"] is os
        assert relocated.count("\n") == before.count("\n") + (before[0] == " ")


def test_train_predict_sweep_results_from_an_empty_folder(installed):
    empty = installed.place / "empty"
    sweep = ["sweep", "base2new", "--trainers", "CoOp", "--datasets", "drawn_easy", "--seeds", "1", "--root", "data"]
    said = installed(installed.command, *sweep, "--jobs", "1", "--shots", "1", "--output", "output", *TINY[2:])
    assert re.search(r"drawn_easy\s+CoOp\s+1\s+\d", said)
    assert "  apexvl sweep base2new --trainers CoOp" in said
    run = next(empty.glob("output/base2new/train_base/drawn_easy/shots_1/CoOp/*/seed1"))
    record = json.loads((run / "metrics.json").read_text())
    assert record["config"]["MODEL"]["BACKBONE"]["NAME"] == "tiny-ViT"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["commit"] or "0" * 40)
    picture = next((empty / "data/drawn_easy/images").rglob("*.png"))
    said = installed(installed.command, "predict", str(run), str(picture), "--format", "csv")
    assert said.splitlines()[0].split(",")[1:] == [row["classname"] for row in record["per_class"]]
    assert "drawn_easy" in installed(installed.command, "tables", "output", "--table", "base2new")
    assert sorted(path.name for path in empty.iterdir()) == ["data", "output"]


def test_packages_of_others_stay_and_methods_of_users_are_found(installed):
    program = f"""
import clip, datasets, results, sys, trainers
import apexvl
assert "torch" not in sys.modules
from apexvl.clip.backbone import Backbone
from apexvl.__main__ import main
words = ["train", "--trainer", "FeatureGain", "--root", "data", "--seed", "1", "--output-dir", "own", "--backbone"]
words += ["tiny-ViT", "--dataset-config-file", str(apexvl.names.ROOT / "apexvl/configs/datasets/drawn_easy.yaml")]
assert main(["--plugin", {str(PLUGIN)!r}, *words, *{TINY!r}]) == 0
assert [room.owner.split(", ")[1] for room in (clip, datasets, results, trainers)] == [
    "clip", "datasets", "results", "trainers"]
assert apexvl.Backbone is Backbone and Backbone.__module__ == "apexvl.clip.backbone"
own = sys.modules["apexvl_plugin_feature_gain"]
assert issubclass(own.FeatureGainMethod, apexvl.Method)
try:
    apexvl.as_top_level("clip")
    raise SystemExit("replaced a package of somebody else")
except ValueError as error:
    assert "others/clip" in str(error)
del sys.modules["clip"]
apexvl.as_top_level("clip")
import clip, clip.clip
assert clip.clip is sys.modules["apexvl.clip.clip"]
assert "tiny-ViT" in clip.available_models() and clip.tokenize(["a"]).shape == (1, 77)
"""
    installed("-c", program)
    assert (installed.place / "empty/own/metrics.json").is_file()
    assert (installed.place / "empty/own/feature_gain/checkpoint").is_file()


def test_in_the_checkout_the_package_has_the_same_objects(tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(ROOT / "apexvl").removesuffix("apexvl")!r})
import apexvl, apexvl.clip.backbone, apexvl.programs.predict, clip.backbone, predict
assert apexvl.clip.backbone is clip.backbone and apexvl.programs.predict is predict
assert clip.backbone.__spec__.name == "clip.backbone" and apexvl.Backbone is clip.backbone.Backbone
apexvl.as_top_level("clip")
for name in ("apexvl.clip.nothing", "apexvl.nothing", "apexvl.clip.backbones.nothing"):
    try:
        __import__(name)
        raise SystemExit(name)
    except ModuleNotFoundError as error:
        assert "nothing" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in apexvl.__all__:
        assert getattr(apexvl, name).__doc__, name
    assert set(apexvl.__all__) <= set(dir(apexvl))
    with pytest.raises(AttributeError, match="nothing"):
        apexvl.nothing  # noqa: B018
    with pytest.raises(ValueError, match="choose from"):
        apexvl.as_top_level("numpy")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name):
    module, _, function = COMMANDS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(sys, "argv", ["apexvl"])
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"apexvl {apexvl.__version__}\n"
    assert main(["predict", str(tmp_path), "gone.jpg"]) == 2
    assert "gone.jpg" in capsys.readouterr().err
    assert main(["--plugin", str(tmp_path / "gone.py"), "predict", "x", "y"]) == 2
    assert "gone.py: there is no such file" in capsys.readouterr().err


@pytest.fixture
def registries(monkeypatch):
    for registry in (TRAINER_REGISTRY, DATASET_REGISTRY):
        monkeypatch.setattr(registry, "_objects", dict(registry))
    monkeypatch.setattr(plugins, "LOADED", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os\nos.nothing\n", "cannot be imported, line 2: AttributeError"),
        ("x = 1\nif x\n", "cannot be imported, line 2: SyntaxError"),
        ("from clip.nowhere import x\n", "line 1: ModuleNotFoundError: No module named 'clip.nowhere'"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_named_with_its_line(registries, tmp_path, text, said):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(ValueError, match=said):
        apexvl.load_plugin(tmp_path / "own.py")
    (tmp_path / "own.txt").touch()
    with pytest.raises(ValueError, match="no Python file"):
        apexvl.load_plugin(tmp_path / "own.txt")


def test_plug_ins_of_the_environment_and_of_packages_register_once(registries, tmp_path, monkeypatch):
    (tmp_path / "apexvl_entry.py").write_text("loads = []\nloads.append(1)\n")
    (tmp_path / "entry-1.0.dist-info").mkdir()
    (tmp_path / "entry-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: entry\nVersion: 1.0\n")
    (tmp_path / "entry-1.0.dist-info/entry_points.txt").write_text("[apexvl.plugins]\nentry = apexvl_entry\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, os.pathsep.join([str(PLUGIN), str(PLUGIN)]))
    plugins.load_plugins()
    plugins.load_plugins()
    assert "FeatureGain" in TRAINER_REGISTRY.registered_names()
    assert set(plugins.LOADED) == {str(PLUGIN), "apexvl_entry"}
    assert apexvl.load_plugin(PLUGIN) is plugins.LOADED[str(PLUGIN)]


def test_what_the_package_requires_is_what_the_repository_requires():
    def names(lines):
        return {re.split("[<>=~! ]", line.lower())[0] for line in lines if line and not line.startswith("#")}

    project = SETTINGS["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["figures"], *extras["slurm"]]  # nothing here needs the others
    there = (ROOT / "requirements.txt").read_text().splitlines()
    assert names(asked) == names(there)
    floors = {line for line in there if ">=" in line}
    assert floors <= set(asked), "the same lowest versions"
