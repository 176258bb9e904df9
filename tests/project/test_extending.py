"""docs/EXTENDING.md, executed: its files are those of docs/extending, its commands run, its method conforms."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip.backbones
import datasets
import train
import trainers
from clip.loading import load_backbone
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "extending"
PAGE = (ROOT / "docs" / "EXTENDING.md").read_text()
COLOURS = {
    "blue tile": (20, 30, 220),
    "grn_tile": (20, 200, 30),
    "red tile": (210, 20, 20),
    "white tile": (250, 250, 250),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def example(monkeypatch, tmp_path):
    """The example's files where they would be after `cp -r docs/extending/* .`; forgotten when the test ends."""
    for registry in (TRAINER_REGISTRY, DATASET_REGISTRY):
        monkeypatch.setattr(registry, "_objects", dict(registry))
    for package, folder in ((trainers, "trainers"), (datasets, "datasets"), (clip.backbones, "clip/backbones")):
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(EXAMPLE / folder)])
    names = ("trainers.feature_gain", "datasets.tiles", "clip.backbones.patch_mean")
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    for name in names[:2]:  # what importing the packages does; a backbone is imported when it is asked for
        importlib.import_module(name)
    (tmp_path / "configs").symlink_to(EXAMPLE / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiles(tmp_path):
    """Pictures of one colour with noise, in one folder per class."""
    noise = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        folder = tmp_path / "DATA" / "tiles" / "images" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(np.array(colour) + noise.normal(0, 25, (32, 32, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def test_the_page_shows_the_files():
    shown = {}
    for block in (*blocks("python"), *blocks("yaml")):
        head, text = block.split("\n", 1)
        shown[head.removeprefix("# ")] = text
    there = [path for path in EXAMPLE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert shown == {str(path.relative_to(EXAMPLE)): path.read_text() for path in there}


def test_the_commands_run(example, tiles):
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("python train.py")]
    assert len(commands) == 3
    for command in commands:
        assert train.main(command[2:]) == 0
    trained, new, other = (
        json.loads((example / "output" / run / "metrics.json").read_text())
        for run in ("gain", "gain_new", "patch_mean")
    )
    assert [row["classname"] for row in trained["per_class"]] == ["blue tile", "green tile"]
    assert [row["classname"] for row in new["per_class"]] == ["red tile", "white tile"]
    assert trained["trainable_parameters"] == load_backbone("tiny-ViT").embed_dim
    assert trained["accuracy"] > 80
    assert trained["history"][-1]["distance"] > 0
    assert other["backbone"] == "patch_mean"


TOUCHED = {  # what of the page's files belongs to each kind: one file, and its configuration where it has one
    "method": {"trainers/feature_gain.py", "configs/trainers/FeatureGain/tiny_vit.yaml"},
    "data set": {"datasets/tiles.py", "configs/datasets/tiles.yaml"},
    "backbone": {"clip/backbones/patch_mean.py"},
    "protocol": {"protocols/base2all.py"},  # tests/protocols/test_protocols.py drops it in
}


def test_one_file_and_its_configuration_are_all_that_is_touched(tmp_path):
    """A copy of the repository in which nothing else changes: its own tests find method and backbone, and pass."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("no git, which knows the files of the repository")
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    added = [name.removeprefix("docs/extending/") for name in tracked if name.startswith("docs/extending/")]
    assert set(added) == set.union(*TOUCHED.values())
    assert not set(added) & set(tracked), "they are new: no file of the repository is edited"
    for source, name in [*((name, name) for name in tracked), *((f"docs/extending/{name}", name) for name in added)]:
        if (ROOT / source).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, tmp_path / name)
    lines = [shlex.split(line) for line in "".join(blocks("sh")).splitlines() if line.startswith("python -m pytest")]
    files, chosen = [words[3] for words in lines], " or ".join(words[5] for words in lines)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stdout
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed > 15, done.stdout
