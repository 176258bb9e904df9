"""docs/METHODS.md against the code: every trainer is in it, its files, sizes and configurations are as it says."""

import re
from pathlib import Path

import pytest

import trainers
from adaptation.trainer import MethodTrainer
from dassl.engine import TRAINER_REGISTRY

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/METHODS.md").read_text().splitlines()
    if line.startswith("| ") and "`" in line
]


def test_every_trainer_is_in_the_table():
    assert trainers
    named = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[0])}
    assert named == {name for name, cls in TRAINER_REGISTRY if issubclass(cls, MethodTrainer)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_row(row):
    _, _, file, lines, *_, configurations = row
    path = ROOT / file.strip("`")
    sources = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    count = sum(len(source.read_text().splitlines()) for source in sources)
    assert count == pytest.approx(int(lines), rel=0.1), f"{file} has {count} lines"
    for pattern in re.findall(r"`([^`]+)`", configurations):
        assert list((ROOT / "configs" / "trainers").glob(f"{pattern.removesuffix('.yaml')}.yaml")), pattern
