"""A whole repository of others, with its own `clip`, `trainers`, `datasets`, `train.py`, on this project's `dassl`."""

import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dataset_trees import oxford_pets

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = Path(__file__).parent / "repo"
COMMON = ["--seed", "1", "--dataset-config-file", "configs/datasets/oxford_pets.yaml"]
COMMON += ["--config-file", "configs/trainers/Words/small_ep3.yaml"]
KEYS = ["TRAINER.WORDS.PREC", "fp32", "TRAINER.WORDS.N_CTX", "2"]
LINES = r"""Setting fixed seed: 1
\*\* Arguments \*\*
\*\* Config \*\*
\*\* System info \*\*
Loading trainer: CoOp
Loading dataset: OxfordPets
Splitting trainval into 80% train and 20% val
Creating a 4-shot dataset
Saving preprocessed few-shot data to .*shot_4-seed_1\.pkl
SUBSAMPLE BASE CLASSES!
Loading CLIP \(backbone: Small\)
Loading evaluator: Classification
No checkpoint found, train from scratch
Initialize tensorboard \(log_dir=.*tensorboard\)
epoch \[1/3\] batch \[1/1\] time \S+ \(\S+\) data \S+ \(\S+\) loss \S+ \(\S+\) acc \S+ \(\S+\) lr 5.0000e-02 eta \S+
epoch \[3/3\] batch \[1/1\] .*
Checkpoint saved to .*prompt_learner/model\.pth\.tar-3
Finish training
Finished training
Deploy the last-epoch model
Evaluate on the \*test\* set
=> result
\* total: \d+
\* correct: \d+
\* accuracy: \d+\.\d\d%
\* error: \d+\.\d\d%
\* macro_f1: \d+\.\d\d%
Elapsed: \d:\d\d:\d\d""".splitlines()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The repository, a data root, and a folder that holds `dassl` alone."""
    folder = tmp_path_factory.mktemp("thirdparty")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY, folder / "repo", ignore=ignore)
    shutil.copytree(ROOT / "dassl", folder / "only" / "dassl", ignore=ignore)
    oxford_pets(folder / "data")
    return folder


def run(place, out, *args, trainer="CoOp"):
    """`cd repo && PYTHONPATH=only python train.py ...`; returns what it wrote to standard output."""
    environment = {**os.environ, "PYTHONPATH": str(place / "only"), "SMALL_CLIP": str(place), "OMP_NUM_THREADS": "1"}
    argv = ["--root", str(place / "data"), "--output-dir", str(place / out), "--trainer", trainer, *COMMON, *args]
    command = [sys.executable, "-W", "error::UserWarning", "train.py", *argv, "DATASET.NUM_SHOTS", "4"]
    done = subprocess.run(command, cwd=place / "repo", capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(place):
    """What training on the base classes wrote to standard output."""
    return run(place, "base", "DATASET.SUBSAMPLE_CLASSES", "base", *KEYS)


def test_the_log_has_the_familys_lines(place, trained):
    lines = iter(trained.splitlines())
    for pattern in LINES:
        assert any(re.fullmatch(pattern, line) for line in lines), f"no line {pattern!r}, or not in its place"
    log = (place / "base" / "log.txt").read_text()
    assert log in trained
    assert "Setting fixed seed" not in log  # it comes before the log is opened
    tail = log.splitlines()[-5:]
    assert sum("accuracy" in line for line in tail) == sum("macro_f1" in line for line in tail) == 1


def test_the_output_tree(place, trained):
    folder = place / "base"
    assert (folder / "prompt_learner" / "checkpoint").read_text().strip() == "model.pth.tar-3"
    checkpoint = torch.load(folder / "prompt_learner" / "model.pth.tar-3", weights_only=True)
    assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= checkpoint.keys()
    assert (checkpoint["epoch"], checkpoint["val_result"]) == (3, None)
    assert set(checkpoint["state_dict"]) == {"ctx", "token_prefix", "token_suffix"}
    assert checkpoint["state_dict"]["ctx"].abs().sum() > 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"* accuracy: {metrics['accuracy']:.2f}%" in trained
    assert (metrics["trainer"], metrics["trainable_parameters"], len(metrics["history"])) == ("CoOp", 2 * 24, 3)
    assert any(path.name.startswith("events.out") for path in (folder / "tensorboard").iterdir())


def test_the_draw_is_the_familys(place, trained):
    """Nothing draws from `random` between the seeding and the data set."""
    random.seed(1)
    by_label = {}
    for line in (place / "data" / "oxford_pets" / "annotations" / "trainval.txt").read_text().splitlines():
        by_label.setdefault(int(line.split()[1]) - 1, []).append(line.split()[0])
    train = {}
    for label, names in by_label.items():
        random.shuffle(names)
        train[label] = names[round(len(names) * 0.2) :]
    expected = {label: random.sample(names, 4) if len(names) >= 4 else names for label, names in train.items()}
    with open(place / "data" / "oxford_pets" / "split_fewshot" / "shot_4-seed_1.pkl", "rb") as file:
        drawn = pickle.load(file)["train"]
    found = {}
    for item in drawn:
        found.setdefault(item._label, []).append(Path(item._impath).stem)
    assert found == expected


def test_evaluation_on_other_classes(place, trained):
    load = ["--eval-only", "--model-dir", str(place / "base"), "--load-epoch", "3", "DATASET.SUBSAMPLE_CLASSES", "new"]
    said = run(place, "new", *load, *KEYS)
    assert 'Loading weights to prompt_learner from "' in said
    assert "(epoch = 3)" in said
    assert "Loading preprocessed few-shot data from" in said
    assert re.search(r"\* accuracy: \d+\.\d\d%", (place / "new" / "log.txt").read_text().splitlines()[-3])
    run(place, "new", "--eval-only", trainer="ZeroshotCLIP")  # registers no model; the folder has a log already
    assert len(list((place / "new").glob("log.txt*"))) == 2
