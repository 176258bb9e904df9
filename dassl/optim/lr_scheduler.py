"""Learning rate schedules, stepped once per epoch, with an optional warm-up before them."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode

from dassl.utils import check_availability

SCHEDULERS = ("single_step", "multi_step", "cosine")
WARMUPS = ("linear", "constant")


class WarmupScheduler(LRScheduler):
    """A warm-up of ``warmup_epoch`` epochs, then the schedule ``successor``, which rests until then.

    The state is plain data: that of the successor is a dictionary in it, and loading it leaves the successor on its own
    optimiser.

    Args:
        optimizer: whose learning rates are set.
        successor: the schedule after the warm-up, on the same optimiser.
        warmup_epoch: epochs of warm-up.
        last_epoch: as in PyTorch.
        verbose: ignored; PyTorch has no such argument any more.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warmup_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the warm-up epoch ``last_epoch``."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the epoch ``last_epoch``."""
        return self.warmup_lr() if self.last_epoch < self.warmup_epoch else self.successor.get_last_lr()

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch."""
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
        else:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the optimiser, as plain data."""
        return super().state_dict() | {"successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, also one of Dassl's, where the successor is an object; sets the learning rates."""
        successor = state_dict["successor"]
        if isinstance(successor, LRScheduler):
            successor = successor.state_dict()
        self.successor.load_state_dict(successor)
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "successor"})
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


class ConstantWarmupScheduler(WarmupScheduler):
    """Warm-up at the rate ``cons_lr``."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warmup_lr(self) -> list[float | Tensor]:
        """Return ``cons_lr`` for each parameter group."""
        return [self.cons_lr] * len(self.base_lrs)


class LinearWarmupScheduler(WarmupScheduler):
    """Warm-up at ``min_lr`` in epoch 0, then at ``epoch / warmup_epoch`` of the base rate."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warmup_lr(self) -> list[float | Tensor]:
        """Return the rate of each parameter group."""
        if self.last_epoch == 0:
            return [self.min_lr] * len(self.base_lrs)
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Return the schedule that ``optim_cfg.LR_SCHEDULER`` names, after a warm-up if ``WARMUP_EPOCH`` is above 0.

    With ``WARMUP_RECOUNT`` the schedule begins after the warm-up; it is then cut off at ``MAX_EPOCH`` before its end.

    Raises:
        ValueError: an unknown schedule or warm-up, or step sizes that are no numbers of epochs.
    """
    check_availability(optim_cfg.LR_SCHEDULER, SCHEDULERS, "value of OPTIM.LR_SCHEDULER")
    if optim_cfg.WARMUP_EPOCH > 0:
        check_availability(optim_cfg.WARMUP_TYPE, WARMUPS, "value of OPTIM.WARMUP_TYPE")
    scheduler = _schedule(optimizer, optim_cfg)
    if optim_cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = optim_cfg.WARMUP_EPOCH
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_MIN_LR)


def _schedule(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Return the schedule without warm-up."""
    if optim_cfg.LR_SCHEDULER == "cosine":
        epochs = float(optim_cfg.MAX_EPOCH)
        return CosineAnnealingLR(optimizer, epochs)  # type: ignore[arg-type]  # a float, as in the checkpoints of Dassl
    stepsize = optim_cfg.STEPSIZE
    stepsize = list(stepsize) if isinstance(stepsize, list | tuple) else [stepsize]
    if not stepsize or not all(isinstance(step, int) for step in stepsize):
        raise ValueError(f"OPTIM.STEPSIZE: expected numbers of epochs, got {optim_cfg.STEPSIZE}")
    if optim_cfg.LR_SCHEDULER == "multi_step":
        return MultiStepLR(optimizer, milestones=stepsize, gamma=optim_cfg.GAMMA)
    epochs = stepsize[-1] if stepsize[-1] > 0 else optim_cfg.MAX_EPOCH
    return StepLR(optimizer, step_size=epochs, gamma=optim_cfg.GAMMA)
