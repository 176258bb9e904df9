"""Base-to-new on the carried CLIP and a drawn data set, through train.py, as a user runs it."""

import json
from pathlib import Path

import pytest
import torch

import train
from adaptation.trainer import frozen_backbone
from clip.loading import load_backbone
from dassl.utils import stream_seed
from trainers.apex import APEXMethod

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/trainers/APEX/tiny_vit_c2_ep15_batch16_2+2ctx.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Trained on the base classes, evaluated again on them, and on the new ones."""
    folder = tmp_path_factory.mktemp("carried")
    argv = ["--root", str(folder / "data"), "--seed", "1", "--trainer", "APEX", "--config-file", str(CONFIG)]
    argv += ["--dataset-config-file", str(ROOT / "configs/datasets/drawn_chalk.yaml")]
    opts = ["DATASET.NUM_SHOTS", "16", "OPTIM.MAX_EPOCH", "5"]
    (folder / "data").mkdir()
    load = ["--eval-only", "--model-dir", str(folder / "train")]
    for name, subset, more in (("train", "base", []), ("again", "base", load), ("new", "new", load)):
        tail = ["--output-dir", str(folder / name), *more, *opts, "DATASET.SUBSAMPLE_CLASSES", subset]
        assert train.main([*argv, *tail]) == 0
    return folder


def _metrics(runs: Path, name: str) -> dict:
    return json.loads((runs / name / "metrics.json").read_text())


def test_the_loss_falls_and_base_classes_are_learned(runs):
    metrics = _metrics(runs, "train")
    losses = [epoch["loss"] for epoch in metrics["history"]]
    assert losses[-1] < 0.8 * losses[0]
    assert metrics["accuracy"] > 3 * 100 / metrics["num_classes"]


def test_evaluation_reproduces_what_training_reported(runs):
    trained, again = _metrics(runs, "train"), _metrics(runs, "again")
    for key in ("accuracy", "macro_f1", "per_class", "apex"):
        assert again[key] == trained[key]


def test_new_classes_are_other_classes_in_part_mixed_with_the_frozen_clip(runs):
    base, new = _metrics(runs, "train"), _metrics(runs, "new")
    assert not {row["classname"] for row in base["per_class"]} & {row["classname"] for row in new["per_class"]}
    assert base["apex"]["alpha"] == [1.0] * base["num_classes"]
    unseen = [a for a, d in zip(new["apex"]["alpha"], new["apex"]["d_nn"], strict=True) if d > 0.05]
    assert unseen
    assert max(unseen) < 1


def test_the_learned_parameters_alone_changed(runs):
    used = frozen_backbone("tiny-ViT", "", "fp32", torch.device("cpu")).model.state_dict()
    fresh = load_backbone("tiny-ViT").model.state_dict()
    assert all(torch.equal(used[key], fresh[key]) for key in fresh)
    checkpoint = torch.load(runs / "train" / "VLPromptLearner" / "model.pth.tar-5", weights_only=True)
    torch.manual_seed(stream_seed(1, "init"))
    start = APEXMethod(load_backbone("tiny-ViT"), checkpoint["classnames"]).state_dict()
    same = [key for key, value in start.items() if torch.equal(value, checkpoint["state_dict"][key])]
    assert same == ["prompt_learner.trained_tokenized_prompts"]
