"""Every registered trainer keeps the contract; a new file in `trainers/` is tested here without being named."""

import re

import pytest
import torch
from clip_models import RESNET, random_state
from conformance import (
    check_deterministic,
    check_other_classes,
    check_resume,
    check_round_trip,
    check_run,
    check_stacked,
    kind,
    logits,
    make,
)

import trainers
from adaptation.trainer import MethodTrainer
from clip.precision import PRECISIONS
from dassl.engine import TRAINER_REGISTRY

NAMES = [name for name, cls in TRAINER_REGISTRY if issubclass(cls, MethodTrainer)]


def test_every_module_was_imported():
    assert not trainers.LEFT_OUT
    assert NAMES


@pytest.fixture(scope="module", params=NAMES)
def run(request, eurosat_root, tmp_path_factory):
    """A trained trainer, its metrics, and a way to make it again."""
    folder = tmp_path_factory.mktemp(request.param)

    def make_again(out="again", **more):
        return make(request.param, eurosat_root, folder / out, **more)

    trainer = make_again("run")
    return trainer, check_run(trainer), make_again


def test_declares_its_keys(run):
    trainer, metrics, _ = run
    cls = kind(metrics["trainer"])
    assert cls.config_node in cls.CONFIG
    assert cls.CONFIG[cls.config_node].PREC in PRECISIONS
    assert cls.__doc__
    assert metrics["config"]["TRAINER"][cls.config_node].keys() == cls.CONFIG[cls.config_node].keys()
    assert trainer.model.classnames == list(trainer.dm.dataset.classnames)


def test_evaluation_is_deterministic(run):
    check_deterministic(run[0])


def test_training_is_repeatable(run):
    trainer, metrics, make_again = run
    twin = make_again("twin")
    torch.rand(5)  # the global generators do not matter
    assert check_run(twin)["accuracy"] == metrics["accuracy"]
    assert torch.equal(logits(twin), logits(trainer))


def test_checkpoint_round_trip(run):
    trainer, _, make_again = run
    check_round_trip(trainer, make_again, trainer.output_dir)


def test_other_classes(run):
    trainer, _, make_again = run
    check_other_classes(make_again("new", **{"DATASET.SUBSAMPLE_CLASSES": "new"}), trainer.output_dir)


def test_half_precision(run):
    """bfloat16 towers; fp16 and amp become other modes on a CPU, and run on a GPU alone."""
    *_, make_again = run
    half, whole = make_again("bf16", precision="bf16"), make_again("whole")
    check_run(half)
    whole.load_model(half.output_dir)  # what was learned in few digits, evaluated in all of them
    torch.testing.assert_close(logits(half), logits(whole), rtol=0.1, atol=3.0)


def test_resuming(run):
    check_resume(run[2])


def test_stacked_seeds(run):
    check_stacked(run[2])


def test_resnet_image_tower(run, tmp_path):
    """It runs, or a sentence says that it needs a ViT."""
    make_again = run[2]
    torch.save(random_state(RESNET), tmp_path / "resnet.pt")
    try:
        resnet = make_again("resnet", backbone=str(tmp_path / "resnet.pt"))
    except ValueError as error:
        assert re.search(r"is a ResNet.* ViT", str(error)), error  # noqa: PT017  (either outcome will do)
    else:
        check_run(resnet)
