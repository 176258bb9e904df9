"""Where a run can go on: interim checkpoints by time and when the process is asked to end, inside epochs too.

A run goes on exactly: the global random generators are put into the states that they had when the epoch began, the
batches that were done are passed over, then the generators get the states that they had after the last of these.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from dassl.data.samplers import pass_over
from dassl.utils.checkpoints import serialise
from dassl.utils.interim import remove_interim, write_interim
from dassl.utils.interruption import Interrupted, asked, defer, raise_if_asked
from dassl.utils.locks import require_held
from dassl.utils.meters import MetricMeter
from dassl.utils.random_states import random_states, restore_random_states

if TYPE_CHECKING:
    from dassl.engine.trainer import SimpleTrainer

logger = logging.getLogger(__name__)


class _Kept(NamedTuple):
    """Checkpoints that are written only if the epoch is interrupted: where they are, as words and numbers."""

    where: str
    epochs: int
    batches: int
    contents: dict[str, memoryview]


class InterimCheckpoints:
    """Writes the interim checkpoints of a trainer, and takes one over.

    Inside an epoch it can do that where the trainer's loop takes its batches from :meth:`steps`. A trainer with a loop
    of its own goes on from the start of the epoch; what it was then is kept in memory.

    Args:
        trainer: whose; ``TRAIN.CHECKPOINT_MINUTES`` of its configuration says how often.
    """

    def __init__(self, trainer: "SimpleTrainer") -> None:
        self.trainer = trainer
        self._completed = -1  # epochs of the regular checkpoint that was written last
        self._written_at = time.monotonic()
        self._restored: Mapping[str, Any] = {}  # what a checkpoint says, until its epoch begins
        self._done: Mapping[str, Any] = {}  # what it says of the batches of that epoch, until they are passed over
        self._at_start: dict[str, Any] = {}  # of the present epoch: states of the generators, learning rate
        self._kept: _Kept | None = None

    def restore(self, progress: Mapping[str, Any]) -> None:
        """Take over what a checkpoint says, for when the next epoch begins."""
        self._restored = progress

    def note_regular(self, epochs: int) -> None:
        """Note that a regular checkpoint of so many completed epochs was written."""
        self._completed, self._written_at = epochs, time.monotonic()

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Surround an epoch: its preparation, its steps, what follows them.

        Raises:
            Interrupted: the process was asked to end; what can be saved is.
        """
        raise_if_asked()
        self._begin()
        try:
            yield
        except Interrupted as interrupted:
            self._write_kept(interrupted)
            raise
        except RuntimeError as error:  # a loader's worker was ended by the signal that asked its whole group
            if not asked():
                raise
            ended = Interrupted(asked())
            self._write_kept(ended)
            raise ended from error
        else:
            self._end()
        finally:
            self._kept = None
            defer(False)

    def _begin(self) -> None:
        trainer, restored = self.trainer, self._restored
        self._done, self._restored = dict(restored.get("interim") or {}), {}
        after = restored.get("random") or {}
        restore_random_states(self._done.get("random_at_start") or after, trainer.device)
        if self._done:
            self._done = {**self._done, "random": after}
        lr = self._done.get("lr", trainer.get_current_lr())
        self._at_start = {"random_at_start": random_states(trainer.device), "lr": lr}
        if not trainer.goes_on_inside_epochs:
            where = f"the start of epoch {trainer.epoch + 1}: inside an epoch, the loop of this trainer cannot go on"
            self._kept = _Kept(where, trainer.epoch, 0, self._contents(trainer.epoch))

    def lr_at_start(self) -> float:
        """Return the learning rate with which the present epoch began."""
        return self._at_start.get("lr", self.trainer.get_current_lr())

    def steps(
        self, batches: Iterable[Any], losses: MetricMeter, settle: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, Any]]:
        """Yield the batches of an epoch that are left, with their numbers; save what is due when one is done.

        Args:
            batches: of the whole epoch.
            losses: averages over the steps; gets those of the steps that were done before.
            settle: called before they are saved, so that the last step is among them.

        Raises:
            Interrupted: the process was asked to end, and the place is saved.
        """
        trainer = self.trainer
        if not (self._at_start and trainer.goes_on_inside_epochs):
            yield from enumerate(batches)
            return
        defer(True)
        count, left = self._pass_over(batches, losses)
        for number, batch in enumerate(left, count):
            yield number, batch
            if asked() or self._is_due():
                settle()
                self._save_inside(number + 1, losses)
        if trainer.cfg.TEST.FINAL_MODEL == "best_val" and not trainer.cfg.TEST.NO_TEST:
            settle()
            contents = self._contents(trainer.epoch, self._inside(trainer.num_batches, losses))
            self._kept = _Kept(f"the end of epoch {trainer.epoch + 1}", trainer.epoch, trainer.num_batches, contents)
            defer(False)  # a pass over the validation images may take long

    def _pass_over(self, batches: Iterable[Any], losses: MetricMeter) -> tuple[int, Iterator[Any]]:
        """Return how many batches of the epoch were done before, and the others."""
        done, self._done = self._done, {}
        if not done:
            return 0, iter(batches)
        count = int(done["batches"])
        logger.info("Going on in epoch %d, after batch %d", self.trainer.epoch + 1, count)
        left = pass_over(batches, count)
        losses.restore(done["losses"])
        restore_random_states(done["random"], self.trainer.device)
        self.trainer.batch_idx = count - 1
        return count, left

    def _inside(self, count: int, losses: MetricMeter) -> dict[str, Any]:
        """Return what a checkpoint says of the present epoch when so many of its batches are done."""
        return {**self._at_start, "batches": count, "losses": losses.state()}

    def _save_inside(self, count: int, losses: MetricMeter) -> None:
        trainer = self.trainer
        self._write(self._contents(trainer.epoch, self._inside(count, losses)), trainer.epoch, count)
        if asked():
            raise Interrupted(asked(), f"epoch {trainer.epoch + 1}, batch {count} of {trainer.num_batches}")

    def _end(self) -> None:
        """Save the end of an epoch, if that is due and has not been done; delete interim checkpoints after the last."""
        trainer, completed = self.trainer, self.trainer.epoch + 1
        if completed >= trainer.max_epoch:
            if self._completed == completed:
                self.remove()
        elif self._completed != completed and (asked() or self._is_due()):
            self._write(self._contents(completed), completed, 0)
        if asked():
            raise Interrupted(asked(), f"the end of epoch {completed}")

    def remove(self) -> None:
        """Delete the interim checkpoints: training is over."""
        for name in self.trainer.get_model_names():
            remove_interim(os.path.join(self.trainer.output_dir, name))

    def _is_due(self) -> bool:
        return 0 < self.trainer.cfg.TRAIN.CHECKPOINT_MINUTES * 60 < time.monotonic() - self._written_at

    def _contents(self, epochs: int, inside: Mapping[str, Any] | None = None) -> dict[str, memoryview]:
        """Return the bytes of a checkpoint of each model; `inside`: of an epoch, what it says of its batches."""
        trainer, contents = self.trainer, {}
        trainer.require_finite_state()
        for name in trainer.get_model_names():
            state = trainer.checkpoint_state(name, epochs)
            if inside:
                seconds = trainer.train_seconds + time.time() - trainer._epoch_start
                state["progress"] = {**state["progress"], "interim": inside, "train_seconds": seconds}
            contents[name] = serialise(state)
        return contents

    def _write(self, contents: Mapping[str, memoryview], epochs: int, batches: int) -> None:
        require_held(self.trainer.output_dir)
        for name, content in contents.items():
            write_interim(content, os.path.join(self.trainer.output_dir, name), epochs, batches)
        self._written_at = time.monotonic()

    def _write_kept(self, interrupted: Interrupted) -> None:
        """Save what was kept, unless it was found out where the run is."""
        if self._kept and not interrupted.saved:
            self._write(self._kept.contents, self._kept.epochs, self._kept.batches)
            interrupted.saved = self._kept.where
