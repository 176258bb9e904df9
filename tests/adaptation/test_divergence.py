"""A run that diverges says where; what it leaves is sound, and the same command gets there again."""

import re

import conformance
import pytest
import torch

import trainers  # noqa: F401 - registers what is in the folder
from adaptation.stacking import run_together
from dassl.utils.checkpoints import load_checkpoint

# the rate of the second epoch is absurd; an epoch has two steps, or one
OPTS = {"OPTIM.MAX_EPOCH": "3", "TRAIN.CHECKPOINT_FREQ": "1", "OPTIM.NAME": "sgd", "OPTIM.LR": "0.01"}
OPTS |= {"OPTIM.LR_SCHEDULER": "multi_step", "OPTIM.STEPSIZE": "(1,)", "OPTIM.GAMMA": "1e39", "TEST.NO_TEST": "True"}
SAID = {
    "2": r"(Loss|norm of a gradient) is infinite or NaN! .* at epoch 2, batch 2 of 2, learning rate 1\.0000e\+37\)",
    "4": r"A parameter is infinite or NaN! \(context.vectors.* at the end of epoch 2, batch 1 of 1, learning.*: low",
}  # fmt: skip


def make(name, root, out, batch, **more):
    return conformance.make(name, root, out, **{**OPTS, "DATALOADER.TRAIN_X.BATCH_SIZE": batch, **more})


@pytest.mark.parametrize("batch", SAID)
def test_what_was_saved_is_sound_and_the_same_command_says_the_same(batch, eurosat_root, tmp_path):
    said = []
    for _ in range(2):
        trainer = make("CoOp", eurosat_root, tmp_path, batch)
        trainer.model.context.vectors.register_hook(lambda gradient: 100 * gradient)
        with pytest.raises(FloatingPointError, match=SAID[batch]) as error:
            trainer.train()
        said.append(str(error.value))
        folder = tmp_path / trainer.checkpoint_dir
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "model.pth.tar-1"]
        state = load_checkpoint(str(folder / "model.pth.tar-1"))["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())
    assert said[0] == said[1]
    assert trainer.start_epoch == 1  # it went on from there
    rescued = make("CoOp", eurosat_root, tmp_path / "other", batch, **{"OPTIM.GAMMA": "0.1"})
    rescued.train()
    assert rescued.model_epoch == 3


def test_a_gradient_that_is_not_finite_under_a_finite_loss(eurosat_root, tmp_path):
    trainer = make("CoOp", eurosat_root, tmp_path, "2", **{"OPTIM.GAMMA": "1.0"})

    def spoil(gradient):
        return gradient * torch.nan if (trainer.epoch, trainer.batch_idx) == (1, 1) else gradient

    trainer.model.context.vectors.register_hook(spoil)
    said = "a gradient is infinite or NaN! (that of context.vectors at epoch 2, batch 2 of 2, learning rate 1.0000e-02)"
    with pytest.raises(FloatingPointError, match=re.escape(said)):
        trainer.train()


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # the first steps are skipped
def test_a_gradient_scaler_skips_steps_that_are_no_divergence(eurosat_root, tmp_path):
    trainer = make("CoOp", eurosat_root, tmp_path, "2", **{"OPTIM.GAMMA": "1.0"})
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    trainer.train()  # its gradients overflow while the scale is so large
    assert trainer.precision.scaler.get_scale() < 2.0**127
    assert torch.isfinite(trainer.model.context.vectors).all()
    assert trainer.model_epoch == 3


def test_of_several_seeds_the_one_that_diverged_is_named_alone(eurosat_root, tmp_path):
    gammas = ("0.1", "1e39")
    runs = [make("CoOp", eurosat_root, tmp_path / g, "2", seed=i, **{"OPTIM.GAMMA": g}) for i, g in enumerate(gammas)]
    sound, diverged = run_together([run.train for run in runs])
    assert sound is None
    assert isinstance(diverged, FloatingPointError)
    assert re.search(SAID["2"], str(diverged))
