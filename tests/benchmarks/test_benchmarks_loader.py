"""The benchmark of the loaders measures what it says, on a few pictures."""

import json

import pytest

from benchmarks import loader
from dassl.data import image_store


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    """The pictures of the benchmark stay out of the store of the tests."""
    monkeypatch.setattr(image_store, "_store", None)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_benchmark(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loader, "WORKERS", (0, 1))
    monkeypatch.setattr("sys.argv", ["loader", "--images", "3", "--rounds", "2", "--output-dir", str(tmp_path)])
    loader.main()
    text = (tmp_path / "loader.md").read_text()
    assert capsys.readouterr().out.endswith(text)
    lines = text.splitlines()[4:]
    assert [line.split(" | ")[:3] for line in lines[:3]] == [
        ["| 32-pixel PNG", "training", "0"],
        ["| 32-pixel PNG", "training", "1"],
        ["| 32-pixel PNG", "evaluation", "0"],
    ]
    assert len(lines) == 8
    assert {line.count("|") for line in lines} == {11}
    assert all(float(cell.replace(",", "")) >= 0 for line in lines for cell in line.split("|")[4:11])
    record = json.loads((tmp_path / "loader.json").read_text())
    assert len(record["passes"]) == 16
    assert [len(variant["rounds"]) for variant in record["passes"]] == [2] * 16
    assert image_store._store.images == 6


def test_ratios_are_medians_within_a_round():
    slow = [loader.Pass(rate, 4.0) for rate in (1, 10, 100)]
    fast = [loader.Pass(rate, 1.0) for rate in (2, 30, 400)]
    passes = {loader.Variant("x", "training", 0, False): slow, loader.Variant("x", "training", 0, True): fast}
    assert loader.table(passes).splitlines()[-1] == "| x | training | 0 | 10 | 30 | 3.00 | 3.00 | 4.00 | 1.00 | 0.25 |"
