"""Runs are averaged, and held against published numbers, only where they were made with the same settings."""

import pytest
from results_trees import write_run

from results import cli
from results.layout import Place
from results.records import read_records
from results.report import page
from results.tables import base2new


def _config(lr=0.002, epochs=50, **more):
    """A part of a run's configuration, with keys that change nothing."""
    return {"SEED": 1, "OUTPUT_DIR": "a", "OPTIM": {"LR": lr, "MAX_EPOCH": epochs}, **more}


def _pair(root, seed, config, dataset="dtd", **fields):
    for role in ("base", "new"):
        write_run(root, Place(role, dataset, "CoOp", "c", 16, seed), 50.0 + seed, config=config, **fields)


def test_seeds_with_other_settings_are_not_averaged(tmp_path, capsys):
    _pair(tmp_path, 1, _config())
    _pair(tmp_path, 2, _config(lr=0.05, epochs=4))
    _pair(tmp_path, 1, _config(), "eurosat")
    records = read_records(tmp_path)
    rows = {row[0]: row for row in base2new(records).rows}
    assert rows["dtd"][2:6] == [0, None, None, None]
    assert rows["eurosat"][2] == 1
    assert cli.main([str(tmp_path), "--table", "base2new"]) == 1
    said = "dtd, CoOp, seeds 1-2, base classes: not averaged, for the runs differ in OPTIM.LR: 0.002 (seed 1), 0.05"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("key", ["recipe", "backbone_digest"])
def test_seeds_of_other_code_or_weights_are_not_averaged(tmp_path, key):
    _pair(tmp_path, 1, _config(), **{key: "1.1"})
    _pair(tmp_path, 2, _config(), **{key: "1.2"})
    assert base2new(read_records(tmp_path)).rows[0][2] == 0


def test_what_changes_nothing_and_what_one_lacks_may_differ(tmp_path):
    _pair(tmp_path, 1, _config())
    _pair(tmp_path, 2, _config(SEED=2, OUTPUT_DIR="b", VERBOSE=True, TRAINER={"NEWER": {"KEY": 1}}))
    assert base2new(read_records(tmp_path)).rows[0][2] == 2


def test_two_runs_of_one_seed_with_other_settings_are_not_averaged(tmp_path):
    _pair(tmp_path / "first", 1, _config())
    _pair(tmp_path / "second", 1, _config(lr=0.05))
    assert base2new(read_records(tmp_path)).rows[0][2] == 0
    assert base2new(read_records(tmp_path / "second")).rows[0][2] == 1


def test_the_report_says_in_what_runs_of_a_method_differ(tmp_path):
    _pair(tmp_path, 1, {**_config(), "DATASET": {"NAME": "A"}})
    _pair(tmp_path, 1, {**_config(epochs=4), "DATASET": {"NAME": "B"}}, "eurosat")
    text = page("Results", [], {}, read_records(tmp_path))
    assert "<li>OPTIM.MAX_EPOCH: 50 / 4</li>" in text
    assert "DATASET.NAME: A / B" not in text
