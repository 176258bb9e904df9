"""Trainer files of others, dropped into `trainers/`: trained and evaluated by this project's train.py, unmodified."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from thirdparty_code import FILES, drop_in

import train
import trainers
from clip import clip
from dassl.engine import TRAINER_REGISTRY

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load`")

ROOT = Path(__file__).resolve().parents[2]
EUROSAT = ROOT / "configs/datasets/eurosat.yaml"
LEARNED = {
    "LearnedContext": 4 * 64,
    "ConditionalContext": 4 * 64 + (64 * 4 + 4) + (4 * 64 + 64),
    "BothTowers": (2 + 2) * 64 + 2 * 64 + 2 * 64 + 2 * 64,  # 2 text blocks, 3 image blocks
    "ImageTower": 2 * 64,
    "CoupledTowers": 2 * 64 + 8 * 2 * 64 + 9 * (64 * 64 + 64),
}
NODE = "TRAINER.LEARNEDCONTEXT"  # its trainers declare no keys: what they read is given
GIVEN = [f"{NODE}.N_CTX", "4", f"{NODE}.CTX_INIT", "", f"{NODE}.PREC", "fp32"]
KEYS = {"LearnedContext": GIVEN, "ConditionalContext": GIVEN}


@pytest.fixture
def call(monkeypatch, small_weights, eurosat_root, tmp_path):
    """Run train.py in this process with the files dropped in."""
    drop_in(monkeypatch, FILES, "learned_context", "prompted_towers")
    monkeypatch.setitem(clip._MODELS, "small", str(small_weights))

    def run(name, *args, out="run", opts=()):
        argv = ["--root", str(eurosat_root), "--trainer", name, "--backbone", "small"]
        argv += [] if "--seeds" in args or "--seed" in args else ["--seed", "1"]
        argv += ["--dataset-config-file", str(EUROSAT), "--output-dir", str(tmp_path / out), *args]
        argv += ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "2", "OPTIM.NAME", "sgd"]
        argv += ["DATALOADER.TRAIN_X.BATCH_SIZE", "4", "DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base"]
        argv += KEYS.get(name, [f"TRAINER.{name.upper()}.PREC", "fp32"])
        status = train.main([*argv, *opts])
        path = tmp_path / out / "metrics.json"
        return status, json.loads(path.read_text()) if path.is_file() else None

    return run


@pytest.mark.parametrize("name", LEARNED)
def test_train_then_evaluate(call, name, tmp_path, capsys):
    status, trained = call(name)
    assert status == 0
    assert trained["trainable_parameters"] == LEARNED[name]
    assert [row["epoch"] for row in trained["history"]] == [1, 2]
    assert all(row["loss"] > 0 for row in trained["history"])
    load = ["--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "2"]
    status, again = call(name, *load, out="again")
    assert (status, again["accuracy"], again["macro_f1"]) == (0, trained["accuracy"], trained["macro_f1"])
    status, new = call(name, *load, out="new", opts=["DATASET.SUBSAMPLE_CLASSES", "new"])
    assert (status, new["num_classes"]) == (0, 1)
    capsys.readouterr()
    assert call(name, "--eval-only", "--model-dir", str(tmp_path / "nowhere"), out="none")[0] == 2
    assert "nowhere" in capsys.readouterr().err


def test_keys_come_from_a_yaml(call, tmp_path):
    path = tmp_path / "method.yaml"
    path.write_text("OPTIM: {LR: 0.01}\nTRAINER:\n  LEARNEDCONTEXT: {N_CTX: 16, CTX_INIT: a photo of a, PREC: fp32}\n")
    status, metrics = call("LearnedContext", "--config-file", str(path), opts=[f"{NODE}.CTX_INIT", "a photo"])
    assert (status, metrics["trainable_parameters"]) == (0, 2 * 64)
    assert metrics["config"]["TRAINER"]["LEARNEDCONTEXT"]["CTX_INIT"] == "a photo"


@pytest.mark.parametrize("given", [{}, {"INTERPOLATION": "bilinear", "PIXEL_MEAN": [0.485, 0.456, 0.406]}])
def test_images_are_read_as_the_backbone_of_that_name_asks(call, monkeypatch, eurosat_root, tmp_path, given):
    """With a configuration of this project, which does not say how; a value that is given stays."""
    their_coop = type("CoOp", (TRAINER_REGISTRY.get("LearnedContext"),), {})
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "CoOp", their_coop)
    argv = ["--root", str(eurosat_root), "--seed", "1", "--trainer", "CoOp", "--dataset-config-file", str(EUROSAT)]
    argv += ["--config-file", str(ROOT / "configs/trainers/CoOp/tiny_vit_ep50_ctxv1.yaml"), "--output-dir"]
    argv += [str(tmp_path / "out"), "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2", *GIVEN, f"{NODE}.N_CTX", "3"]
    argv += [word for key, value in given.items() for word in (f"INPUT.{key}", str(value))]
    assert train.main(argv) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["trainable_parameters"] == 3 * 128, "the context of the dropped-in trainer"
    openai = {"SIZE": [32, 32], "INTERPOLATION": "bicubic"}
    openai |= {"PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073], "PIXEL_STD": [0.26862954, 0.26130258, 0.27577711]}
    assert {key: metrics["config"]["INPUT"][key] for key in openai} == openai | given


def test_keys_of_extend_cfg_are_strict(call, capsys):
    assert call("BothTowers", opts=["TRAINER.BOTHTOWERS.N_CTX_TXT", "4"])[0] == 2
    assert "N_CTX_TEXT" in capsys.readouterr().err


def test_several_seeds_are_each_as_alone(call, tmp_path):
    call("BothTowers", "--seeds", "1,2", out="both")
    rows = [json.loads((tmp_path / "both" / f"seed{seed}" / "metrics.json").read_text())["history"] for seed in (1, 2)]
    _, alone = call("BothTowers", out="alone")
    assert rows[0] == alone["history"] != rows[1]


def test_amp_trains_without_a_gpu(call):
    """`torch.cuda.amp` is what this family uses; without a GPU it warns and does nothing."""
    with pytest.warns((FutureWarning, UserWarning)):
        status, metrics = call("LearnedContext", opts=[f"{NODE}.PREC", "amp"])
    assert (status, len(metrics["history"])) == (0, 2)


def test_no_own_trainer_is_left_out():
    assert trainers.LEFT_OUT == {}


# A checkout with files dropped in

THEIRS = """
from dassl.engine import TRAINER_REGISTRY

from .prompted_towers import BothTowers, extend_cfg


@TRAINER_REGISTRY.register()
class IVLP(BothTowers):
    def check_cfg(self, cfg):
        print("their own IVLP")
"""


def test_in_a_checkout(tmp_path, eurosat_root):
    """A dropped-in trainer takes the name of one that is here; a file that cannot be imported hurts no other."""
    for room in ("adaptation", "clip", "commands", "dassl", "datasets", "synthetic", "trainers"):
        shutil.copytree(ROOT / room, tmp_path / "repo" / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path / "repo")
    for path in FILES.glob("*.py"):
        shutil.copy(path, tmp_path / "repo" / "trainers")
    (tmp_path / "repo" / "trainers" / "a_their_ivlp.py").write_text(THEIRS)
    (tmp_path / "repo" / "trainers" / "broken.py").write_text("import nothing_of_this_name\n")
    argv = ["train.py", "--root", str(eurosat_root), "--seed", "1", "--trainer", "IVLP", "--backbone", "tiny-ViT"]
    argv += ["--dataset-config-file", str(EUROSAT), "--output-dir", str(tmp_path / "out")]
    argv += ["OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2", "TRAINER.BOTHTOWERS.PREC", "fp32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, *argv], cwd=tmp_path / "repo", capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "their own IVLP" in done.stdout
    assert "that of trainers.a_their_ivlp replaces that of trainers.ivlp" in done.stdout
    assert "trainers/broken.py is left out: ModuleNotFoundError: No module named 'nothing_of_this_name'" in done.stderr
    state = torch.load(tmp_path / "out" / "VLPromptLearner" / "model.pth.tar-1", weights_only=True)["state_dict"]
    assert "image_encoder.VPT" in state
