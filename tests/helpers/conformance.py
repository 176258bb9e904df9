"""What every registered method must do, without any of them being named: used on all trainers, and on new ones."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

import train
from adaptation.stacking import run_together
from adaptation.trainer import MethodTrainer
from dassl.engine import TRAINER_REGISTRY, build_trainer
from results.predictions import Predictions, read_predictions

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = "tiny-ViT"
SMALL = {
    "DATALOADER.NUM_WORKERS": "0",
    "DATALOADER.TRAIN_X.BATCH_SIZE": "2",
    "DATASET.NUM_SHOTS": "2",
    "DATASET.SUBSAMPLE_CLASSES": "base",
    "OPTIM.MAX_EPOCH": "1",
}


def kind(name: str) -> type:
    return TRAINER_REGISTRY.get(name)


def make(
    name: str, root: Path, out: Path, precision: str = "fp32", backbone: str = BACKBONE, seed: int = 1, **more: str
) -> MethodTrainer:
    """The trainer from its default configuration; two classes of two images make an epoch of two steps."""
    opts = {**SMALL, f"TRAINER.{kind(name).config_node}.PREC": precision, **more}
    argv = ["--root", str(root), "--seed", str(seed), "--trainer", name, "--backbone", backbone]
    argv += ["--output-dir", str(out)]
    argv += ["--dataset-config-file", str(ROOT / "configs/datasets/eurosat.yaml")]
    argv += [part for pair in opts.items() for part in pair]
    return build_trainer(train.build_config(train.build_parser().parse_args(argv)))


@torch.no_grad()
def logits(trainer: MethodTrainer) -> torch.Tensor:
    """What a trainer says of its test images."""
    trainer.set_model_mode("eval")
    return torch.cat([trainer.model_inference(trainer.parse_batch_test(batch)[0]) for batch in trainer.test_loader])


def check_run(trainer: MethodTrainer) -> dict:
    """Trains and tests; returns the metrics. Losses are finite, and only what the method owns was changed."""
    before = {key: value.clone() for key, value in trainer.backbone.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, before[key]) for key, value in trainer.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.backbone.parameters())
    assert all(math.isfinite(value) for row in trainer.history for value in row.values())
    metrics = json.loads((Path(trainer.output_dir) / "metrics.json").read_text())
    learned = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert metrics["trainable_parameters"] == sum(parameter.numel() for parameter in learned)
    assert 0 <= metrics["accuracy"] <= 100
    assert metrics["learns"] is bool(trainer.get_model_names())
    assert metrics["recipe"].endswith(f".{trainer.code_version}")
    assert all(torch.isfinite(parameter).all() for parameter in learned)
    assert all(parameter.dtype == torch.float32 for parameter in learned)
    check_predictions(trainer, metrics)
    return metrics


def check_predictions(trainer: MethodTrainer, metrics: dict) -> None:
    """The stored answers give every number of the metrics, by scikit-learn, and are those of the model."""
    answers = read_predictions(Path(trainer.output_dir) / "predictions.npz", metrics["predictions"]["digest"])
    right = accuracy_score(answers.labels, answers.predicted, normalize=False)
    assert metrics["accuracy"] == 100.0 * right / len(answers) == answers.accuracy
    present = np.unique(answers.labels)
    f1 = f1_score(answers.labels, answers.predicted, labels=present, average="macro", zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(100 * f1, rel=1e-12)
    of_class = [answers.select(answers.labels == row["label"]) for row in metrics["per_class"]]
    assert [row["total"] for row in metrics["per_class"]] == list(map(len, of_class))
    assert [row["correct"] for row in metrics["per_class"]] == [own.correct.sum() for own in of_class]
    assert list(answers.classnames) == trainer.model.classnames
    listed = [Path(trainer.cfg.DATASET.ROOT) / path for path in answers.paths]
    assert [str(path) for path in listed] == [item.impath for item in trainer.test_loader.dataset.data_source]
    check_class_features(trainer, answers)
    expected = logits(trainer).float().numpy()
    error = np.abs(answers.logits - expected)
    assert (error <= 5e-4 * (expected.max(axis=1, keepdims=True) - expected) + 1e-4).all()


@torch.no_grad()
def check_class_features(trainer: MethodTrainer, answers: Predictions) -> None:
    """The class features that the images were compared with are stored, if they are the same for every image."""
    trainer.set_model_mode("eval")
    with trainer.precision.autocast():
        text = trainer.model.encode(next(iter(trainer.test_loader))["img"])[1].float().numpy()
    of_each_image = text.ndim == 3
    by_a_head_too = hasattr(trainer.model, "host")  # DePT: its logits are not those of class features alone
    left_out = of_each_image or by_a_head_too
    assert (answers.text_features is None) == (answers.frozen_text_features is None) == left_out
    if not left_out:
        np.testing.assert_allclose(answers.text_features, text, rtol=2e-3, atol=2e-3)
        assert answers.frozen_text_features.shape == text.shape


def check_deterministic(trainer: MethodTrainer) -> None:
    """Evaluating twice says the same, and so does training twice from the same configuration."""
    first = logits(trainer)
    assert torch.isfinite(first).all()
    trainer.set_model_mode("train")  # forgets what evaluation kept
    torch.rand(3)
    assert torch.equal(logits(trainer), first)


def check_round_trip(trained: MethodTrainer, make_again, folder: str) -> None:
    """A new trainer that loads the checkpoint says the same, also after other classes were asked for."""
    again = make_again()
    again.load_model(folder)
    assert torch.equal(logits(again), logits(trained))


def check_other_classes(other: MethodTrainer, folder: str) -> None:
    """Another class list is evaluated, or refused with a sentence that says why; the trainer says which of the two."""
    if other.class_transfer(other.cfg) == "any":
        other.load_model(folder)
        other.test()
        check_predictions(other, json.loads((Path(other.output_dir) / "metrics.json").read_text()))
        assert logits(other).shape == (len(other.test_loader.dataset), other.num_classes)
        return
    with pytest.raises(ValueError, match=r"other classes.*belongs to its classes"):
        other.load_model(folder)


def check_resume(make_again) -> None:
    """A run that stops after its first epoch and goes on ends where one without a stop does."""
    opts = {"OPTIM.MAX_EPOCH": "2", "TRAIN.CHECKPOINT_FREQ": "1"}
    whole = make_again("whole", **opts)
    whole.train()
    if not whole.get_model_names():
        return
    cut = Path(whole.output_dir).with_name("cut")
    shutil.copytree(whole.output_dir, cut)
    (cut / whole.checkpoint_dir / "checkpoint").write_text("model.pth.tar-1\n")
    resumed = make_again("cut", **opts)
    resumed.train()
    assert [row["epoch"] for row in resumed.history] == [row["epoch"] for row in whole.history]
    assert torch.equal(logits(resumed), logits(whole))


def check_stacked(make_again) -> None:
    """Two seeds whose steps are computed together learn what they learn alone."""
    opts = {"OPTIM.NAME": "sgd", "OPTIM.LR": "0.01"}  # Adam makes steps of full size out of rounding errors
    alone = [make_again(f"alone{seed}", seed=seed, **opts) for seed in (1, 2)]
    together = [make_again(f"together{seed}", seed=seed, **opts) for seed in (1, 2)]
    for trainer in alone:
        trainer.train()
    failed = [result for result in run_together([trainer.train for trainer in together]) if result is not None]
    assert not failed
    for trainer in together:
        check_predictions(trainer, json.loads((Path(trainer.output_dir) / "metrics.json").read_text()))
    for one, stacked in zip(alone, together, strict=True):
        other = stacked.model.state_dict()
        for name, value in one.model.state_dict().items():
            atol = 2e-5 if stacked.cfg.TRAINER.NAME == "APLe" else 1e-6  # three updates a batch carry rounding on
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=atol)
