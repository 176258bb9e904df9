"""Fixtures that several test files share."""

import dataclasses
import logging
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="many more random cases where a test draws them")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


def _shared_folder(name: str, variable: str, file: str, what: str) -> Path:
    """A folder of $`variable`, else of ../shared; without `file` in it tests skip, or fail with REQUIRE_GOLDEN=1."""
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not (folder / file).is_file():
        missing = f"no {what} in {folder} (set {variable})"
        pytest.fail(missing) if os.environ.get("REQUIRE_GOLDEN") else pytest.skip(missing)
    return folder


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder of the golden vectors: $PARITY_DIR, else ../shared/parity beside the checkout."""
    return _shared_folder("parity", "PARITY_DIR", "manifest.json", "golden vectors")


@pytest.fixture(scope="session")
def real_dir() -> Path:
    """Folder of published splits, draws and text features: $REAL_DIR, else ../shared/real beside the checkout."""
    return _shared_folder("real", "REAL_DIR", "draws/draws.json.gz", "published splits and features")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Results must not depend on the number of threads of the machine that runs the tests."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_feature_cache(tmp_path_factory):
    """Features and hashes that runs keep go to folders of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURE_CACHE", str(tmp_path_factory.mktemp("features")))
        patch.setenv("FILE_HASHES", str(tmp_path_factory.mktemp("hashes") / "hashes.sqlite"))
        yield


@pytest.fixture
def heard(monkeypatch):
    """Messages reach pytest's capture even if an earlier run in this process sent them to standard output only."""
    for name in ("clip", "dassl", "datasets"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory) -> Path:
    """Weights file of a random CLIP: 32 pixels, 3 + 2 blocks of width 64."""
    from clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(64, 32, 3, 64, 8, 77, 49408, 64, 1, 2)
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def eurosat_root(tmp_path_factory) -> Path:
    """A root with a small EuroSAT in the real layout: 3 classes of 10 images."""
    from dataset_trees import eurosat

    root = tmp_path_factory.mktemp("data")
    eurosat(root)
    return root


@pytest.fixture(scope="module")
def drawn_root(tmp_path_factory):
    """A root whose drawn_easy has few pictures: a set that goes with the carried recipes."""
    import datasets  # noqa: F401 - registers what is in the folder
    from dassl.data.datasets import DATASET_REGISTRY
    from synthetic.sets import SETS

    few = dataclasses.replace(SETS["easy"], sizes=(4, 2, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DATASET_REGISTRY.get("DrawnEasy"), "drawn", few)
        yield tmp_path_factory.mktemp("drawn")
