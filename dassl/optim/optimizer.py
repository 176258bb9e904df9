"""Optimisers by name."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from dassl.utils import check_availability


def _adam_like(kind: Callable[..., Optimizer], **fixed: Any) -> Callable[[Any, CfgNode], Optimizer]:
    def make(params: Any, cfg: CfgNode) -> Optimizer:
        betas = (cfg.ADAM_BETA1, cfg.ADAM_BETA2)
        return kind(params, lr=cfg.LR, weight_decay=cfg.WEIGHT_DECAY, betas=betas, **fixed)

    return make


def _sgd(params: Any, cfg: CfgNode) -> Optimizer:
    return torch.optim.SGD(
        params,
        lr=cfg.LR,
        momentum=cfg.MOMENTUM,
        weight_decay=cfg.WEIGHT_DECAY,
        dampening=cfg.SGD_DAMPNING,
        nesterov=cfg.SGD_NESTEROV,
    )


def _rmsprop(params: Any, cfg: CfgNode) -> Optimizer:
    settings = {"momentum": cfg.MOMENTUM, "weight_decay": cfg.WEIGHT_DECAY, "alpha": cfg.RMSPROP_ALPHA}
    return torch.optim.RMSprop(params, lr=cfg.LR, **settings)


def _adadelta(params: Any, cfg: CfgNode) -> Optimizer:
    return torch.optim.Adadelta(params, lr=cfg.LR, weight_decay=cfg.WEIGHT_DECAY)


OPTIMIZERS: dict[str, Callable[[Any, CfgNode], Optimizer]] = {
    "adam": _adam_like(torch.optim.Adam),
    "amsgrad": _adam_like(torch.optim.Adam, amsgrad=True),
    "sgd": _sgd,
    "rmsprop": _rmsprop,
    "radam": _adam_like(torch.optim.RAdam),
    "adamw": _adam_like(torch.optim.AdamW),
    "adadelta": _adadelta,
}


def build_optimizer(
    model: nn.Module | Iterable[Any], optim_cfg: CfgNode, param_groups: Iterable[Any] | None = None
) -> Optimizer:
    """Return the optimiser that ``optim_cfg.NAME`` names.

    Args:
        model: a module, all of whose parameters are handed over, or an iterable of parameters or parameter groups.
        optim_cfg: a node with the keys of ``OPTIM``.
        param_groups: parameter groups to use in place of those of ``model``.

    Raises:
        ValueError: an unknown optimiser, or ``STAGED_LR`` with new layers that the model does not have.
    """
    check_availability(optim_cfg.NAME, list(OPTIMIZERS), "value of OPTIM.NAME")
    if param_groups is None:
        if optim_cfg.STAGED_LR:
            param_groups = _staged_groups(model, optim_cfg)
        else:
            param_groups = model.parameters() if isinstance(model, nn.Module) else model
    return OPTIMIZERS[optim_cfg.NAME](param_groups, optim_cfg)


def _staged_groups(model: Any, optim_cfg: CfgNode) -> list[dict[str, Any]]:
    """Return two groups: the children named in ``NEW_LAYERS`` learn at ``LR``, the others at ``LR * BASE_LR_MULT``."""
    if not isinstance(model, nn.Module):
        raise ValueError("OPTIM.STAGED_LR needs a module with named children, not a list of parameters")
    model = model.module if isinstance(model, nn.DataParallel) else model
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = [new_layers] if isinstance(new_layers, str) else list(new_layers)
    children = dict(model.named_children())
    for name in new_layers:
        check_availability(name, list(children), "layer in OPTIM.NEW_LAYERS")
    base = [p for name, child in children.items() if name not in new_layers for p in child.parameters()]
    new = [p for name in new_layers for p in children[name].parameters()]
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
