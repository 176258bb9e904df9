"""Training and evaluating from Python (`apexvl.train`, `evaluate`, `compare`): results, rows, mistakes."""

import json
import sys
from pathlib import Path

import pytest

import apexvl
from adaptation import plugins
from dassl.engine import TRAINER_REGISTRY
from results.tree import read_records

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"OPTIM.MAX_EPOCH": 1, "DATALOADER.NUM_WORKERS": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def settings(place, monkeypatch):
    """What all calls here share; the current folder is empty."""
    (place / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(place / "here")
    return {"root": place / "data", "output": place / "output", "opts": SHORT}


def _train(settings, trainer="CoOp", classes="base", **more):
    return apexvl.train(trainer, "drawn_easy", 1, 2, classes, **{**settings, **more})


def test_a_result_is_what_the_run_wrote(settings, capsys):
    result = _train(settings, "coop")
    assert capsys.readouterr().out == ""
    assert result.folder.parts[-7:-2] == ("base2new", "train_base", "drawn_easy", "shots_2", "CoOp")
    stored = json.loads((result.folder / "metrics.json").read_text())
    assert (result.trainer, result.dataset, result.classes) == ("CoOp", "DrawnEasy", "base")
    assert (result.seed, result.shots, result.backbone) == (1, 2, "tiny-ViT")
    assert result.accuracy == stored["accuracy"]
    assert result.per_class == {row["classname"]: row["accuracy"] for row in stored["per_class"]}
    assert result.history[0]["loss"] == stored["history"][0]["loss"]
    assert result.config["OPTIM"]["MAX_EPOCH"] == 1
    assert result.metrics == {name: value for name, value in stored.items() if value is not None}
    assert len(result.predictions().labels) == stored["num_test"]
    assert apexvl.read_result(result.folder) == result


def test_what_is_complete_is_read_and_other_settings_are_refused(settings):
    before = _train(settings)
    assert _train(settings).metrics["created"] == before.metrics["created"]
    other = {**settings, "opts": {**SHORT, "OPTIM.LR": 0.5}}
    with pytest.raises(ValueError, match=r"OPTIM\.LR"):
        _train(other)
    output = {"output": settings["output"].with_name("redone")}
    first = _train({**settings, **output})
    again = _train({**other, **output}, redo=True)
    assert again.config["OPTIM"]["LR"] == 0.5
    assert first.folder == again.folder


def test_evaluations_on_new_classes_all_and_another_set(settings):
    trained = _train(settings)
    new = apexvl.evaluate(trained, "new", root=settings["root"])
    assert new.classes == "new"
    assert not set(new.per_class) & set(trained.per_class)
    assert new.folder.parts[-6:-4] == ("test_new", "drawn_easy")
    records = {record.place.role: record for record in read_records(settings["output"])}
    assert {name: record.problem for name, record in records.items()} == {"base": "", "new": ""}
    again = apexvl.evaluate(str(trained.folder), root=settings["root"])
    assert again.accuracy == trained.accuracy
    assert again.folder == trained.folder / "evaluations" / "DrawnEasy_base"
    other = apexvl.evaluate(trained, dataset="drawn_thermal", root=settings["root"])
    assert (other.dataset, other.classes, other.shots) == ("DrawnThermal", "all", 2)
    assert len(other.per_class) == 20


def test_methods_side_by_side_as_rows(settings):
    shared = {key: value for key, value in settings.items() if key != "output"}
    results = apexvl.compare(["ZeroshotCLIP", "CoOp"], ["drawn_easy"], (1, 2), 2, "base", **settings)
    assert shared
    named = [(result.trainer, result.seed, result.classes) for result in results]
    assert named == [(name, seed, part) for name, seeds in (("ZeroshotCLIP", (1,)), ("CoOp", (1, 2)))
                     for seed in seeds for part in ("base", "new")]  # fmt: skip
    table = apexvl.rows(results)
    assert all(set(table[0]) == set(row) for row in table)
    assert table[2]["accuracy"] == results[2].accuracy
    assert {Path(row["folder"]) for row in table} <= {one.folder for one in apexvl.read_results(settings["output"])}
    if "pandas" not in sys.modules:
        try:
            import pandas  # noqa: F401
        except ImportError:
            with pytest.raises(ImportError, match="pandas"):
                apexvl.data_frame(results)
            return
    assert list(apexvl.data_frame(results)["trainer"]) == [row["trainer"] for row in table]


def test_own_files_of_method_configuration_and_data_set(settings, monkeypatch, place):
    monkeypatch.setattr(TRAINER_REGISTRY, "_objects", dict(TRAINER_REGISTRY))
    monkeypatch.setattr(plugins, "LOADED", {})
    method = ROOT / "docs/extending/trainers/feature_gain.py"
    config = ROOT / "docs/extending/configs/trainers/FeatureGain/tiny_vit.yaml"
    (place / "my_set.yaml").write_text('DATASET:\n  NAME: "DrawnEasy"\n')
    result = apexvl.train(str(method), place / "my_set.yaml", shots=1, config=str(config), **settings)
    assert (result.trainer, result.classes) == ("FeatureGain", "all")
    assert result.folder.parts[-4:] == ("my_set", "FeatureGain", "tiny_vit_1shots", "seed1")
    assert result.metrics["trainable_parameters"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trainer": "CoOpp"}, "CoOp"),
        ({"dataset": "drawn_eazy"}, "drawn_easy"),
        ({"dataset": "gone.yaml"}, "gone.yaml"),
        ({"config": "gone.yaml"}, "gone.yaml"),
        ({"classes": "new"}, "evaluate"),
        ({"shots": 0}, "at least one image"),
        ({"trainer": "gone.py"}, "gone.py"),
        ({"opts": {"OPTIM.LRR": 1}}, r"OPTIM\.LR"),
    ],
)
def test_mistakes_are_sentences_and_leave_nothing(settings, change, said):
    wanted = {"trainer": "CoOp", "dataset": "drawn_easy", **settings, "output": "nowhere", **change}
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        apexvl.train(**wanted)
    assert not list(Path().iterdir())


def test_a_folder_without_a_result_is_named(settings, place):
    with pytest.raises(FileNotFoundError, match="holds no result"):
        apexvl.read_result(place)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        apexvl.evaluate(place / "here")
    with pytest.raises(ValueError, match="choose base, new or all"):
        apexvl.evaluate(_train(settings), "old", root=settings["root"])
