"""The training loop, in three layers.

``TrainerBase`` (in ``base.py``) holds registered models and steps them; ``SimpleTrainer`` adds configuration, data,
evaluation and checkpoints; ``TrainerX`` adds the epoch over labelled batches, ``TrainerXU`` that over labelled and
unlabelled ones.  A method is a subclass that writes ``build_model`` and ``forward_backward``.
"""

import functools
import itertools
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.config import check_values, with_defaults
from dassl.data import DataManager
from dassl.data.data_manager import release_workers
from dassl.data.evidence import NOT_TRAINED, data_changes, split_hash, training_evidence
from dassl.data.image_store import log_stored_images
from dassl.data.samplers import set_epoch
from dassl.engine.base import TrainerBase
from dassl.engine.comparison import flatten, to_dict
from dassl.engine.interim import InterimCheckpoints
from dassl.engine.record import make_record, recordable, require_own_result
from dassl.engine.steps import Step, StepReader
from dassl.engine.trackers import require_known
from dassl.engine.writer import SummaryWriter
from dassl.evaluation import build_evaluator
from dassl.evaluation.collector import PredictionCollector, keep, remove_older
from dassl.evaluation.predictions import NAME, VAL_NAME, Predictions
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    check_availability,
    choose_device,
    count_num_param,
    load_pretrained_weights,
    mkdir_if_missing,
    write_json,
)
from dassl.utils.checkpoints import BEST
from dassl.utils.interruption import raise_if_asked
from dassl.utils.locks import require_held
from dassl.utils.random_states import random_states
from dassl.utils.shortages import ShortageError
from dassl.utils.third_party import names_from
from dassl.utils.torchtools import free_cached_memory, reset_peak_memory

__all__ = ["AverageMeter", "MetricMeter", "SimpleTrainer", "SummaryWriter", "TrainerBase", "TrainerX", "TrainerXU"]

logger = logging.getLogger(__name__)

ClassTransfer = Literal["any", "subset", "none"]
SELECTIONS = ("none", "validation", "test")  # each says more against a result than the one before


class SimpleTrainer(TrainerBase):
    """A trainer with configuration, data, evaluation and checkpoints.

    Args:
        cfg: the configuration, frozen or not.

    Class attributes:
        random_streams: where order and augmentation of the images come from, unless ``DATALOADER.RANDOM_STREAMS`` says
            otherwise: ``"global"``, the generators of the process, as in Dassl; ``"keyed"``, functions of (seed, epoch,
            sample).
        code_version: version of what this class computes; raised when its code makes other numbers of the same
            configuration.
        learns: whether it has anything to learn; one that has not gives the same for every seed.
        transductive: the values of ``TEST.TRANSDUCTIVE`` that it knows.

    Attributes:
        history: a dictionary per completed epoch: ``epoch`` (from 1), ``lr``, averages of what the steps reported.
        train_seconds: time spent in epochs so far, those before an interruption included.
        best_result: the best result on the validation set.
        last_result: what the last call of :meth:`test` returned; None before the first.
        training_evidence: fields of ``metrics.json`` about the images that this process trains on.
        selection: on which images beside those of training anything was chosen in the run, or in the one whose
            checkpoint was loaded: ``"none"``, ``"validation"`` or ``"test"`` (which may stand for the validation list).
    """

    random_streams = "global"
    code_version = 2
    learns = True
    selection = SELECTIONS[0]
    transductive: tuple[str, ...] = ()
    model: nn.Module
    optim: Optimizer
    sched: LRScheduler | None

    @classmethod
    def class_transfer(cls, cfg: CfgNode) -> ClassTransfer:
        """Return which classes a run with this configuration can be tested on.

        ``"any"`` classes, a ``"subset"`` of those that it was trained on, or no others (``"none"``).
        """
        return "any"

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        cfg = with_defaults(cfg)
        check_values(cfg)
        if cfg.TEST.TRANSDUCTIVE and cfg.TEST.TRANSDUCTIVE not in self.transductive:
            known = ", ".join(self.transductive) or "none"
            raise ValueError(f"TEST.TRANSDUCTIVE is {cfg.TEST.TRANSDUCTIVE!r}, but {type(self).__name__} has: {known}")
        require_known(cfg.TRAIN.TRACKERS)
        self.check_cfg(cfg)
        self.device = choose_device(cfg.USE_CUDA)
        reset_peak_memory(self.device)
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.history: list[dict[str, float]] = []
        self.train_seconds = 0.0
        self.best_result = float("-inf")
        self.last_result: float | None = None
        self._evaluated_at_once = 0  # images; 0: as many as a batch has
        self.training_evidence: dict[str, Any] = dict(NOT_TRAINED)
        self._epoch_start = time.time()
        self.interim = InterimCheckpoints(self)
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise an error if the configuration does not suit; for subclasses."""

    def build_data_loader(self) -> None:
        """Make the data manager and take its loaders."""
        self.dm = DataManager(self.cfg, random_streams=self.random_streams)
        self.train_loader_x = cast(DataLoader, self.dm.train_loader_x)  # no data set is without training data
        self.train_loader_u: DataLoader | None = self.dm.train_loader_u
        self.val_loader: DataLoader | None = self.dm.val_loader
        self.test_loader: DataLoader | None = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self) -> None:
        """Build ``self.model`` and register what is trained; for subclasses.

        By default, for third-party code: the :class:`dassl.modeling.network.SimpleNet` that ``MODEL`` describes.
        """
        if not self.cfg.MODEL.BACKBONE.NAME:
            raise NotImplementedError(f"{type(self).__name__} must build a model and register it")
        from dassl.modeling.network import SimpleNet

        logger.info("Building model")
        self.model = SimpleNet(self.cfg, self.cfg.MODEL, self.num_classes)
        if self.cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, self.cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        logger.info("# params: %s", f"{count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def extra_metrics(self) -> dict[str, Any]:
        """Return further fields for ``metrics.json``, as plain data; for subclasses."""
        return {}

    def progress(self) -> dict[str, Any]:
        """Return the history, the time spent, the best result and the states of the global random generators."""
        done = {"history": self.history, "train_seconds": self.train_seconds, "best_result": self.best_result}
        return {**done, "random": random_states(self.device)}

    def checkpoint_extras(self) -> dict[str, Any]:
        """Return what a resumed run compares: ``data``, with class names in label order and hashes of the images; and
        ``selection``, which evaluations of the checkpoint record."""
        return {"data": self._data, "selection": self.selection}

    def note_checkpoint(self, name: str, path: str, checkpoint: Mapping[str, Any]) -> None:
        """Remember the file, and on which images its content was chosen."""
        super().note_checkpoint(name, path, checkpoint)
        self.note_selection(checkpoint.get("selection", SELECTIONS[0]))

    def note_selection(self, images: str) -> None:
        """Remember that something was chosen by its result on images of this kind, one of ``SELECTIONS``.

        Raises:
            ValueError: it is none of them.
        """
        check_availability(images, SELECTIONS, "selection")
        self.selection = max(self.selection, images, key=SELECTIONS.index)

    @functools.cached_property
    def _data(self) -> dict[str, Any]:
        """What a checkpoint says of the data that it was trained on; empty where the data set does not say."""

        def compute() -> dict[str, Any]:
            dataset = self.dm.dataset
            train_list = split_hash(self.cfg.DATASET.ROOT, dataset.train_x)
            images = self.training_evidence.get("train_images_hash")
            return {"classnames": list(dataset.classnames), "train_list": train_list, "train_images": images}

        return recordable(compute)[0] or {}

    def require_own(self, checkpoint: Mapping[str, Any], path: str) -> None:
        """Refuse a checkpoint that was trained on other classes or images with a ValueError.

        Few-shot draws without a seed differ each time: their runs go on.
        """
        kept = dict(checkpoint.get("data") or {"classnames": checkpoint.get("classnames")})
        if self.cfg.SEED < 0 and self.cfg.DATASET.NUM_SHOTS > 0:
            kept = {"classnames": kept.get("classnames")}
        if changes := data_changes(kept, self._data):
            raise ValueError(
                f"{path} was trained on other data ({'; '.join(changes)}): choose another --output-dir, or delete that "
                "run"
            )

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Take over history, time and best result."""
        self.history = list(progress.get("history", self.history))
        self.train_seconds = progress.get("train_seconds", self.train_seconds)
        self.best_result = progress.get("best_result", self.best_result)
        self.interim.restore(progress)

    def interruptible_epoch(self) -> AbstractContextManager[None]:
        """Return what surrounds an epoch, so that it can be interrupted and gone on with."""
        return self.interim.epoch()

    @property
    def goes_on_inside_epochs(self) -> bool:
        """Whether the loop over the batches of an epoch can begin at any of them."""
        return False

    def train(self) -> None:  # type: ignore[override]  # without arguments, as in Dassl
        """Train for ``OPTIM.MAX_EPOCH`` epochs, less those that an interrupted run has completed."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Resume from ``RESUME``, or from ``OUTPUT_DIR``, if there is a checkpoint; open the TensorBoard writer."""
        evidence, reason = recordable(lambda: training_evidence(self.dm.dataset))
        self.training_evidence = evidence or {"not_recorded": dict.fromkeys(NOT_TRAINED, reason)}
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.output_dir)
        if self.start_epoch >= self.max_epoch:
            self.interim.remove()  # whoever wrote the last checkpoint may have been killed before that
        self.epoch = max(self.start_epoch - 1, 0)
        log_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(log_dir)
        self.init_writer(log_dir)
        title = os.path.normpath(self.output_dir) if self.output_dir else self.cfg.TRAINER.NAME
        self.init_trackers(self.cfg.TRAIN.TRACKERS, self.output_dir, title, flatten(to_dict(self.cfg)))
        self.time_start = self._epoch_start = time.time()

    def before_epoch(self) -> None:
        """Tell the data which epoch it is: with keyed streams, order and augmentation depend on it."""
        set_epoch(self.train_loader_x, self.epoch)
        set_epoch(self.train_loader_u, self.epoch)

    def after_epoch(self) -> None:
        """Validate, if the best model is wanted; write the checkpoints that are due."""
        self.train_seconds += time.time() - self._epoch_start
        if self.epoch == self.start_epoch:
            log_stored_images()
        self.model_epoch = self.epoch + 1
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = float(result)
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        due = frequency > 0 and (self.epoch + 1) % frequency == 0
        if due or self.epoch + 1 == self.max_epoch:
            require_held(self.output_dir)
            self.save_model(self.epoch, self.output_dir)
            self.interim.note_regular(self.epoch + 1)
        self._epoch_start = time.time()  # validation and saving are not training

    def after_train(self) -> None:
        """Evaluate the final model, the last or the best."""
        release_workers(self.train_loader_x)
        release_workers(self.train_loader_u)
        logger.info("Finish training")  # what the log parsers of about half of the code family wait for
        logger.info("Finished training")  # and of the other half
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                logger.info("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                logger.info("Deploy the last-epoch model")
            self.test()
        logger.info("Elapsed: %s", timedelta(seconds=round(time.time() - self.time_start)))
        self.close_writer()

    @torch.no_grad()
    def test(self, split: str | None = None, is_final: bool = False) -> float:
        """Evaluate, and write ``OUTPUT_DIR/metrics.json`` and, if ``TEST.KEEP_PREDICTIONS``, ``predictions.npz``.

        Args:
            split: ``"test"``, or ``"val"``, a pass for model selection, which leaves ``metrics.json`` alone; default
                ``TEST.SPLIT``.
            is_final: write ``metrics.json`` also for ``"val"``.

        Returns:
            The evaluator's first result: accuracy in percent.

        Raises:
            ValueError: an unknown split, or one without data; an evaluation that would overwrite the result of another
                run.
        """
        selecting = split == "val" and not is_final
        if selecting:
            self.note_selection("test" if self._validates_on_test_images() else "validation")
        result = os.path.join(self.output_dir, "metrics.json")
        if not selecting and not self.history:
            require_own_result(result)
        split, loader = self._test_data(split or self.cfg.TEST.SPLIT)
        self.set_model_mode("eval")
        self.evaluator.reset()
        self.evaluator.logit_scale = self.scale_of_logits()
        logger.info("Evaluate on the *%s* set", split)
        start = time.perf_counter()
        batches, collector = self.evaluation_batches(loader), self._collector(loader, selecting)
        for batch in _with_progress_bar(batches, f"evaluating {split}", len(loader)):
            input, label = self.parse_batch_test(batch)
            output = self._inference(input)
            self.evaluator.process(output, label)
            if collector is not None:
                collector.add(output, label, batch)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        if not selecting:
            seconds, answers = time.perf_counter() - start, self._collected(collector)
            record = make_record(self, split, results, seconds)
            require_held(self.output_dir)
            write_json(record | {"predictions": self._keep_predictions(answers, record)}, result)
        self.last_result = next(iter(results.values()))
        return self.last_result

    def _inference(self, input: Any) -> Any:
        """Return :meth:`model_inference` of a batch, in smaller ones once the device's memory was too small for it."""
        if self._evaluated_at_once:
            return torch.cat([self.model_inference(part) for part in input.split(self._evaluated_at_once)])
        try:
            return self.model_inference(input)
        except torch.OutOfMemoryError:
            if not isinstance(input, Tensor) or len(input) < 2:
                raise
        return self._smaller_inference(input)

    def _smaller_inference(self, input: Tensor) -> Any:
        """Find out how many images the memory is enough for; return their outputs."""
        at_once = len(input)
        while True:
            at_once = (at_once + 1) // 2
            free_cached_memory(self.device)
            try:
                outputs = [self.model_inference(part) for part in input.split(at_once)]
            except torch.OutOfMemoryError:
                if at_once == 1:
                    raise
                continue
            if not all(isinstance(output, Tensor) for output in outputs):
                raise ShortageError(
                    f"the memory is enough for {at_once} images: set DATALOADER.TEST.BATCH_SIZE to that"
                )
            logger.warning("Out of memory: from here on %d images are evaluated at a time", at_once)
            self._evaluated_at_once = at_once
            return torch.cat(outputs)

    def evaluation_batches(self, loader: DataLoader) -> Iterable[Any]:
        """Return the batches to evaluate; for subclasses that know a cheaper way to them."""
        return loader

    def _collector(self, loader: DataLoader, selecting: bool) -> PredictionCollector | None:
        """Return what collects the answers of an evaluation; None where they are not wanted."""
        if selecting or not self.cfg.TEST.KEEP_PREDICTIONS:
            return None
        return PredictionCollector(loader.dataset, self.cfg.DATASET.ROOT, self.scale_of_logits())

    def _keep_predictions(self, answers: Predictions | str, record: Mapping[str, Any]) -> dict[str, str]:
        """Write ``predictions.npz``, if it agrees with a record; return what the record then says of it."""
        remove_older(self.output_dir)
        kept = keep(os.path.join(self.output_dir, NAME), answers, record)
        wanted = self.cfg.TEST.KEEP_PREDICTIONS and self.cfg.TEST.KEEP_VAL_PREDICTIONS and record["split"] == "test"
        if wanted and self.val_loader is not None:
            kept |= {f"val_{name}": value for name, value in self._keep_val_predictions(self.val_loader).items()}
        return kept

    def _keep_val_predictions(self, loader: DataLoader) -> dict[str, str]:
        """Evaluate the validation images and write ``predictions-val.npz``; return what the record says of it."""
        logger.info("Evaluate on the *val* set, for predictions alone")
        collector = PredictionCollector(loader.dataset, self.cfg.DATASET.ROOT, self.scale_of_logits())
        for batch in self.evaluation_batches(loader):
            input, label = self.parse_batch_test(batch)
            collector.add(self.model_inference(input), label, batch)
        return keep(os.path.join(self.output_dir, VAL_NAME), self._collected(collector))

    def _collected(self, collector: PredictionCollector | None) -> Predictions | str:
        """Return the predictions that were collected, with names and features of the classes; or why there are none.

        Called before anything else may be done with the model, which might forget the features.
        """
        if collector is None:
            return "TEST.KEEP_PREDICTIONS is False"
        try:
            names = [self.lab2cname.get(label, str(label)) for label in range(collector.num_classes)]
            return collector.collected(names, **self.features_of_classes())
        except ValueError as error:
            return str(error)
        except Exception as error:  # whatever it is: a finished run is not lost to what could not be kept of it
            return f"{type(error).__name__}: {error}"

    def scale_of_logits(self) -> float:
        """Return what the model multiplies cosines with to get its scores; for subclasses that do."""
        return 1.0

    def features_of_classes(self) -> dict[str, Tensor]:
        """Return ``text_features`` and ``frozen_text_features`` (C, E) to keep with predictions, if there are such."""
        return {}

    def _test_data(self, split: str) -> tuple[str, DataLoader]:
        """Return name and loader of a split; the test set stands in for a validation set that is not there."""
        check_availability(split, ["val", "test"], "split")
        if split == "val" and self.val_loader is not None:
            return split, self.val_loader
        if self.test_loader is None:
            raise ValueError(f"DATASET.NAME {self.cfg.DATASET.NAME} has no {split} set to evaluate on")
        if split == "val":
            logger.info("There is no validation set; the test set takes its place")
        return "test", self.test_loader

    def _validates_on_test_images(self) -> bool:
        """Whether the validation list is not there, or has test images in it."""
        val, test = ({item.impath for item in getattr(loader.dataset, "data_source", ())} if loader else set()
                     for loader in (self.val_loader, self.test_loader))  # fmt: skip
        return self.val_loader is None or bool(val & test)

    def parse_batch_test(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return images and labels of a batch, on the device."""
        return self._to_device(batch["img"]), self._to_device(batch["label"])

    def model_inference(self, input: Any) -> Any:
        """Return ``self.model(input)``: scores (B, C)."""
        return self.model(input)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


class TrainerX(SimpleTrainer):
    """A trainer on labelled batches."""

    @property
    def goes_on_inside_epochs(self) -> bool:
        """Whether the loop is this one, not that of a subclass."""
        return type(self).run_epoch is TrainerX.run_epoch

    def run_epoch(self) -> None:
        """Step through the batches; report every ``TRAIN.PRINT_FREQ`` of them, and all if there are fewer.

        Raises:
            FloatingPointError: something in a step, or a parameter after the last one, is not finite.
        """
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        lr = self.interim.lr_at_start()
        self.num_batches, batches = self.epoch_batches()
        reader = StepReader(functools.partial(self._report, losses), self.must_be_finite)
        steps = self.interim.steps(batches, losses, settle=reader.finish)
        end = time.time()
        for self.batch_idx, batch in steps:
            data_time.update(time.time() - end)
            step_lr = self.get_current_lr()
            report = self.step(batch)
            batch_time.update(time.time() - end)
            line = self._line(batch_time, data_time) if self._is_line_due() else None
            step = Step(self.epoch, self.batch_idx, self.num_batches, step_lr, self.get_current_lr(), line)
            reader.add(step, report, self.gradients_to_check())
            if line is not None:
                reader.start()
            reader.collect()
            end = time.time()
        reader.finish()
        self.require_finite_state()
        self.history.append({"epoch": self.epoch + 1, "lr": lr, **{n: m.avg for n, m in losses.meters.items()}})

    def epoch_batches(self) -> tuple[int, Iterable[Any]]:
        """Return the number of batches of an epoch, and the batches."""
        return len(self.train_loader_x), self.train_loader_x

    def step(self, batch: Any) -> Mapping[str, Any] | None:
        """Train on one of the batches; return what to report."""
        return self.forward_backward(batch)

    def must_be_finite(self, name: str) -> bool:
        """Say whether the run ends when a step reports, under this name, what is infinite or NaN; for subclasses.

        By default, for third-party code, it does not: such a trainer checks its loss itself (:meth:`detect_anomaly`).
        """
        return False

    def gradients_to_check(self) -> Mapping[str, Tensor]:
        """Return the gradients of a step that must be finite, by the names of the parameters; for subclasses."""
        return {}

    def _is_line_due(self) -> bool:
        """Say whether the present step has a line in the log."""
        done, frequency = self.batch_idx + 1, self.cfg.TRAIN.PRINT_FREQ
        return frequency >= 1 and not (done % frequency and self.num_batches >= frequency)

    def _line(self, batch_time: AverageMeter, data_time: AverageMeter) -> tuple[str, str]:
        """Return what stands before and after the numbers in the line of the present step."""
        done = self.batch_idx + 1
        left = self.num_batches - done + (self.max_epoch - self.epoch - 1) * self.num_batches
        parts = [
            f"epoch [{self.epoch + 1}/{self.max_epoch}]",
            f"batch [{done}/{self.num_batches}]",
            f"time {batch_time.val:.3f} ({batch_time.avg:.3f})",
            f"data {data_time.val:.3f} ({data_time.avg:.3f})",
        ]
        after = f"lr {self.get_current_lr():.4e} eta {timedelta(seconds=int(left * batch_time.avg))}"
        return " ".join(parts), after

    def _report(self, losses: MetricMeter, step: Step, numbers: dict[str, float]) -> None:
        """Write the events of a step and, if it is due, its line."""
        losses.update(numbers)
        index = step.epoch * step.num_batches + step.batch
        for name, meter in losses.meters.items():
            self.write_scalar(f"train/{name}", meter.avg, index)
        self.write_scalar("train/lr", step.next_lr, index)
        if step.line is not None:
            before, after = step.line
            logger.info("%s", " ".join(part for part in (before, str(losses), after) if part))

    def parse_batch_train(self, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Return images, labels and domains of a batch, on the device."""
        return tuple(self._to_device(batch[key]) for key in ("img", "label", "domain"))


class TrainerXU(TrainerX):
    """A trainer on labelled and unlabelled batches; ``TRAIN.COUNT_ITER`` says which of them measure the epoch."""

    def epoch_batches(self) -> tuple[int, Iterable[Any]]:
        """Return the number of steps of an epoch, and pairs of a labelled and an unlabelled batch."""
        if self.train_loader_u is None:
            raise ValueError(f"{type(self).__name__} needs unlabelled data; {self.cfg.DATASET.NAME} has none")
        x, u = len(self.train_loader_x), len(self.train_loader_u)
        counts = {"train_x": x, "train_u": u, "smaller_one": min(x, u)}
        check_availability(self.cfg.TRAIN.COUNT_ITER, list(counts), "value of TRAIN.COUNT_ITER")
        count = counts[self.cfg.TRAIN.COUNT_ITER]
        endless = zip(_Endless(self.train_loader_x), _Endless(self.train_loader_u), strict=False)
        return count, itertools.islice(endless, count)

    def step(self, batch: tuple[Any, Any]) -> Mapping[str, Any] | None:
        """Train on a pair of batches; return what to report."""
        return self.forward_backward(*batch)

    def forward_backward(  # type: ignore[override]  # two batches, as in Dassl
        self, batch_x: Any, batch_u: Any
    ) -> Mapping[str, Any] | None:
        """Take a training step; return what to report of it."""
        raise NotImplementedError

    def parse_batch_train(  # type: ignore[override]  # two batches, as in Dassl
        self, batch_x: Mapping[str, Any], batch_u: Mapping[str, Any]
    ) -> tuple[Tensor, ...]:
        """Return labelled images, their labels and unlabelled images, on the device."""
        return self._to_device(batch_x["img"]), self._to_device(batch_x["label"]), self._to_device(batch_u["img"])


class _Endless(Iterator[Any]):
    """The batches of a loader, again and again; the first pass begins at once, since each draws when it begins."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.batches = loader, iter(loader)

    def __next__(self) -> Any:
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)


def _with_progress_bar(batches: Iterable[Any], title: str, count: int) -> Iterator[Any]:
    """Show on standard error how many are done, if it takes more than seconds; less often without a terminal."""
    interval = 0.2 if sys.stderr.isatty() else 30
    for batch in tqdm(batches, desc=title, total=count, delay=3, mininterval=interval, maxinterval=max(interval, 10)):
        raise_if_asked()  # a signal may have come where Python drops what a handler raises, as in __del__
        yield batch


__getattr__ = names_from(
    __name__,
    {
        "SimpleNet": "dassl.modeling.network",
        "build_backbone": "dassl.modeling",
        "build_head": "dassl.modeling",
        "load_checkpoint": "dassl.utils",
        "resume_from_checkpoint": "dassl.utils",
        "save_checkpoint": "dassl.utils",
        "tolist_if_not": "dassl.utils",
    },
)
