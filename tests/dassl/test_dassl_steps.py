"""What steps report is read later, in order; what is not finite is named with its step, and never saved."""

import math
import re

import pytest
import torch
from torch import nn

from dassl.engine.base import TrainerBase
from dassl.engine.steps import Step, StepReader, names_not_finite
from dassl.utils.torchtools import HostCopy

NAN, INF = math.nan, math.inf


def reader(delivered: list) -> StepReader:
    def deliver(step, numbers):
        delivered.append((step.batch, numbers))

    return StepReader(deliver, lambda name: "loss" in name)


def step(batch: int) -> Step:
    return Step(1, batch, 4, 0.5, 0.25)


def test_numbers_are_delivered_in_order_when_they_are_read():
    delivered: list = []
    steps = reader(delivered)
    loss = torch.tensor(1.5, requires_grad=True)
    steps.add(step(0), {"loss": loss * 2, "acc": 50, "hits": torch.tensor([2**40 + 1])}, {})
    steps.collect(wait=True)
    assert delivered == []  # nothing was started
    steps.start()
    steps.add(step(1), {"loss": torch.tensor(4.0, dtype=torch.float64)}, {"w": torch.ones(2)})
    steps.collect()
    assert delivered == [(0, {"loss": 3.0, "acc": 50, "hits": 2**40 + 1})]
    steps.add(step(2), None, {})
    steps.finish()
    assert delivered[1:] == [(1, {"loss": 4.0}), (2, {})]


def test_what_is_overwritten_after_the_step_was_read_before():
    delivered: list = []
    steps, loss = reader(delivered), torch.tensor(1.0)
    steps.add(step(0), {"loss": loss}, {})
    loss.fill_(NAN)
    steps.finish()
    assert delivered == [(0, {"loss": 1.0})]


@pytest.mark.parametrize(
    ("report", "gradients", "said"),
    [
        ({"loss": torch.tensor(NAN)}, {}, r"Loss is infinite or NaN! (loss = [nan] at"),
        ({"acc": torch.tensor(1.0), "kl_loss": INF}, {}, r"Loss is infinite or NaN! (kl_loss = [inf] at"),
        ({"loss": torch.tensor(1.0)}, {"a": torch.ones(2), "b": torch.tensor([1.0, -INF])}, r"(that of b at"),
        ({"loss": torch.tensor(1.0)}, {"a": torch.tensor([NAN, 3e38, 1.0])}, "norm of a gradient is infinite or NaN!"),
    ],
)  # fmt: skip
def test_the_first_step_that_is_not_finite_is_named(report, gradients, said):
    delivered: list = []
    steps = reader(delivered)
    steps.add(step(0), {"loss": torch.tensor(3e38), "acc": torch.tensor(NAN)}, {"a": torch.tensor([1e18, -1e18])})
    steps.add(step(2), report, gradients)
    steps.add(step(3), {"loss": torch.tensor(INF)}, {})
    with pytest.raises(FloatingPointError) as error:
        steps.finish()
    assert said in str(error.value)
    assert "epoch 2, batch 3 of 4, learning rate 5.0000e-01" in str(error.value)
    assert "lower OPTIM.LR" in str(error.value)
    assert [batch for batch, _ in delivered] == [0]


def test_a_report_is_a_mapping_of_single_numbers():
    with pytest.raises(TypeError, match="not list"):
        reader([]).add(step(0), [1.0], {})
    with pytest.raises(RuntimeError):
        reader([]).add(step(0), {"loss": torch.ones(2)}, {})


def test_names_not_finite():
    tensors = {"a": torch.ones(2), "b": torch.tensor([INF]), "c": torch.tensor([NAN], dtype=torch.bfloat16)}
    tensors |= {"d": torch.tensor([1]), "e": torch.empty(0), "f": torch.tensor([-3e38, 3e38])}
    assert names_not_finite({**tensors, "g": 3.0}) == ["b", "c"]
    assert names_not_finite(tensors, may_be_infinite=["b", "c"]) == ["c"]
    assert names_not_finite({}) == []


def test_a_copy_to_the_host():
    x = torch.randn(3, requires_grad=True)
    copy = HostCopy(x)
    assert copy.arrived()
    assert torch.equal(copy.read(), x.detach())


def _trainer() -> tuple[TrainerBase, nn.Linear]:
    trainer, model = TrainerBase(), nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([-INF, 0.0]))
    trainer.register_model("one", model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9))
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 2, 8, 9
    return trainer, model


@pytest.mark.parametrize("where", ["weight", "mask", "momentum"])
def test_nothing_is_saved_that_is_not_finite(where, tmp_path):
    trainer, model = _trainer()
    model(torch.ones(1, 2)).sum().backward()
    trainer.model_update()
    trainer.save_model(0, str(tmp_path))
    held = trainer._optims["one"].state[model.weight]["momentum_buffer"]
    named = {"weight": model.weight.data, "mask": model.mask, "momentum": held}
    named[where][0] = NAN
    name = "momentum_buffer of parameter 0" if where == "momentum" else where
    place = "the end of epoch 3, batch 9 of 9, learning rate 5.0000e-01"
    with pytest.raises(FloatingPointError, match=re.escape(f"{name} at {place}): lower OPTIM.LR")):
        trainer.save_model(1, str(tmp_path))
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["checkpoint", "model.pth.tar-1"]
