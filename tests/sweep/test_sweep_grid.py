"""Sweeps over values of keys and several configurations, trainers that are left out, and what is checked first."""

import json
import re
import shutil
from pathlib import Path

import pytest
from dataset_trees import put_images
from results_trees import write_run

from results.audit import audit_records
from results.layout import RunDirectory, grid_level, grid_value, recognise
from results.rows import few_shot_rows
from results.settings import only_comparable
from results.tree import read_records
from sweep import cli, preflight
from sweep.cli import failures
from sweep.plan import Run
from sweep.slurm import arrays

FAST = ["OPTIM.MAX_EPOCH", "1", "DATALOADER.TEST.BATCH_SIZE", "512"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Sweeps are the same from a folder that is not the project's."""
    monkeypatch.chdir(tmp_path)


def _request(*words: str):
    args, opts = cli.parse(words)
    cli.complete_arguments(args)
    return cli.requested_runs(args, cli.make_config(args, opts))


def _places(*words: str) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((r.place.trainer, r.place.cfg, r.place.grid) for r in _request(*words).runs))


BASE = ["base2new", "--datasets", "drawn_easy", "--seeds", "1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (1, "1"), (1e-05, "1e-05"), (0.25, "0.25"), (True, "True"), ("ViT-B/16", "ViT-B-16"), ("", "none"),
     (("q", "v"), "q-v"), (["q", "v"], "q-v"), ("a photo of a #.", "a-photo-of-a-.")],
)  # fmt: skip
def test_values_in_directories(value, text):
    assert grid_value(value) == text
    level = grid_level({"OPTIM.LR": value, "TRAINER.APEX.BETA": value})
    for role in ("base", "new", "all", "transfer"):
        place = RunDirectory(role, "dtd", "CoOp", "vit", 16, 1, grid=level)
        assert place.path().startswith(f"{level}/")
        assert recognise(f"/somewhere/output/{place.path()}") == place
    zero = RunDirectory("zeroshot", "dtd", "ZeroshotCLIP", "vit", grid=level)
    assert recognise(f"/output/{zero.path()}") == zero
    assert recognise(f"/output/{level}/Guess/vit/dtd", learnless="Guess") == RunDirectory(
        "zeroshot", "dtd", "Guess", "vit", grid=level
    )


def test_long_values_stay_apart_and_short():
    one, two = (grid_value("a very long sentence about pictures " * 9 + end) for end in ("a", "b"))
    assert one != two
    assert max(len(one), len(two)) < 60


def test_folders_that_are_called_like_no_key_are_no_level():
    place = recognise("/home/me/lr=0.1/dtd/CoOp/vit_16shots/seed1")
    assert place.grid == ""
    assert place.dataset == "dtd"


def test_a_grid_is_the_product_of_its_axes_and_values_that_are_equal_are_one():
    words = [
        *BASE,
        "--trainers",
        "apex",
        "--grid",
        "TRAINER.APEX.BETA",
        "1",
        "1.0",
        "4",
        "--grid",
        "OPTIM.LR=0.1",
        "0.2",
    ]
    runs = _request(*words, "OPTIM.MAX_EPOCH=2").runs
    levels = list(dict.fromkeys(run.place.grid for run in runs))
    assert levels == [f"TRAINER.APEX.BETA={b},OPTIM.LR={lr}" for b in (1, 4) for lr in (0.1, 0.2)]
    assert len(runs) == 4 * 2
    for run in runs:
        assert dict(zip(run.argv[-6::2], run.argv[-5::2], strict=True)).keys() == {
            "OPTIM.MAX_EPOCH", "TRAINER.APEX.BETA", "OPTIM.LR",
        }  # fmt: skip
        assert run.place.grid in run.output_dir
        assert not run.needs or run.place.grid in run.needs, "an evaluation is of its own point's training"


def test_a_trainer_without_the_key_runs_once():
    request = _request(*BASE, "--trainers", "coop", "apex", "--grid", "TRAINER.APEX.BETA", "1", "2")
    assert {(run.place.trainer, run.place.grid) for run in request.runs} == {
        ("CoOp", ""), ("APEX", "TRAINER.APEX.BETA=1"), ("APEX", "TRAINER.APEX.BETA=2"),
    }  # fmt: skip
    assert request.remarks == ["CoOp: without the key TRAINER.APEX.BETA, so run once for all its values"]


def test_two_configurations_of_one_trainer_both_run():
    names = ["vit_b16_ep50", "vit_b16_ep100"]
    found = _places(*BASE, "--trainers", "coop", "apex", "--configs", *(f"CoOp={name}" for name in names))
    assert [cfg for trainer, cfg, _ in found if trainer == "CoOp"] == names
    assert len([cfg for trainer, cfg, _ in found if trainer == "APEX"]) == 1


def test_a_trainer_that_cannot_serve_is_left_out():
    request = _request(*BASE, "--trainers", "taskres", "CoOp")
    assert {run.place.trainer for run in request.runs} == {"CoOp"}
    assert list(request.left_out) == ["TaskRes"]
    assert "cannot be tested on new classes" in request.left_out["TaskRes"]
    request = _request(*BASE, "--trainers", "CoOp", "--grid", "TRAINER.COOP.CSC", "True", "False",
                       "--grid", "TRAINER.COOP.CTX_INIT", "None")  # fmt: skip
    assert {run.place.grid for run in request.runs} == {"TRAINER.COOP.CSC=False,TRAINER.COOP.CTX_INIT=none"}
    assert list(request.left_out) == ["CoOp (TRAINER.COOP.CSC=True,TRAINER.COOP.CTX_INIT=none, 16 shots)"]
    request = _request("zeroshot", "--datasets", "dtd", "--trainers", "CoOp", "zeroshotclip")
    assert list(request.left_out) == ["CoOp"]
    for alone in (["--trainers", "taskres"], ["--trainers", "taskres", "tipadapter"]):
        with pytest.raises(ValueError, match="cannot be tested on new classes"):
            _request(*BASE, *alone)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--grid", "OPTIM.LR"], "write the key and its values"),
        (["--grid", "SEED", "1", "2"], "its own SEED, which comes from --seeds"),
        (["--grid", "DATASET.NUM_SHOTS", "1"], "which comes from --shots"),
        (["--grid", "OPTIM.LR", "1", "--grid", "OPTIM.LR", "2"], "OPTIM.LR is given twice"),
        (["--grid", "OPTIM.LR", "1", "OPTIM.LR", "2"], "OPTIM.LR is given twice"),
        (["--grid", "OPTIM.RL", "1"], "OPTIM.LR"),
        (["--grid", "lr", "1"], "do you mean ['OPTIM.LR']"),
        (["--grid", "OPTIM.LR", "fast"], "OPTIM.LR"),
        (["--grid", "TRAINER.APEX.BETA", "1"], "none of the trainers (CoOp) has this key"),
        (["--grid", "TRAINER.COOP.N_CXT", "1"], "N_CTX"),
        (
            ["--lr", "0.1"],
            "there is no flag --lr: a setting is written as KEY VALUE behind all flags, here OPTIM.LR 0.1",
        ),
        (["--output-dir", "x"], "do you mean --output"),
        (["--backbone", "ViT-B/16", "MODEL.BACKBONE.NAME", "RN50"], "say the same"),
        (["SEED=3"], "comes from --seeds"),
        (["--dataset-folder", "nowhere"], "--dataset-folder nowhere: there is no such folder"),
        (["--configs", "CoOp=nothing"], "no configuration file"),
    ],
)
def test_mistakes_get_a_sentence_and_leave_nothing(tmp_path, capsys, words, expected):
    assert cli.main([*BASE, "--trainers", "coop", "--output", "out", "--root", "data", *words]) == 2
    assert expected in capsys.readouterr().err.replace('"', "")
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_for_all_runs():
    for run in _request(*BASE, "--trainers", "coop", "--backbone", "ViT-B/32", "OPTIM.LR=1").runs:
        assert run.argv[-4:] == ("MODEL.BACKBONE.NAME", "ViT-B/32", "OPTIM.LR", "1")


def _tree(output: Path, values=(1.0, 2.0), role="all") -> None:
    for value in values:
        for seed in (1, 2):
            place = RunDirectory(role, "dtd", "CoOp", "vit_b16", 16, seed, grid=grid_level({"OPTIM.LR": value}))
            write_run(output, place, 50 + 10 * value + seed)
            path = output / place.path() / "metrics.json"
            record = json.loads(path.read_text())
            record["config"] = {**record.get("config", {}), "OPTIM": {"LR": value}}
            path.write_text(json.dumps(record))


def test_results_know_the_level(tmp_path, capsys):
    from results.cli import main

    _tree(tmp_path / "out")
    assert main([str(tmp_path / "out"), "--table", "fewshot"]) == 0
    said = capsys.readouterr().out
    for value, mean in ((1, "61.50"), (2, "71.50")):
        assert re.search(rf"^dtd +CoOp \(OPTIM\.LR={value}\) +{mean}", said, re.M)
    records = only_comparable(read_records(tmp_path / "out"))
    assert not [record.problem for record in records if record.problem]
    assert not audit_records(records)


def test_points_of_a_grid_on_different_data_sets_are_not_one_row(tmp_path):
    for dataset, value in (("dtd", 1.0), ("eurosat", 2.0)):
        place = RunDirectory("all", dataset, "CoOp", "vit", 16, 1, grid=grid_level({"OPTIM.LR": value}))
        write_run(tmp_path, place, 50.0)
    assert list(few_shot_rows(read_records(tmp_path))) == ["CoOp (OPTIM.LR=1)", "CoOp (OPTIM.LR=2)"]


def test_a_run_of_another_value_is_found(tmp_path):
    _tree(tmp_path, values=(1.0,))
    shutil.move(tmp_path / "OPTIM.LR=1", tmp_path / "OPTIM.LR=2")
    problems = {record.problem for record in read_records(tmp_path)}
    assert len(problems) == 1
    assert "OPTIM.LR 1.0 in the record, 2 by the directory" in problems.pop()


def test_a_grid_on_a_cluster_is_pairs_of_its_own():
    request = _request(*BASE, "--trainers", "coop", "--grid", "OPTIM.LR", "0.1", "0.2")
    first, second = arrays([(run,) for run in request.runs])[0]
    assert [element[0][0].place.grid for element in first] == ["OPTIM.LR=0.1", "OPTIM.LR=0.2"]
    assert [element[0][0].place.grid for element in second] == ["OPTIM.LR=0.1", "OPTIM.LR=0.2"]


def test_a_grid_runs_resumes_and_shows_its_rows(drawn_root, tmp_path, capsys):
    line = ["fewshot", "--datasets", "Drawn_Easy", "--seeds", "1", "--shots", "2", "--trainers", "coop", "tipadapter"]
    line += ["--root", str(drawn_root), "--output", "out", "--jobs", "1", "--grid", "TRAINER.COOP.N_CTX", "2", "4"]
    line += ["--configs", "CoOp=tiny_vit_ep50_ctxv1"]
    opts = [*FAST, "TRAINER.COOP.CTX_INIT", "None"]
    assert cli.main([*line, "--dry-run", *opts]) == 0
    assert re.search(r"^3 runs to do \(3 trainings", capsys.readouterr().out, re.M)
    assert cli.main([*line, *opts]) == 0
    said = capsys.readouterr().out
    rows = [row.split()[1:3] for row in said.splitlines() if row.startswith("drawn_easy")]
    assert rows == [["CoOp", "(TRAINER.COOP.N_CTX=2)"], ["CoOp", "(TRAINER.COOP.N_CTX=4)"], ["TipAdapter", rows[2][1]]]
    again = [text.split() for text in said.partition("Each row again:")[2].splitlines() if "sweep" in text]
    assert again[0][again[0].index("--grid") :][:4] == ["--grid", "TRAINER.COOP.N_CTX", "2", "4"]
    assert "--grid" not in again[1], "the other trainer has no such key"
    for number in (2, 4):
        path = (
            tmp_path / f"out/TRAINER.COOP.N_CTX={number}/drawn_easy/CoOp/tiny_vit_ep50_ctxv1_2shots/seed1/metrics.json"
        )
        assert json.loads(path.read_text())["trainable_parameters"] == number * 128
    assert cli.main([*line, *opts]) == 0
    assert "3 runs complete, 0 to do" in capsys.readouterr().err


def test_what_is_left_out_is_in_table_and_status(drawn_root, capsys):
    line = [*BASE, "--trainers", "zeroshotclip", "taskres", "--root", str(drawn_root), "--output", "out", "--jobs", "1"]
    assert cli.main([*line, *FAST]) == 1
    said = capsys.readouterr()
    assert re.search(r"^drawn_easy +ZeroshotCLIP", said.out, re.M)
    assert "* left out: TaskRes: what TaskRes learns belongs to its classes" in said.out
    assert "left out: TaskRes: " in said.err


def test_pictures_in_class_folders_are_a_data_set(tmp_path, capsys):
    for name in ("boat", "horse"):
        put_images(tmp_path / "far" / "photos" / name, [f"{name}{number}.jpg" for number in range(8)])
    line = ["zeroshot", "--dataset-folder", "far/photos/", "--trainers", "zeroshotclip", "--backbone", "tiny-ViT"]
    line += ["--output", "out", "--jobs", "1"]
    assert cli.main(line) == 0
    said = capsys.readouterr().out
    assert re.search(r"^photos +ZeroshotCLIP +1 ", said, re.M)
    assert "--dataset-folder far/photos" in said
    assert cli.main(line) == 0
    assert "1 runs complete, 0 to do" in capsys.readouterr().err
    (tmp_path / "dtd").mkdir()
    assert cli.main([*line[:2], "dtd", *line[3:]]) == 2
    assert "rename the folder" in capsys.readouterr().err


def test_what_is_missing_is_said_once_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "weights"))
    monkeypatch.setattr("clip.weights._fetch", lambda url, part: (_ for _ in ()).throw(OSError("no route to host")))
    (tmp_path / "data").mkdir()
    line = ["base2new", "--trainers", "coop", "apex", "--seeds", "1-3", "--datasets", "dtd", "eurosat", "drawn_easy"]
    assert cli.main([*line, "--root", "data", "--output", "out"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "could not download" in line]) == 1
    assert len([line for line in said if "DescribableTextures: no image folder" in line]) == 1
    assert len([line for line in said if "EuroSAT: no image folder" in line]) == 1
    assert said[-1] == "sweep: nothing was started"
    assert not (tmp_path / "out").exists()


def test_class_lists_are_looked_at(eurosat_root, tmp_path):
    run = _request("fewshot", "--datasets", "eurosat", "--trainers", "coop", "--shots", "1", "--seeds", "1", "--root",
                   str(eurosat_root), "--backbone", "tiny-ViT").runs[0]  # fmt: skip
    assert preflight.missing([run]) == []
    shutil.copytree(eurosat_root, tmp_path / "copy")
    (tmp_path / "copy/eurosat/split_zhou_EuroSAT.json").write_text("{")
    there = Run(
        run.place, tuple(str(tmp_path / "copy") if word == str(eurosat_root) else word for word in run.argv), ""
    )
    assert "split_zhou_EuroSAT.json" in preflight.missing([there])[0]
    imagenet = tmp_path / "data/imagenet/images"
    (imagenet / "train/n01440764").mkdir(parents=True)
    run = _request("fewshot", "--datasets", "imagenet", "--trainers", "coop", "--shots", "1", "--seeds", "1", "--root",
                   str(tmp_path / "data"), "--backbone", "tiny-ViT").runs[0]  # fmt: skip
    assert "classnames.txt" in preflight.missing([run])[0]


def test_one_cause_is_one_line():
    runs = _request(*BASE, "--seeds", "1-2", "--trainers", "coop").runs
    reasons = {run: f"not tried: {run.needs} failed" if run.needs else "OSError: the disk is full" for run in runs}
    lines = failures(reasons)
    assert len(lines) == 2
    assert lines[0].endswith("seed1 and 1 more: OSError: the disk is full")
    assert lines[1].endswith("seed1 and 1 more: not tried: what they need failed")
