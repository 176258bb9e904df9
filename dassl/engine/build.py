"""Trainers by name."""

from typing import Any

from dassl.utils import Registry
from dassl.utils.registry import build_from

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: Any) -> Any:
    """Make the trainer that ``TRAINER.NAME`` names.

    Raises:
        ValueError: none of that name is registered.
    """
    return build_from(TRAINER_REGISTRY, cfg.TRAINER.NAME, cfg)
