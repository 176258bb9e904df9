"""Trainers by name."""

from typing import Any

from dassl.engine.authoring import keys_are_there, require_initialised
from dassl.engine.base import TrainerBase
from dassl.utils import Registry
from dassl.utils.registry import build_from

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: Any) -> Any:
    """Make the trainer that ``TRAINER.NAME`` names.

    Raises:
        ValueError: none of that name is registered; or a mistake of its author, with file and line: a key that is
            declared nowhere, an ``__init__`` that does not call that of its base.
    """
    with keys_are_there():
        trainer = build_from(TRAINER_REGISTRY, cfg.TRAINER.NAME, cfg)
    if isinstance(trainer, TrainerBase):
        require_initialised(trainer, "_models", "super().__init__(cfg)")
    return trainer
