"""Optimisers and schedules: names, warm-up, state, the state of Dassl's own files."""

import copy

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import LinearWarmupScheduler
from dassl.optim.optimizer import OPTIMIZERS
from dassl.optim.radam import RAdam


def _optim_cfg(**keys):
    cfg = get_cfg_default().OPTIM
    for key, value in {"NAME": "sgd", "LR": 0.1, "LR_SCHEDULER": "cosine", **keys}.items():
        cfg[key] = value
    return cfg


def _step(optimizer, scheduler):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    scheduler.step()


def _rates(cfg):
    optimizer = build_optimizer(nn.Linear(2, 2), cfg)
    scheduler = build_lr_scheduler(optimizer, cfg)
    rates = []
    for _ in range(cfg.MAX_EPOCH):
        rates.append(optimizer.param_groups[0]["lr"])
        _step(optimizer, scheduler)
        assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]
    return rates


COOP = {"LR": 0.002, "MAX_EPOCH": 5, "WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant"}
LINEAR = {"MAX_EPOCH": 8, "WARMUP_EPOCH": 3, "WARMUP_TYPE": "linear", "WARMUP_MIN_LR": 0.001}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (COOP, [1e-05, 0.002, 0.00180902, 0.00130902, 0.000690983]),
        (
            {"MAX_EPOCH": 8, "WARMUP_EPOCH": 3, "WARMUP_TYPE": "constant", "WARMUP_CONS_LR": 0.01},
            [0.01, 0.01, 0.01, 0.1, 0.096194, 0.0853553, 0.0691342, 0.05],
        ),
        (LINEAR, [0.001, 0.0333333, 0.0666667, 0.1, 0.096194, 0.0853553, 0.0691342, 0.05]),
        (
            {**LINEAR, "WARMUP_RECOUNT": False},
            [0.001, 0.0333333, 0.0666667, 0.1, 0.0723231, 0.0446463, 0.021183, 0.00550527],
        ),
        ({"MAX_EPOCH": 4}, [0.1, 0.0853553, 0.05, 0.0146447]),
        ({"MAX_EPOCH": 4, "LR_SCHEDULER": "single_step", "STEPSIZE": (2,)}, [0.1, 0.1, 0.01, 0.01]),
        ({"MAX_EPOCH": 3, "LR_SCHEDULER": "single_step"}, [0.1, 0.1, 0.1]),
        ({"MAX_EPOCH": 5, "LR_SCHEDULER": "multi_step", "STEPSIZE": [2, 4]}, [0.1, 0.1, 0.01, 0.01, 0.001]),
    ],
)
def test_learning_rate_in_force_in_each_epoch(keys, expected):
    assert _rates(_optim_cfg(**keys)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_steps(name):
    model = nn.Linear(2, 1)
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, _optim_cfg(NAME=name, WEIGHT_DECAY=0.01))
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before["weight"])
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def test_settings_reach_the_optimizers():
    keys = {"MOMENTUM": 0.8, "SGD_DAMPNING": 0, "SGD_NESTEROV": True, "ADAM_BETA1": 0.7, "ADAM_BETA2": 0.8}
    group = build_optimizer(nn.Linear(1, 1), _optim_cfg(**keys)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.8, True)
    group = build_optimizer(nn.Linear(1, 1), _optim_cfg(NAME="adamw", **keys)).param_groups[0]
    assert group["betas"] == (0.7, 0.8)
    group = build_optimizer(nn.Linear(1, 1), _optim_cfg(NAME="adadelta")).param_groups[0]
    assert (group["rho"], group["eps"]) == (0.9, 1e-6)
    assert isinstance(build_optimizer(nn.Linear(1, 1), _optim_cfg(NAME="radam")), RAdam)


def test_what_may_be_optimised():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert len(build_optimizer(model, _optim_cfg()).param_groups[0]["params"]) == 2  # frozen ones too
    assert len(build_optimizer([model.weight], _optim_cfg()).param_groups[0]["params"]) == 1
    groups = [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias]}]
    assert [g["lr"] for g in build_optimizer(groups, _optim_cfg()).param_groups] == [0.5, 0.1]
    assert [g["lr"] for g in build_optimizer(model, _optim_cfg(), groups).param_groups] == [0.5, 0.1]


def test_staged_learning_rates():
    model = nn.Sequential()
    model.add_module("backbone", nn.Linear(2, 2))
    model.add_module("head", nn.Linear(2, 2))
    cfg = _optim_cfg(STAGED_LR=True, NEW_LAYERS="head", BASE_LR_MULT=0.1)
    base, new = build_optimizer(nn.DataParallel(model), cfg).param_groups
    assert base["params"][0] is model.backbone.weight
    assert new["params"][0] is model.head.weight
    assert (base["lr"], new["lr"]) == (pytest.approx(0.01), 0.1)
    with pytest.raises(ValueError, match="heed"):
        build_optimizer(model, _optim_cfg(STAGED_LR=True, NEW_LAYERS=("heed",)))
    with pytest.raises(ValueError, match="named children"):
        build_optimizer([model.head.weight], cfg)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"LR_SCHEDULER": "cosin"}, r"LR_SCHEDULER.*cosine"),
        ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "lin"}, r"WARMUP_TYPE.*linear"),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": ("a",)}, "STEPSIZE"),
    ],
)
def test_unknown_schedules(keys, message):
    optimizer = build_optimizer(nn.Linear(1, 1), _optim_cfg())
    with pytest.raises(ValueError, match=message):
        build_lr_scheduler(optimizer, _optim_cfg(**keys))


def test_unknown_optimizer():
    with pytest.raises(ValueError, match=r'OPTIM.NAME "sdg": do you mean \[.sgd'):
        build_optimizer(nn.Linear(1, 1), _optim_cfg(NAME="sdg"))


def test_verbose_is_ignored():
    optimizer = build_optimizer(nn.Linear(1, 1), _optim_cfg())
    successor = build_lr_scheduler(optimizer, _optim_cfg())
    scheduler = LinearWarmupScheduler(optimizer, successor, 2, 0.001, -1, True)
    assert (scheduler.min_lr, scheduler.warmup_epoch, scheduler.base_lrs) == (0.001, 2, [0.1])


@pytest.mark.parametrize("epochs", [1, 2, 4, 6])
@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("schedule", ["cosine", "multi_step"])
def test_state_goes_on_where_it_was(epochs, official, schedule):
    """Also from a state of Dassl's, whose successor is an object with an optimiser of its own."""
    cfg = _optim_cfg(**LINEAR, LR_SCHEDULER=schedule, STEPSIZE=(2, 3))
    expected = _rates(cfg)
    optimizer = build_optimizer(nn.Linear(2, 2), cfg)
    scheduler = build_lr_scheduler(optimizer, cfg)
    for _ in range(epochs):
        _step(optimizer, scheduler)
    state = copy.deepcopy(scheduler.state_dict())
    assert isinstance(state["successor"], dict)
    if official:
        state["successor"] = copy.deepcopy(scheduler.successor)
    resumed = build_optimizer(nn.Linear(2, 2), cfg)
    scheduler = build_lr_scheduler(resumed, cfg)
    scheduler.load_state_dict(state)
    rates = []
    for _ in range(epochs, cfg.MAX_EPOCH):
        rates.append(resumed.param_groups[0]["lr"])
        _step(resumed, scheduler)
    assert rates == pytest.approx(expected[epochs:], rel=1e-12)
