"""Runs are averaged, and held against published numbers, only where they were made with the same settings."""

import json
from pathlib import Path

import pytest
from results_trees import write_run

import train
from dassl.engine.comparison import to_dict
from protocols.base2new import base2new
from protocols.fewshot import few_shot
from protocols.xd import transfer
from results import cli
from results.layout import RunDirectory
from results.published import departures
from results.report import page
from results.tree import read_records

ROOT = Path(__file__).resolve().parents[2]


def _config(lr=0.002, epochs=50, **more):
    """A part of a run's configuration, with keys that change nothing."""
    return {"SEED": 1, "OUTPUT_DIR": "a", "OPTIM": {"LR": lr, "MAX_EPOCH": epochs}, **more}


def _pair(root, seed, config, dataset="dtd", **fields):
    config = {**config, "SEED": seed}
    for role in ("base", "new"):
        write_run(root, RunDirectory(role, dataset, "CoOp", "c", 16, seed), 50.0 + seed, config=config, **fields)


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


@pytest.mark.parametrize("key", ["recipe", "backbone_digest", "backbone_architecture"])
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


def test_an_average_over_sets_with_other_settings_says_so(tmp_path):
    _pair(tmp_path, 1, {**_config(), "DATASET": {"NAME": "DescribableTextures"}})
    _pair(tmp_path, 1, {**_config(epochs=4), "DATASET": {"NAME": "EuroSAT"}}, "eurosat")
    said = "the data sets differ in OPTIM.MAX_EPOCH: 50 (dtd), 4 (eurosat)"
    table = base2new(read_records(tmp_path))
    assert f"average, CoOp: {said}" in table.notes
    assert not any("DATASET.NAME" in note for note in table.notes)
    for dataset, epochs in (("dtd", 50), ("eurosat", 4)):
        write_run(tmp_path, RunDirectory("all", dataset, "CoOp", "c", 1, 1), 50.0, config=_config(epochs=epochs))
        place = RunDirectory("transfer", dataset, "CoOp", "c", 16, 1)
        write_run(tmp_path, place, 50.0, config=_config(epochs=epochs))
    assert f"average, CoOp, 1 shot: {said}" in few_shot(read_records(tmp_path)).notes
    assert f"average, CoOp: {said}" in transfer(read_records(tmp_path)).notes


def test_the_report_says_in_what_runs_of_a_method_differ(tmp_path):
    _pair(tmp_path, 1, {**_config(), "DATASET": {"NAME": "DescribableTextures"}})
    _pair(tmp_path, 1, {**_config(epochs=4), "DATASET": {"NAME": "EuroSAT"}}, "eurosat")
    text = page("Results", [], {}, read_records(tmp_path))
    assert "<li>OPTIM.MAX_EPOCH: 50 / 4</li>" in text
    assert "DATASET.NAME: DescribableTextures / EuroSAT" not in text


def _shipped(file):
    """The configuration, as metrics.json holds it, of a run on base classes of DTD by a file of configs/trainers."""
    words = ["--trainer", "CoOp", "--dataset-config-file", str(ROOT / "configs/datasets/dtd.yaml")]
    words += ["--config-file", str(ROOT / f"configs/trainers/{file}.yaml"), "--seed", "1", "--output-dir", "x"]
    config = train.build_config(train.build_parser().parse_args([*words, "DATASET.SUBSAMPLE_CLASSES", "base"]))
    return json.loads(json.dumps(to_dict(config)))


def test_published_numbers_are_for_the_settings_of_the_shipped_file_alone(tmp_path):
    shipped = _shipped("CoOp/vit_b16_ep50_ctxv1")
    for name, epochs in (("as", 50), ("other", 2)):
        for role in ("base", "new"):
            dataset = {**shipped["DATASET"], "SUBSAMPLE_CLASSES": role, "NUM_SHOTS": 16}
            config = {**shipped, "DATASET": dataset, "OPTIM": {**shipped["OPTIM"], "MAX_EPOCH": epochs}}
            place = RunDirectory(role, "dtd", "CoOp", "vit_b16_ep50_ctxv1", 16, 1)
            write_run(tmp_path / name, place, 70.0, config=config)
    assert "published base" in base2new(read_records(tmp_path / "as")).columns
    table = base2new(read_records(tmp_path / "other"))
    assert "published base" not in table.columns
    assert any("dtd, CoOp: not held" in note and "OPTIM.MAX_EPOCH 50 -> 2" in note for note in table.notes)


def test_other_image_settings_than_the_backbone_s_are_said(tmp_path):
    config = _shipped("CoOp/vit_b16_ep50_ctxv1")
    config["INPUT"]["INTERPOLATION"] = "bilinear"  # a trainer of others takes what it is given
    write_run(tmp_path, RunDirectory("base", "dtd", "CoOp", "vit_b16_ep50_ctxv1", 16, 1), 70.0, config=config)
    assert departures(read_records(tmp_path)[0]) == ["INPUT.INTERPOLATION bicubic -> bilinear"]


def test_settings_of_learning_do_not_matter_to_zero_shot(tmp_path):
    config = _shipped("CoOp/vit_b16")
    place = RunDirectory("base", "dtd", "ZeroshotCLIP", "vit_b16", 16, 1)
    write_run(tmp_path, place, 1.0, learns=False, config={**config, "OPTIM": {"MAX_EPOCH": 2}})
    (record,) = read_records(tmp_path)
    assert departures(record) == []
    config["DATASET"]["TEMPLATE"] = "a drawing of {}"
    write_run(tmp_path, place, 1.0, learns=False, config=config)
    assert len(departures(read_records(tmp_path)[0])) == 1


def test_a_file_of_ones_own_is_not_held_against_published_numbers(tmp_path):
    for role in ("base", "new"):
        write_run(tmp_path, RunDirectory(role, "dtd", "CoOp", "mine", 16, 1), 70.0, config=_config())
    table = base2new(read_records(tmp_path))
    assert "published base" not in table.columns
    assert any("there is no file mine.yaml in configs/trainers" in note for note in table.notes)
