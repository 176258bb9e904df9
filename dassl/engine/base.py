"""Registered models and the skeleton of training, without configuration or data."""

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl.engine.steps import Step, names_not_finite, not_finite
from dassl.engine.trackers import Tracker, make_trackers
from dassl.engine.writer import SummaryWriter
from dassl.utils import check_availability, load_checkpoint, save_checkpoint, tolist_if_not
from dassl.utils.checkpoints import BEST, require_finite, restore, sound_checkpoints
from dassl.utils.interim import place_of, resumable_checkpoints

logger = logging.getLogger(__name__)


class TrainerBase:
    """Registered models with their optimisers and schedulers, and the skeleton of training.

    Attributes:
        epoch: the present epoch, from 0.
        batch_idx: the present batch, from 0.
        num_batches: batches of an epoch.
        model_epoch: epochs that the present weights have been trained for; 0 if untrained or unknown.
        resumed: whether this run goes on from a checkpoint, be it of its first epoch.
    """

    epoch = 0
    batch_idx = 0
    num_batches = 0
    model_epoch = 0
    resumed = False

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self.checkpoint_files: dict[str, tuple[str, Mapping[str, Any]]] = {}  # by model; see note_checkpoint
        self._optims: OrderedDict[str, Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, LRScheduler | None] = OrderedDict()
        self._writer: SummaryWriter | None = None
        self._trackers: list[Tracker] = []

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: Optimizer | None = None,
        sched: LRScheduler | None = None,
    ) -> None:
        """Register a model under ``name``, which is also the name of its folder of checkpoints."""
        if "_models" not in self.__dict__:
            raise AttributeError("cannot register a model before super().__init__() was called")
        assert name not in self._models, f"Found duplicate model names: {name}"
        assert model is not None, f"there is no model to register as {name}"
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """Return the registered names, or the given ones after checking that they are registered."""
        if names is None:
            return list(self._models)
        for name in tolist_if_not(names):
            check_availability(name, list(self._models), "registered model")
        return tolist_if_not(names)

    # Checkpoints

    def checkpoint_extras(self) -> dict[str, Any]:
        """Return plain data that goes into each checkpoint; for subclasses."""
        return {}

    def progress(self) -> dict[str, Any]:
        """Return what the loop itself needs to go on after an interruption, as plain data."""
        return {}

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Take over what :meth:`progress` returned."""

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Write a checkpoint of each registered model to ``directory/<its name>``.

        Args:
            epoch: the epoch that was just completed, from 0; the file counts from 1.
            directory: the folder of the run.
            is_best: write ``model-best.pth.tar`` as well.
            val_result: result of the validation, kept in the file.
            model_name: name of the file, default ``model.pth.tar-<epoch + 1>``.

        Raises:
            FloatingPointError: a number that would be saved is not finite.
        """
        self.require_finite_state()
        for name in self.get_model_names():
            state = self.checkpoint_state(name, epoch + 1, val_result)
            save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)
            self.note_checkpoint(name, os.path.join(directory, name, model_name or f"model.pth.tar-{epoch + 1}"), state)

    def checkpoint_state(self, name: str, epochs: int, val_result: float | None = None) -> dict[str, Any]:
        """Return what a checkpoint of a registered model holds when so many epochs are completed."""
        optim, sched = self._optims[name], self._scheds[name]
        return {
            **self.checkpoint_extras(),
            "state_dict": self._models[name].state_dict(),
            "epoch": epochs,
            "optimizer": None if optim is None else optim.state_dict(),
            "scheduler": None if sched is None else sched.state_dict(),
            "val_result": None if val_result is None else float(val_result),
            "progress": self.progress(),
        }

    def note_checkpoint(self, name: str, path: str, checkpoint: Mapping[str, Any]) -> None:
        """Remember the file that a model was last written to or loaded from, which ``metrics.json`` will name."""
        self.checkpoint_files[name] = (path, checkpoint.get("config") or {})

    def resume_model_if_exist(self, directory: str) -> int:
        """Restore every registered model from its last checkpoint below ``directory``; return the completed epochs.

        Returns 0, and changes nothing, unless every model has a checkpoint.  One that is damaged, or of a diverged run,
        is named in a warning, and the one before it is used.

        Raises:
            ValueError: the checkpoints are another run's (:meth:`require_own`), or of no common epoch.
        """
        checkpoints = self._common_checkpoints(directory)
        if not checkpoints:
            logger.info("No checkpoint found, train from scratch")
            return 0
        logger.info("Found checkpoint at %s (will resume training)", directory)
        for name, checkpoint in checkpoints.items():
            epoch = restore(checkpoint, self._models[name], self._optims[name], self._scheds[name])
            self.restore_progress(checkpoint.get("progress", {}))
            path = os.path.join(directory, name, f"model.pth.tar-{epoch}")
            if os.path.isfile(path) and not place_of(checkpoint)[1]:
                self.note_checkpoint(name, path, checkpoint)
        self.model_epoch, self.resumed = epoch, True
        return epoch

    def require_own(self, checkpoint: Mapping[str, Any], path: str) -> None:
        """Refuse to go on from a checkpoint of another run with a ValueError; for subclasses."""

    def _common_checkpoints(self, directory: str) -> dict[str, dict[str, Any]]:
        """Return the sound checkpoints of the last epoch of which every model has one; none if a model has none."""
        each = {name: self._own_checkpoints(directory, name) for name in self.get_model_names()}
        first = {name: next(checkpoints, None) for name, checkpoints in each.items()}
        found = {name: checkpoint for name, checkpoint in first.items() if checkpoint is not None}
        if not found or len(found) < len(first):
            return {}
        while True:
            epochs = {name: place_of(checkpoint) for name, checkpoint in found.items()}
            later = [name for name, epoch in epochs.items() if epoch > min(epochs.values())]
            if not later:
                return found
            for name in later:
                earlier = next(each[name], None)
                if earlier is None:
                    raise ValueError(f"{directory}: the last checkpoints are of different epochs: {epochs}")
                found[name] = earlier

    def _own_checkpoints(self, directory: str, name: str) -> Iterator[dict[str, Any]]:
        """Yield the sound checkpoints of a model, the last one first."""
        folder = os.path.join(directory, name)
        for path, checkpoint in sound_checkpoints(folder, self._models[name], resumable_checkpoints(folder)):
            self.require_own(checkpoint, path)
            yield checkpoint

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the weights of every registered model.

        Args:
            directory: the folder of a run; if empty, nothing is loaded.
            epoch: which checkpoint; None: the one with the best validation result.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it is damaged, or of a run that diverged.
        """
        if not directory:
            logger.info("Note that load_model() is skipped as no pretrained model is given")
            return
        file_name = BEST if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            path = os.path.join(directory, name, file_name)
            checkpoint = load_checkpoint(path)
            require_finite(checkpoint, self._models[name], path)
            self._models[name].load_state_dict(checkpoint["state_dict"])
            self.model_epoch = checkpoint.get("epoch") or 0
            self.note_checkpoint(name, path, checkpoint)
            result = checkpoint.get("val_result")
            shown = result if result is None else f"{result:.2f}"
            logger.info("Load %s to %s (epoch=%s, val_result=%s)", path, name, checkpoint.get("epoch"), shown)

    # Steps

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Put models into the mode ``"train"``, ``"test"`` or ``"eval"``; KeyError for another."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f'the mode of a model is "train", "test" or "eval", not "{mode}"')
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the schedulers: the next epoch's learning rate is in force from here on."""
        for name in self.get_model_names(names):
            if (sched := self._scheds[name]) is not None:
                sched.step()

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Return the learning rate of the first optimiser among ``names``; 0 if there is none."""
        for name in self.get_model_names(names):
            if (optim := self._optims[name]) is not None:
                return optim.param_groups[0]["lr"]
        return 0.0

    def detect_anomaly(self, loss: Tensor, name: str = "loss") -> None:
        """Raise a FloatingPointError that names value and step, unless all of ``loss`` is finite."""
        if not torch.isfinite(loss).all():
            value = loss.detach().flatten()[:4].tolist()
            raise FloatingPointError(not_finite("Loss", f"{name} = {value}", self._place()))

    def require_finite_state(self) -> None:
        """Raise a FloatingPointError unless the parameters, and what their optimisers hold, are finite.

        Buffers may be infinite, as masks are, but not NaN.
        """
        for name, model in self._models.items():
            buffers = [key for key, _ in model.named_buffers()]
            found = names_not_finite({**dict(model.named_parameters()), **dict(model.named_buffers())}, buffers)
            if (optim := self._optims[name]) is not None:
                held = {f"{key} of parameter {number}": value for number, state in enumerate(optim.state.values())
                        for key, value in state.items()}  # fmt: skip
                found += [f"the optimiser's {which}" for which in names_not_finite(held)]
            if found:
                raise FloatingPointError(not_finite("A parameter", ", ".join(found[:3]), f"the end of {self._place()}"))

    def _place(self) -> str:
        """Say which step this is."""
        lr = self.get_current_lr()
        return str(Step(self.epoch, self.batch_idx, self.num_batches, lr, lr))

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        """Forget the gradients."""
        for optim in self._named_optims(names):
            optim.zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Check that ``loss`` is finite, then compute the gradients."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        """Step the optimisers."""
        for optim in self._named_optims(names):
            optim.step()

    def model_backward_and_update(self, loss: Tensor, names: str | list[str] | None = None) -> None:
        """Take one training step on ``loss``."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def prograd_backward_and_update(
        self, loss_a: Tensor, loss_b: Tensor, lambda_: float = 1, names: str | list[str] | None = None
    ) -> None:
        """Take a step on ``loss_a`` that does not work against ``loss_b`` (ProGrad, Zhu et al., ICCV 2023).

        Where the two gradients of a parameter are at an obtuse angle, ``lambda_`` times the projection on that of
        ``loss_b`` is taken away from that of ``loss_a``.
        """
        parameters = [p for optim in self._named_optims(names) for group in optim.param_groups for p in group["params"]]
        self.model_zero_grad(names)
        self.detect_anomaly(loss_b, "loss_b")
        loss_b.backward(retain_graph=True)
        references = {p: p.grad.clone() for p in parameters if p.grad is not None}
        self.model_zero_grad(names)
        self.model_backward(loss_a)
        for p, reference in references.items():
            if p.grad is None:
                continue
            product = (p.grad * reference).sum()
            if product < 0:
                p.grad -= lambda_ * product / reference.square().sum() * reference
        self.model_update(names)

    def _named_optims(self, names: str | list[str] | None) -> list[Optimizer]:
        """Return the optimisers of the named models, of all without names."""
        return [optim for name in self.get_model_names(names) if (optim := self._optims[name]) is not None]

    # TensorBoard

    def init_writer(self, log_dir: str) -> None:
        """Begin to write TensorBoard events."""
        if self._writer is None:
            logger.info("Initialize tensorboard (log_dir=%s)", log_dir)
            self._writer = SummaryWriter(log_dir=log_dir)

    def init_trackers(self, names: Any, folder: str, title: str, settings: Mapping[str, Any]) -> None:
        """Begin to write to the trackers that are named; arguments and errors as of ``make_trackers``."""
        if not self._trackers:
            self._trackers = make_trackers(names, folder, title, settings)

    def close_writer(self) -> None:
        """End writing TensorBoard events, and to trackers."""
        trackers, self._trackers = self._trackers, []
        for tracker in trackers:
            tracker.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a number to TensorBoard, if a writer is open, and to the trackers."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)
        for tracker in self._trackers:
            tracker.add_scalar(tag, scalar_value, global_step)

    # The loop

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run the epochs from ``start_epoch`` up to, not including, ``max_epoch``."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            with self.interruptible_epoch():
                self.before_epoch()
                self.run_epoch()
                self.after_epoch()
        self.after_train()

    def interruptible_epoch(self) -> AbstractContextManager[None]:
        """Return what surrounds an epoch."""
        return nullcontext()

    def before_train(self) -> None:
        """Prepare; may set ``start_epoch``."""

    def after_train(self) -> None:
        """Finish."""

    def before_epoch(self) -> None:
        """Prepare an epoch."""

    def after_epoch(self) -> None:
        """Finish an epoch."""

    def run_epoch(self) -> None:
        """Train for one epoch."""
        raise NotImplementedError

    def test(self) -> float:
        """Evaluate."""
        raise NotImplementedError

    def parse_batch_train(self, batch: Any) -> Any:
        """Return what training needs of a batch, on the device."""
        raise NotImplementedError

    def parse_batch_test(self, batch: Any) -> Any:
        """Return what evaluation needs of a batch, on the device."""
        raise NotImplementedError

    def forward_backward(self, batch: Any) -> Mapping[str, Any] | None:
        """Take a training step; return what to report of it."""
        raise NotImplementedError

    def model_inference(self, input: Any) -> Any:
        """Return the model's output."""
        raise NotImplementedError
