"""The launcher's arguments: each thing once, files of one's own, and sentences for what cannot be."""

import shutil
from pathlib import Path
from threading import Event, Thread

import pytest

from adaptation.trainer import fill_input
from clip.loading import load_backbone
from dassl.config import get_cfg_default
from dassl.engine.comparison import FILLED, flatten, to_dict
from dassl.utils.locks import run_lock
from protocols.base2new import plan as base2new
from protocols.xd import plan as transfer
from sweep import cli
from sweep.method_configs import config_of
from sweep.plan import SweepConfig
from sweep.state import AnotherConfiguration, begin, compare, examine, failed, redo, requested
from sweep.worker import execute


@pytest.fixture(autouse=True)
def _in_the_repository(repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)


def _runs(*words: str):
    args = cli.build_parser().parse_args(list(words))
    cli.complete_arguments(args)
    return cli.plan(args, cli.make_config(args, []))


def test_what_is_named_twice_runs_once():
    words = ["--trainers", "zeroshotclip", "ZeroshotCLIP", "--datasets", "digits", "digits", "--shots", "1", "2", "1"]
    assert len(_runs("zeroshot", *words)) == 1
    words = ["--trainers", "coop", "--datasets", "digits", "--seeds", "1", "--shots", "1", "2", "1"]
    assert [run.place.shots for run in _runs("fewshot", *words)] == [1, 2]


def test_the_source_is_tested_by_its_training():
    setting = SweepConfig("data", "out", 16, (1,), source="drawn_easy")
    train, other = transfer(setting, ["CoOp"], ["drawn_easy", "digits"])
    assert (train.place.dataset, other.place.dataset) == ("drawn_easy", "digits")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--threads", "0"], "--threads 0: must be at least 1"),
        (["--jobs", "0"], "--jobs 0"),
        (["--per-gpu", "0"], "--per-gpu 0"),
        (["--shots", "4", "-3"], "--shots -3"),
        (["--gpus", "x"], "--gpus x: write numbers"),
        (["--gpus", "0", "--jobs", "2"], "--jobs 2 counts runs on CPUs"),
        (["--source", "digits"], "--source digits: base2new tests on what it trains on"),
        (["--variant", "csc"], "--variant csc"),
        (["--datasets", "nowhere.yaml"], "--datasets nowhere.yaml: there is no such file"),
        (["--datasets", "digitss"], "do you mean ['digits']"),
        (["--root", "nowhere", "--datasets", "dtd"], "--root nowhere: there is no such folder"),
        (["--output", "README.md/out"], "README.md/out"),
        (["TRAINER.COOP.CSC", "True", "TRAINER.COOP.CTX_INIT", ""], "belongs to its classes"),
        (["TRAINER.COOP.CSC", "True"], "what CoOp learns with these settings belongs to its classes"),
    ],
)
def test_mistakes_get_a_sentence(tmp_path, capsys, words, expected):
    base = ["base2new", "--trainers", "CoOp", "--datasets", "digits", "--seeds", "1", "--root", str(tmp_path / "data")]
    assert cli.main([*base, "--output", str(tmp_path / "out"), *words]) == 2
    assert expected in capsys.readouterr().err.replace('"', "")


def test_configurations_are_chosen_in_any_case():
    args = cli.build_parser().parse_args(["base2new", "--trainers", "coop", "--configs", "coop=tiny_other.yaml"])
    cli.complete_arguments(args)
    assert cli.make_config(args, []).configs == {"CoOp": "tiny_other"}


def test_a_data_set_of_ones_own(tmp_path, capsys):
    own = tmp_path / "my_digits.yaml"
    shutil.copy("configs/datasets/digits.yaml", own)
    words = ["zeroshot", "--trainers", "ZeroshotCLIP", "--configs", "ZeroshotCLIP=tiny_vit", "--jobs", "1"]
    words += ["--datasets", str(own), "--root", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    (tmp_path / "data").mkdir()
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "my_digits" in out.split("Each row again:")[0]
    assert f"--datasets {own}" in out
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="two of one name"):
        cli.own_files([str(own), str(shutil.copy(own, tmp_path / "b"))])


def test_the_only_file_of_an_own_trainer_is_its_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("commands.names.OWN", tmp_path / "configs")
    folder = Path("configs/trainers/Mine")
    folder.mkdir(parents=True)
    (folder / "tiny_vit.yaml").write_text("")
    assert config_of("Mine", "base2new", "my_birds", 16) == config_of("Mine", "all", "digits", 4) == "Mine/tiny_vit"
    (folder / "vit_b16.yaml").write_text("")
    with pytest.raises(ValueError, match="tiny_vit, vit_b16"):
        config_of("Mine", "base2new", "my_birds", 16)


def test_what_a_backbone_fills_in_makes_no_other_run(small_weights):
    cfg = get_cfg_default()
    filled = fill_input(cfg, load_backbone(str(small_weights)))
    changed = {f"INPUT.{key}" for key in cfg.INPUT if cfg.INPUT[key] != filled.INPUT[key]}
    assert {"INPUT.SIZE", "INPUT.PIXEL_MEAN", "INPUT.INTERPOLATION", "INPUT.TRANSFORMS"} <= changed <= set(FILLED)
    assert compare(flatten(to_dict(cfg)), flatten(to_dict(filled))) == []
    filled.defrost()
    filled.INPUT.CROP_PADDING = 7
    assert len(compare(flatten(to_dict(cfg)), flatten(to_dict(filled)))) == 1


def test_nothing_is_written_where_another_process_is_at_work(tmp_path, monkeypatch):
    run, _ = base2new(SweepConfig(str(tmp_path), str(tmp_path / "out"), 1, (1,)), ["CoOp"], ["digits"])

    ready, end = Event(), Event()

    def other():
        with run_lock(run.output_dir):
            ready.set()
            end.wait()

    thread = Thread(target=other)
    thread.start()
    ready.wait()
    try:
        assert execute(run).kind == "busy"
    finally:
        end.set()
        thread.join()
    assert [path.name for path in Path(run.output_dir).iterdir()] == [".lock"]


def test_what_another_process_has_completed_meanwhile_is_not_repeated(tmp_path, monkeypatch):
    run, _ = base2new(SweepConfig(str(tmp_path), str(tmp_path / "out"), 1, (1,)), ["CoOp"], ["digits"])
    monkeypatch.setattr("sweep.state.finished", lambda run: True)
    assert execute(run).kind == "done"
    assert [path.name for path in Path(run.output_dir).iterdir()] == [".lock"]


def test_what_cannot_be_written_is_said_and_does_not_end_the_sweep(tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    run, _ = base2new(SweepConfig(str(tmp_path), str(tmp_path / "out"), 1, (1,)), ["CoOp"], ["digits"])
    end = execute(run)
    assert end.kind == "failed"
    assert str(tmp_path / "out") in end.reason
    assert failed(run, "ValueError: no").startswith("ValueError: no (nor can that be written down: ")


def test_a_diverged_run_is_named_and_not_repeated_until_it_is_asked_for(tmp_path):
    train, test = base2new(SweepConfig(str(tmp_path), str(tmp_path / "out"), 1, (1,)), ["CoOp"], ["digits"])
    begin(train)
    failed(train, "FloatingPointError: Loss is infinite or NaN! (epoch 1, batch 2)", "diverged")
    progress = examine([train, test])
    assert (progress.complete, progress.todo) == ([], [])
    assert "Loss is infinite or NaN! (epoch 1, batch 2). It is not repeated" in progress.diverged[train]
    assert progress.diverged[test] == f"not tried: {train.output_dir} diverged"
    other = SweepConfig(str(tmp_path), str(tmp_path / "out"), 1, (1,), opts=("OPTIM.LR", "0.5"))
    with pytest.raises(AnotherConfiguration, match=r"OPTIM\.LR"):
        examine(base2new(other, ["CoOp"], ["digits"]))
    assert redo([train, test]) == [train]
    assert examine([train, test]).todo == [train, test]


def test_a_failed_run_is_tried_again(tmp_path):
    run, _ = base2new(SweepConfig(str(tmp_path), str(tmp_path / "out"), 1, (1,)), ["CoOp"], ["digits"])
    begin(run)
    failed(run, "ValueError: no")
    assert examine([run]).todo == [run]
    begin(run)
    assert not Path(run.output_dir, "failed.json").exists()


@pytest.mark.parametrize("name", ["metrics.json", "sweep.json"])
def test_a_damaged_file_is_named_and_redone(tmp_path, name):
    run, _ = base2new(SweepConfig(str(tmp_path), str(tmp_path / "out"), 1, (1,)), ["CoOp"], ["digits"])
    begin(run)
    path = Path(run.output_dir, name)
    path.write_text('{"config": {')
    with pytest.raises(AnotherConfiguration, match=rf"{path} is damaged .*--redo"):
        examine([run])
    assert redo([run]) == [run]
    assert examine([run]).todo == [run]
    assert requested(run.argv)["DATASET.NUM_SHOTS"] == 1
