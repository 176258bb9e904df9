"""A finished run is complete only while its images, its split and the checkpoint that it evaluates are the same."""

import json
import shutil
from pathlib import Path

import pytest

import train
from protocols.base2new import plan as base2new
from sweep.plan import SweepConfig
from sweep.state import AnotherConfiguration, examine, redo


@pytest.fixture(scope="module")
def trained(tmp_path_factory, repo_root):
    """A training and its evaluation on new classes, carried out."""
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo_root)
        opts = ("OPTIM.MAX_EPOCH", "1")
        config = SweepConfig(str(folder / "data"), str(folder / "out"), 1, (1,), opts=opts)
        runs = base2new(config, ["CoOp"], ["drawn_thermal"])
        for run in runs:
            train.run(train.build_parser().parse_args(list(run.argv)))
    return folder


@pytest.fixture
def runs(trained, tmp_path, repo_root, monkeypatch):
    """The same runs in a copy that a test may change."""
    monkeypatch.chdir(repo_root)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("metrics.json"):
        path.write_text(path.read_text().replace(str(trained), str(tmp_path)))
    opts = ("OPTIM.MAX_EPOCH", "1")
    config = SweepConfig(str(tmp_path / "data"), str(tmp_path / "out"), 1, (1,), opts=opts)
    return base2new(config, ["CoOp"], ["drawn_thermal"])


def _pictures(tmp_path, part):
    return sorted((tmp_path / "data/drawn_thermal/images").rglob(f"{part}_*.png"))


def _note(run, **fields):
    path = Path(run.output_dir, "metrics.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_nothing_changed(runs):
    assert examine(runs).complete == runs


def test_records_say_which_checkpoint_they_evaluate(runs):
    first, second = (json.loads(Path(run.output_dir, "metrics.json").read_text())["checkpoint"] for run in runs)
    assert first == second
    assert list(first["files"]) == ["prompt_learner/model.pth.tar-1"]
    assert {key: first[key] for key in ("dataset", "seed", "shots", "subsample_classes")} == {
        "dataset": "DrawnThermal",
        "seed": 1,
        "shots": 1,
        "subsample_classes": "base",
    }


@pytest.mark.parametrize(("part", "said"), [("test", "test images: "), ("train", "train images: ")])
def test_pictures_that_were_exchanged_are_noticed(runs, tmp_path, part, said):
    pictures = _pictures(tmp_path, part)
    contents = [picture.read_bytes() for picture in pictures]
    for picture, content in zip(pictures, [*contents[1:], contents[0]], strict=True):
        picture.write_bytes(content)
    with pytest.raises(AnotherConfiguration, match=said):
        examine(runs)
    assert redo(runs) == runs
    assert examine(runs).todo == runs


def test_another_split_is_noticed(runs, tmp_path):
    path = tmp_path / "data/drawn_thermal/split.json"
    split = json.loads(path.read_text())
    split["test"] = split["test"][:-1]
    path.write_text(json.dumps(split))
    with pytest.raises(AnotherConfiguration, match="full split: "):
        examine(runs)


def test_data_that_are_not_there_are_not_compared(runs, tmp_path):
    shutil.rmtree(tmp_path / "data")
    assert examine(runs).complete == runs
    assert not (tmp_path / "data").exists()


def test_an_evaluation_is_of_the_checkpoint_that_is_there_whatever_the_clocks_say(runs):
    base, new = runs
    _note(base, created="2099-01-01T00:00:00+00:00")
    assert examine(runs).complete == runs, "the clock was set back between them"
    record = json.loads(Path(base.output_dir, "metrics.json").read_text())["checkpoint"]
    _note(
        base, created="2001-01-01T00:00:00+00:00", checkpoint={**record, "files": dict.fromkeys(record["files"], "0")}
    )
    assert examine(runs).todo == [new], "it was trained again"


def test_old_records_are_compared_by_time(runs):
    for run in runs:
        _note(run, checkpoint=None)
    assert examine(runs).complete == runs
    _note(runs[0], created="2099-01-01T00:00:00+00:00")
    assert examine(runs).todo == [runs[1]]


def test_a_record_of_another_run_is_not_complete(runs):
    _note(runs[1], seed=2)
    with pytest.raises(AnotherConfiguration, match="seed 2 in the record, 1 by the directory"):
        examine(runs)
