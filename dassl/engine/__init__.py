"""The training loop."""

from dassl.engine.build import TRAINER_REGISTRY, build_trainer
from dassl.engine.trainer import ClassTransfer, SimpleTrainer, TrainerBase, TrainerX, TrainerXU
from dassl.utils.third_party import names_from

__all__ = [
    "TRAINER_REGISTRY",
    "ClassTransfer",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_trainer",
]

__getattr__ = names_from(__name__, {"SimpleNet": "dassl.modeling.network"})
