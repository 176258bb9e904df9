"""Sweeps: what is planned, what counts as complete, and real runs over worker processes."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from dassl.engine import TRAINER_REGISTRY
from dassl.utils.interruption import CONTINUE
from protocols.base2new import plan as base2new
from results.records import read_metrics
from results.seeds import parse_seeds
from sweep import cli
from sweep.method_configs import config_of
from sweep.packs import arguments, make_packs, packing
from sweep.plan import SweepConfig
from sweep.progress import Bar
from sweep.state import AnotherConfiguration, _weights_digest, begin, compare, examine, failed, redo, requested

FAST = ["OPTIM.MAX_EPOCH", "1"]


@pytest.fixture(autouse=True)
def _in_the_repository(repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)


def _setting(tmp_path, **changes) -> SweepConfig:
    values = {"root": str(tmp_path / "data"), "output": str(tmp_path / "out"), "shots": 16, "seeds": (1, 2)}
    return SweepConfig(**{**values, **changes})


def _words(tmp_path, trainers=("CoOp",), seeds="1", *more) -> list[str]:
    words = ["base2new", "--trainers", *trainers, "--datasets", "drawn_thermal", "--seeds", seeds, "--jobs", "1"]
    return [*words, "--root", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *more, *FAST]


def test_seeds():
    assert parse_seeds("1-3,7,5") == (1, 2, 3, 7, 5)
    for wrong in ("3-1", "a", "1-", "", "-2", "1-3,2"):
        with pytest.raises(ValueError, match="--seeds"):
            parse_seeds(wrong)


def test_configuration_keys_end_the_arguments():
    assert cli.split_opts(["base2new", "--seeds", "1", "OPTIM.LR", "0.1"]) == (
        ["base2new", "--seeds", "1"],
        ["OPTIM.LR", "0.1"],
    )
    assert cli.split_opts(["--root", "./data.v2", "--configs", "APEX=vit_b16"])[1] == []


@pytest.mark.parametrize("opts", [["USE_CUDA", "False"], ["OPTIM.LR", "1", "THEIRS.K", "3"], []])
@pytest.mark.parametrize(
    "words", [["--datasets", "BIRDS.yaml", "Cats.YML"], ["--root", "DATA.v2"], ["--seeds", "1"], ["--dry-run"]]
)
def test_keys_are_told_from_files_in_capitals(words, opts):
    assert cli.split_opts(["base2new", *words, *opts]) == (["base2new", *words], opts)
    assert cli.split_opts(["base2new", "--seeds", "1", "THEIRS.K", "3"])[1] == ["THEIRS.K", "3"]


@pytest.mark.parametrize("key", ["SEED", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "OUTPUT_DIR"])
def test_what_the_directories_say_is_not_overridden(key, capsys):
    assert cli.main(["base2new", "--trainers", "CoOp", "--datasets", "drawn_thermal", key, "2"]) == 2
    assert re.search(rf"{key}: each run of a sweep has its own, which comes from", capsys.readouterr().err)


def test_recipes_are_the_official_choices_and_exist(repo_root):
    assert config_of("APEX", "base2new", "dtd", 16) == "APEX/vit_b16_c2_ep15_batch16_2+2ctx"
    assert config_of("APEX", "base2new", "imagenet", 16) == "APEX/vit_b16_c2_ep5_batch16_2+2ctx_imagenet"
    assert config_of("ZeroshotCLIP", "base2new", "dtd", 16) == "CoOp/vit_b16"
    assert config_of("CoOp", "base2new", "drawn_thermal", 16) == "CoOp/tiny_vit_ep50_ctxv1"
    with pytest.raises(ValueError, match="--configs Nobody=NAME"):
        config_of("Nobody", "base2new", "dtd", 16)


def test_plan_evaluates_new_classes_after_training(tmp_path):
    runs = base2new(_setting(tmp_path), ["ZeroshotCLIP", "CoOp"], ["drawn_thermal"])
    assert len(runs) == 2 + 4
    zero, zero_new, train, test = runs[:4]
    assert not zero.needs
    assert not zero_new.needs
    assert "--eval-only" in zero.argv
    assert test.needs == train.output_dir
    assert test.argv[test.argv.index("--model-dir") + 1] == train.output_dir
    assert "--eval-only" not in train.argv
    assert train.output_dir.endswith("train_base/drawn_thermal/shots_16/CoOp/tiny_vit_ep50_ctxv1/seed1")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--trainers", "Coopp"], "CoOp"),
        (["--configs", "CoOp"], "TRAINER=NAME"),
        (["--configs", "CoOp=nothing"], "nothing"),
        (["--datasets", "nowhere"], "nowhere"),
        (["OPTIM.LRR", "1"], "OPTIM.LR"),
    ],
)
def test_mistakes_are_answered_before_anything_starts(tmp_path, capsys, words, named):
    base = ["base2new", "--trainers", "CoOp", "--datasets", "drawn_thermal", "--root", str(tmp_path)]
    assert cli.main([*base, "--output", str(tmp_path / "out"), *words]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_lines_of_train_py_and_counts(tmp_path, capsys):
    assert cli.main(_words(tmp_path, ("ZeroshotCLIP", "CoOp"), "1-3", "--dry-run")) == 0
    out = capsys.readouterr().out
    assert out.count("python train.py ") == 2 + 6
    assert "8 runs to do (3 trainings, 5 evaluations), 0 complete, 1 at a time" in out
    assert re.search(r"unknown until .*; predictions take up to \d+\.\d MB", out)
    assert not (tmp_path / "out").exists()


def _finish(run, created, **config):
    """Write what a run with this configuration would leave."""
    tree: dict = {}
    for key, value in {**requested(run.argv), **config}.items():
        *nodes, last = key.split(".")
        place = tree
        for node in nodes:
            place = place.setdefault(node, {})
        place[last] = value
    metrics = {
        "trainer": "CoOp",
        "dataset": "DrawnThermal",
        "seed": 1,
        "accuracy": 50.0,
        "created": created,
        "config": tree,
    }
    Path(run.output_dir).mkdir(parents=True, exist_ok=True)
    Path(run.output_dir, "metrics.json").write_text(json.dumps(metrics))


def _note(run, **fields):
    """Add fields to the metrics of a run."""
    path = Path(run.output_dir, "metrics.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_is_complete(tmp_path):
    train, test = base2new(_setting(tmp_path, seeds=(1,)), ["CoOp"], ["drawn_thermal"])
    assert examine([train, test]).todo == [train, test]
    _finish(train, "2026-01-02T00:00:00+00:00", **{"INPUT.SIZE": [32, 32], "TRAINER.OTHER.X": 3})
    assert examine([train, test]).complete == [train]
    _finish(test, "2026-01-01T00:00:00+00:00")
    assert examine([train, test]).todo == [test], "an evaluation older than its training is done again"
    _finish(test, "2026-01-03T00:00:00+00:00")
    assert examine([train, test]).todo == []
    other = base2new(_setting(tmp_path, seeds=(1,), opts=("OPTIM.LR", "0.5")), ["CoOp"], ["drawn_thermal"])
    with pytest.raises(AnotherConfiguration, match=r"OPTIM.LR: 0.02 there, 0.5 wanted"):
        examine(other)


def test_another_recipe_is_not_complete(tmp_path, monkeypatch):
    from trainers.coop import CoOp

    train, _ = base2new(_setting(tmp_path, seeds=(1,)), ["CoOp"], ["drawn_thermal"])
    _finish(train, "2026-01-02T00:00:00+00:00")
    _note(train, recipe="1.1")
    assert examine([train]).complete == [train]
    monkeypatch.setattr(CoOp, "code_version", 2)
    with pytest.raises(AnotherConfiguration, match=r"recipe: 1.1 there, 1.2 now"):
        examine([train])
    Path(train.output_dir, "metrics.json").unlink()
    begin(train)
    assert examine([train]).todo == [train], "it was begun by this recipe"
    monkeypatch.setattr("dassl.engine.record.CODE_VERSION", 2)
    with pytest.raises(AnotherConfiguration, match=r"recipe: 1.2 there, 2.2 now"):
        examine([train])
    assert redo([train]) == [train]
    assert examine([train]).todo == [train]


def test_other_weights_in_the_file_are_noticed(tmp_path, small_weights):
    from clip.loading import load_backbone

    weights = tmp_path / "weights.pt"
    shutil.copy(small_weights, weights)
    opts = ("MODEL.BACKBONE.NAME", str(weights))
    train, _ = base2new(_setting(tmp_path, seeds=(1,), opts=opts), ["CoOp"], ["drawn_thermal"])
    _finish(train, "2026-01-02T00:00:00+00:00")
    _note(train, backbone_digest=load_backbone(str(weights)).digest)
    assert examine([train]).complete == [train]
    _weights_digest.cache_clear()
    other = torch.load(weights, weights_only=True)
    other["logit_scale"] += 1
    torch.save(other, weights)
    with pytest.raises(AnotherConfiguration, match="digest of the weights"):
        examine([train])


def test_an_interrupted_run_of_other_settings_is_not_resumed(tmp_path):
    train, _ = base2new(_setting(tmp_path, seeds=(1,)), ["CoOp"], ["drawn_thermal"])
    begin(train)
    assert examine([train]).todo == [train]
    other, _ = base2new(_setting(tmp_path, seeds=(1,), opts=("OPTIM.LR", "0.5")), ["CoOp"], ["drawn_thermal"])
    with pytest.raises(AnotherConfiguration):
        examine([other])


def test_seed_is_part_of_the_comparison(tmp_path):
    one, _, two, _ = base2new(_setting(tmp_path), ["CoOp"], ["drawn_thermal"])
    assert compare(requested(one.argv), requested(two.argv)) == ["SEED: 2 there, 1 wanted"]


def test_starting_sets_an_earlier_log_and_failure_aside(tmp_path):
    run, _ = base2new(_setting(tmp_path, seeds=(1,)), ["CoOp"], ["drawn_thermal"])
    folder = Path(run.output_dir)
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("first")
    failed(run, "ValueError: x")
    begin(run)
    assert not (folder / "log.txt").exists()
    assert not (folder / "failed.json").exists()
    assert [path.read_text() for path in folder.glob("log.txt-*")] == ["first"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, repo_root):
    """A sweep of two methods over two workers: its folder, status and output."""
    folder = tmp_path_factory.mktemp("sweep")
    words = _words(folder, ("ZeroshotCLIP", "CoOp"), "1-2", "--jobs", "2")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(repo_root), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(words)
    return folder, words, subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def test_a_sweep_ends_with_the_table_and_its_commands(swept):
    folder, _, done = swept
    assert done.returncode == 0, done.stderr
    assert "6/6 runs" in done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("drawn_thermal  CoOp"))
    assert row.split()[2] == "2"
    assert done.stdout.count("python -m sweep base2new --trainers") == 2
    assert "=> result" not in done.stdout + done.stderr
    for path in (folder / "out").glob("base2new/*/*/*/*/*/*"):
        assert "=> result" in (path / "log.txt").read_text()


def test_predictions_are_kept_within_the_estimate(swept, capsys):
    """Its precedent without them, and for each run what its images and classes take at most."""
    folder, words, _ = swept
    files = list((folder / "out").rglob("predictions.npz"))
    assert len(files) == 6
    more = [*words[:-2], "--seeds", "1-3", "--dry-run", *FAST]
    assert cli.main(more) == 0
    (megabytes,) = re.findall(r"finished runs below .*; predictions take up to (\d+\.\d) MB", capsys.readouterr().out)
    assert max(file.stat().st_size for file in files) * 2 < float(megabytes) * 1e6 + 5e4
    assert cli.main([*more, "TEST.KEEP_PREDICTIONS", "False"]) == 0
    assert "predictions take" not in capsys.readouterr().out


def test_the_same_line_again_runs_nothing(swept, capsys):
    _, words, done = swept
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert "6 runs complete, 0 to do" in captured.err
    assert captured.out.split("Each row")[0] == done.stdout.split("Each row")[0]


def test_interrupt_leaves_a_state_that_the_same_line_continues(swept, tmp_path, capsys, monkeypatch):
    folder, _, done = swept
    words = _words(tmp_path, ("ZeroshotCLIP", "CoOp"), "1-2", "--root", str(folder / "data"))

    def interrupt(bar, run, message):
        if message.kind == "done":  # other runs have not begun
            os.kill(os.getpid(), signal.SIGINT)

    # a shell that starts the tests in the background has them ignore interrupts
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(Bar, "__call__", interrupt)
        assert cli.main(words) == CONTINUE
    signal.signal(signal.SIGINT, heeded)
    assert "sweep: ended by SIGINT; the same command line goes on from where" in capsys.readouterr().err
    assert cli.main(words) == 0
    again = capsys.readouterr()
    assert "0 runs complete" not in again.err
    assert again.out.split("Each row")[0] == done.stdout.split("Each row")[0]
    # One at a time and interrupted, or two at a time: the same numbers to the last digit.
    results = sorted((tmp_path / "out").rglob("metrics.json"))
    assert len(results) == 6
    for path in results:
        mine, other = read_metrics(path), read_metrics(folder / "out" / path.relative_to(tmp_path / "out"))
        assert mine["history"] == other["history"]
        assert mine["per_class"] == other["per_class"]


def test_seeds_in_one_process(swept, tmp_path, capsys):
    folder, *_ = swept
    words = _words(tmp_path, ("CoOp",), "1-2", "--root", str(folder / "data"), "--stack", "2")
    broken = tmp_path / "out/base2new/train_base/drawn_thermal/shots_16/CoOp/tiny_vit_ep50_ctxv1/seed2/prompt_learner"
    broken.parent.mkdir(parents=True)
    broken.write_text("a file where the folder of checkpoints should be")
    assert cli.main([*words[:-2], "--dry-run", *FAST]) == 0
    said = capsys.readouterr().out
    assert "--seeds 1-2 " in said
    assert said.count("python train.py") == 1 + 2
    assert "2 trainings in 1 process of 2 seeds" in said

    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert re.search(r"seed2: \w+Error", said)
    assert "not tried" in said
    broken.unlink()
    assert cli.main(words) == 0  # goes on with the seed that failed
    table = capsys.readouterr().out
    results = sorted((tmp_path / "out").rglob("metrics.json"))
    assert [read_metrics(path)["seed"] for path in results] == [1, 2, 1, 2]
    for path in results:
        mine, other = read_metrics(path), read_metrics(folder / "out" / path.relative_to(tmp_path / "out"))
        assert mine["accuracy"] == pytest.approx(other["accuracy"], abs=0.5)
        assert mine["config_hash"] == other["config_hash"]
        losses = [[row["loss"] for row in metrics["history"]] for metrics in (mine, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    row = next(line for line in table.splitlines() if line.startswith("drawn_thermal"))
    assert row.split()[1:3] == ["CoOp", "2"]
    both = _words(tmp_path / "b", ("CoOp",), "1-2", "--root", str(folder / "data"), "--stack", "2")
    assert cli.main(both) == 0
    trained = sorted((tmp_path / "b" / "out").rglob("train_base/**/metrics.json"))
    assert [read_metrics(path)["runs_in_process"] for path in trained] == [2, 2]


def test_packs(tmp_path):
    runs = base2new(_setting(tmp_path, seeds=(1, 2, 3, 4, 5)), ["CoOp"], ["drawn_thermal", "drawn_easy"])
    sizes = {most: sorted(len(pack) for pack in make_packs(runs, most))[10:] for most in (1, 3, 5, 20)}
    assert sizes == {1: [1] * 10, 3: [2, 2, 3, 3], 5: [5, 5], 20: [5, 5]}
    packs = make_packs(runs, 3)
    assert sorted(run.output_dir for pack in packs for run in pack) == sorted(run.output_dir for run in runs)
    first = packs[0]
    assert len({run.place.dataset for run in first}) == 1
    argv = arguments(first)
    assert argv[argv.index("--seeds") + 1] == "1-3"
    assert argv[argv.index("--output-dir") + 1] + "/seed2" == first[1].output_dir
    assert "--seed" not in argv
    for name in ("--seed", "--output-dir"):
        assert name in arguments((runs[0],))
    assert packing([(runs[0],)]) == []


def test_trainers_that_do_not_say_that_they_can_be_stacked_run_alone(tmp_path, monkeypatch):
    runs = base2new(_setting(tmp_path), ["CoOp", "KgCoOp"], ["drawn_thermal"])
    monkeypatch.setattr(TRAINER_REGISTRY.get("CoOp"), "supports_stacking", False)
    packs = make_packs(runs, 2)
    assert max(len(pack) for pack in packs if pack[0].place.trainer == "CoOp") == 1
    assert max(len(pack) for pack in packs if pack[0].place.trainer == "KgCoOp") == 2
    assert "seed by seed: CoOp" in packing(packs)[1]


@pytest.mark.parametrize("where", [["--gpus", "0,1"], ["--launcher", "slurm", "--gpus-per-job", "1"], ["--jobs", "1"]])
def test_seeds_are_trained_one_by_one_unless_asked(tmp_path, monkeypatch, capsys, where):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    words = ["base2new", "--trainers", "CoOp", "--datasets", "digits", "--seeds", "1-4", "--dry-run", *where]
    words += ["--output", str(tmp_path)]
    for more, trainings in ((["--stack", "4"], 1), ([], 4)):
        assert cli.main([*words, *more]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python train.py")]
        assert sum("--eval-only" not in line for line in lines) == trainings


def test_a_stack_of_none_is_refused(tmp_path, capsys):
    assert cli.main(_words(tmp_path, ("CoOp",), "1", "--stack", "0")) == 2
    assert "--stack 0" in capsys.readouterr().err
