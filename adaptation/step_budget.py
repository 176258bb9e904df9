"""Training that is counted in steps per shot rather than in epochs."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from yacs.config import CfgNode

from adaptation.trainer import MethodTrainer


class StepBudgetTrainer(MethodTrainer):
    """Trains for a number of steps; the learning rate follows them.

    The node has the keys `N_ITERS`, steps per shot, which take the place of `OPTIM.MAX_EPOCH` (0: the epochs count),
    and `LR_MIN`, where a cosine ends.
    """

    lr_per_step = True

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse steps per shot without shots."""
        super().check_cfg(cfg)
        steps = cfg.TRAINER[self.config_node].N_ITERS
        if steps > 0 and cfg.DATASET.NUM_SHOTS < 1:
            raise ValueError(
                f"TRAINER.{self.config_node}.N_ITERS is {steps} steps per shot, but there are no shots: set "
                "DATASET.NUM_SHOTS, or N_ITERS to 0 and OPTIM.MAX_EPOCH"
            )

    def build_model(self) -> None:
        """As always, after finding out how many steps and epochs there are."""
        per_epoch, wanted = len(self.train_loader_x), self.settings.N_ITERS * self.cfg.DATASET.NUM_SHOTS
        self.num_steps = wanted if self.settings.N_ITERS > 0 else self.max_epoch * per_epoch
        self.max_epoch = math.ceil(self.num_steps / per_epoch)
        super().build_model()

    def build_optim(self, trainable: list[nn.Parameter]) -> tuple[Optimizer, LRScheduler | None]:
        """As OPTIM says; a cosine ends at LR_MIN with the last step."""
        optim, sched = super().build_optim(trainable)
        if isinstance(sched, CosineAnnealingLR):
            sched.T_max, sched.eta_min = self.num_steps, self.settings.LR_MIN
        return optim, sched

    def epoch_batches(self) -> tuple[int, Iterable[Any]]:
        """The batches of an epoch; the last epoch ends with the last step."""
        number, batches = super().epoch_batches()
        number = min(number, self.num_steps - self.epoch * number)
        return number, itertools.islice(batches, number)
