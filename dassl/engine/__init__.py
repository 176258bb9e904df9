"""The training loop."""

from dassl.engine.build import TRAINER_REGISTRY, build_trainer
from dassl.engine.trainer import ClassTransfer, SimpleTrainer, TrainerBase, TrainerX, TrainerXU

__all__ = [
    "TRAINER_REGISTRY",
    "ClassTransfer",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_trainer",
]
