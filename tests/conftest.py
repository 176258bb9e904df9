"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder of the golden vectors: $PARITY_DIR, else ../shared/parity beside the checkout."""
    folder = Path(os.environ.get("PARITY_DIR", ROOT.parent / "shared" / "parity"))
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no golden vectors in {folder} (set PARITY_DIR)")
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    """Results must not depend on the number of threads of the machine that runs the tests."""
    torch.set_num_threads(1)
