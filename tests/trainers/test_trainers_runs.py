"""Whole runs of the methods that do more than plain steps: averages, combined gradients, steps per shot, caches."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from parity import make_trainer, trainer_config
from small_methods import BASE, draw, small_vit

import train
from dassl.utils.digests import with_digest
from trainers.prograd import without_conflict
from trainers.promptsrc import epoch_weights
from trainers.two_sfs import two_cosines

ROOT = Path(__file__).resolve().parents[2]
SGD = {"NAME": "sgd", "LR": 0.1, "MOMENTUM": 0.0, "WEIGHT_DECAY": 0.0}


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def batches(backbone, count=2):
    return [{"img": draw(backbone, seed=seed), "label": torch.arange(4) % 3} for seed in range(count)]


def trainer_for(name, backbone, folder, keys=None, optim=None, **dataset):
    cfg = trainer_config(name, {**SGD, **(optim or {})}, {"PREC": "fp32", **(keys or {})}, folder)
    cfg.TRAIN.CHECKPOINT_FREQ = 1
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return make_trainer(cfg, backbone, BASE, batches(backbone))


def cut_after(folder: Path, epoch: int, to: Path) -> None:
    """The output of a run as if it had been stopped after this epoch."""
    shutil.copytree(folder, to)
    for checkpoints in {path.parent for path in to.rglob("model.pth.tar-*")}:
        (checkpoints / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")


def test_the_gradient_scaler_goes_on_where_it_was(backbone, tmp_path):
    """Its scale follows from the steps so far: half of it after an overflow, twice as much after many without one."""

    def scaled(folder):
        trainer = trainer_for("CoOp", backbone, tmp_path / folder, {"N_CTX": 2}, {"MAX_EPOCH": 3})
        trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
        return trainer

    whole = scaled("whole")
    whole.train()
    kept = torch.load(tmp_path / "whole/prompt_learner/model.pth.tar-2", weights_only=True)["progress"]["scaler"]
    assert (kept["scale"], kept["_growth_tracker"]) == (128.0, 1)  # four steps of two epochs
    cut_after(tmp_path / "whole", 2, tmp_path / "cut")
    resumed = scaled("cut")
    resumed.train()
    assert resumed.precision.scaler.state_dict() == whole.precision.scaler.state_dict()
    assert whole.precision.scaler.get_scale() == 256.0


@pytest.mark.parametrize("how", ["diverged", "flipped"])
def test_what_a_diverged_or_damaged_run_learned_is_not_evaluated(backbone, tmp_path, how):
    trainer = trainer_for("CoOp", backbone, tmp_path / "run", {"N_CTX": 2}, {"MAX_EPOCH": 1})
    trainer.train()
    path = tmp_path / "run/prompt_learner/model.pth.tar-1"
    checkpoint = torch.load(path, weights_only=True)
    learned = next(iter(checkpoint["state_dict"].values()))
    learned[0, 0] = float("inf") if how == "diverged" else 0.5
    torch.save(with_digest(checkpoint) if how == "diverged" else checkpoint, path)
    said = "is of a run that diverged: " if how == "diverged" else "the digest is another one's"
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        trainer.load_model(str(tmp_path / "run"))
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_promptsrc_deploys_the_average(backbone, tmp_path):
    keys = {"N_CTX_TEXT": 2, "GPA_MEAN": 2.0, "GPA_STD": 1.5}
    trainer = trainer_for("PromptSRC", backbone, tmp_path / "whole", keys, {"MAX_EPOCH": 3, "LR": 0.01})
    seen, run_epoch = [], trainer.run_epoch

    def recorded():
        run_epoch()
        seen.append({name: value.clone() for name, value in trainer.model.state_dict().items()})

    trainer.run_epoch = recorded
    trainer.train()
    weights = [math.exp(-((e - 2) ** 2) / (2 * 1.5**2)) for e in (1, 2, 3)]
    weights = [weight / sum(weights) for weight in weights]
    assert epoch_weights(3, 2, 1.5).tolist() == pytest.approx(weights)
    saved = torch.load(tmp_path / "whole/VLPromptLearner/model.pth.tar-3", weights_only=True)
    for name, value in trainer.model.state_dict().items():
        expected = sum(weight * state[name] for weight, state in zip(weights, seen, strict=True))
        torch.testing.assert_close(value, expected)
        assert torch.equal(saved["state_dict"][name], value)
        assert not torch.equal(seen[-1][name], value)

    cut_after(tmp_path / "whole", 2, tmp_path / "cut")  # the average so far is part of the checkpoint
    resumed = trainer_for("PromptSRC", backbone, tmp_path / "cut", keys, {"MAX_EPOCH": 3, "LR": 0.01})
    resumed.train()
    assert len(resumed.rows) == 2
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)


@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_prograd_takes_the_combined_gradient(backbone, tmp_path, strength):
    trainer = trainer_for("ProGrad", backbone, tmp_path, {"LAMBDA": strength}, {"MAX_EPOCH": 1})
    method = trainer.model.train()
    start, image = method.context.vectors.detach().clone(), draw(backbone, count=1)

    def gradients(label):
        losses = method.loss(image, torch.tensor([label]))[0]
        return [torch.autograd.grad(loss, method.context.vectors, retain_graph=True)[0] for loss in losses]

    label = min(range(3), key=lambda y: torch.mul(*gradients(y)).sum())  # the one that zero-shot CLIP is most against
    (g_xe, g_kl), (xe, kl) = gradients(label), method.loss(image, torch.tensor([label]))[0]
    trainer.train_loader_x = [{"img": image, "label": torch.tensor([label])}]
    assert (g_xe * g_kl).sum() < 0
    trainer.train()
    torch.testing.assert_close(method.context.vectors.detach(), start - 0.1 * without_conflict(g_xe, g_kl, strength))
    assert trainer.history[0]["xe_loss"] == pytest.approx(xe.item())
    assert trainer.history[0]["kl_loss"] == pytest.approx(kl.item())


def test_prograd_without_reference_gradient(backbone, tmp_path):
    """Gradients of zero give a step of zero, and no NaN."""
    trainer = trainer_for("ProGrad", backbone, tmp_path, {}, {"MAX_EPOCH": 1})
    method = trainer.model.train()
    trainer.backward(method.loss(*(trainer.train_loader_x[0][key] for key in ("img", "label")))[0] * 0)
    assert torch.equal(method.context.vectors.grad, torch.zeros_like(method.context.vectors))


def test_clip_lora_steps_per_shot(backbone, tmp_path):
    settings = {"NAME": "adamw", "LR": 0.01, "LR_SCHEDULER": "cosine", "MAX_EPOCH": 50}
    trainer = trainer_for("CLIP_LoRA", backbone, tmp_path / "whole", {"N_ITERS": 5}, settings, NUM_SHOTS=1)
    assert trainer.max_epoch == 3
    trainer.train()
    expected = [1e-6 + (0.01 - 1e-6) * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]
    assert [row["lr"] for row in trainer.rows] == pytest.approx(expected)
    assert trainer.get_current_lr() == pytest.approx(1e-6)
    assert (tmp_path / "whole/clip_lora/model.pth.tar-3").is_file()

    cut_after(tmp_path / "whole", 1, tmp_path / "cut")
    torch.rand(7)  # what else draws random numbers does not matter
    resumed = trainer_for("CLIP_LoRA", backbone, tmp_path / "cut", {"N_ITERS": 5}, settings, NUM_SHOTS=1)
    resumed.train()
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in trainer.rows[2:]]
    with pytest.raises(ValueError, match=r"N_ITERS is 5 steps per shot.*NUM_SHOTS"):
        trainer_for("CLIP_LoRA", backbone, tmp_path / "none", {"N_ITERS": 5}, settings, NUM_SHOTS=-1)


def test_two_sfs_runs_by_steps(backbone, tmp_path):
    """Three of five steps for the norms, two for the rows; a run that was cut in either stage goes on exactly."""
    settings = {"NAME": "adamw", "LR": 0.01, "WEIGHT_DECAY": 0.1, "LR_SCHEDULER": "cosine"}
    keys = {"N_ITERS": 5, "FRACTION": 0.6, "LR_MIN": 1e-6}
    trainer = trainer_for("TwoSFS", backbone, tmp_path / "whole", keys, settings, NUM_SHOTS=1)
    trainer.train()
    grads = [{name for name, norm in row["grad_norm"].items() if norm > 0} for row in trainer.rows]
    assert all("rows" not in names and len(names) > 10 for names in grads[:3])
    assert grads[3] == grads[4] == {"rows"}
    norms = [row["param_norm"] for row in trainer.rows]
    assert all(norms[4][name] == norms[2][name] for name in norms[2] if name != "rows")  # no decay either
    expected = [0.01 * two_cosines(step, 3, 5, 1e-4) for step in range(5)]
    assert [row["lr"] for row in trainer.rows] == pytest.approx(expected)
    for epoch in (1, 2):
        cut_after(tmp_path / "whole", epoch, tmp_path / f"cut{epoch}")
        resumed = trainer_for("TwoSFS", backbone, tmp_path / f"cut{epoch}", keys, settings, NUM_SHOTS=1)
        resumed.train()
        assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in trainer.rows[2 * epoch :]]
        for name, value in trainer.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value)
    with pytest.raises(ValueError, match=r"TRAINER\.TWOSFS\.FRACTION is 2"):
        trainer_for("TwoSFS", backbone, tmp_path / "none", {"FRACTION": 2.0}, settings)


# Tip-Adapter on image files


@pytest.fixture
def call(small_weights, eurosat_root, tmp_path, capsys):
    """Run train.py in this process; returns exit status, stderr and metrics."""

    def run(trainer: str, out: str, *opts: str, model: str = "") -> tuple[int, str, dict]:
        argv = ["--root", str(eurosat_root), "--seed", "1", "--trainer", trainer, "--backbone", str(small_weights)]
        argv += ["--dataset-config-file", str(ROOT / "configs/datasets/eurosat.yaml")]
        argv += ["--output-dir", str(tmp_path / out)]
        argv += ["--eval-only", "--model-dir", str(tmp_path / model)] if model else []
        argv += ["DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "2"]
        argv += ["TRAINER.TIPADAPTER.PREC", "fp32", "TRAINER.TIPADAPTER.AUGMENT_EPOCHS", "2"]
        argv += ["INPUT.TRANSFORMS", "('random_resized_crop', 'random_flip', 'normalize')"]
        argv += ["DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base", *opts]
        status, path = train.main(argv), tmp_path / out / "metrics.json"
        return status, capsys.readouterr().err, json.loads(path.read_text()) if path.is_file() else {}

    return run


@pytest.mark.parametrize(("trainer", "learned"), [("TipAdapter", 0), ("TipAdapterF", 4 * 64)])
def test_tip_adapter_run(call, tmp_path, trainer, learned):
    status, said, metrics = call(trainer, "run")
    assert (status, said) == (0, "")
    assert metrics["trainable_parameters"] == learned
    assert metrics["tip_adapter"]["strengths"] == "searched on the validation images"
    epochs = 2 if learned else 1
    assert metrics["epoch"] == epochs
    state = torch.load(tmp_path / f"run/tip_adapter/model.pth.tar-{epochs}", weights_only=True)["state_dict"]
    assert state["cache_labels"].tolist() == [0, 0, 1, 1]
    # another number of training images does not matter to what was cached
    again = call(trainer, "again", "DATASET.NUM_SHOTS", "-1", model="run")[2]
    assert [again[key] for key in ("accuracy", "tip_adapter")] == [metrics[key] for key in ("accuracy", "tip_adapter")]
    status, said, _ = call(trainer, "new", "DATASET.SUBSAMPLE_CLASSES", "new", model="run")
    assert status == 2
    assert "belongs to its classes" in said
    if not learned:
        norms = state["adapter.weight"].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(4))
        call(trainer, "workers", "DATALOADER.NUM_WORKERS", "2")
        other = torch.load(tmp_path / "workers/tip_adapter/model.pth.tar-1", weights_only=True)["state_dict"]
        assert torch.equal(other["adapter.weight"], state["adapter.weight"])


def test_tip_adapter_goes_on_from_a_given_cache(call, tmp_path):
    """It is not filled again."""
    call("TipAdapterF", "run")
    path = tmp_path / "run/tip_adapter/model.pth.tar-2"
    more = ["MODEL.INIT_WEIGHTS", str(path), "OPTIM.LR", "0.0", "DATASET.NUM_SHOTS", "1"]
    assert call("TipAdapterF", "again", *more)[0] == 0
    first, again = (
        torch.load(p, weights_only=True)["state_dict"] for p in (path, tmp_path / "again/tip_adapter/model.pth.tar-2")
    )
    assert torch.equal(first["adapter.weight"], again["adapter.weight"])


def test_tip_adapter_never_searches_on_test_images(call, monkeypatch):
    from dassl.data.datasets import DATASET_REGISTRY

    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "val_is_test", True)
    status, _, metrics = call("TipAdapter", "run", "TRAINER.TIPADAPTER.ALPHA", "1.5")
    assert status == 0
    assert metrics["tip_adapter"] == {"alpha": 1.5, "beta": 1.0, "strengths": "initial"}
