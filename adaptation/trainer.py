"""What all trainers of methods share: the frozen backbone, precision, the optimiser over what the method owns,
forward and backward, checkpoints.
"""

import logging
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from adaptation.authoring import (
    build,
    first_step_explained,
    require_declared,
    require_learning,
    warn_of_idle,
    without_gradient,
)
from adaptation.dept import check_dept, check_dept_state
from adaptation.feature_cache import cached_batches
from adaptation.former_names import translate_trainer
from adaptation.method import Method
from adaptation.templates import DEFAULT, fill
from adaptation.transduction import TRANSCLIP, TransductiveEvaluator, kept_features
from clip.backbone import Backbone
from clip.chunking import format_bytes
from clip.clip import PIXEL_MEAN, PIXEL_STD
from clip.loading import load_backbone
from clip.model import ARCHITECTURES
from clip.precision import PRECISIONS, Precision
from dassl.config import get_cfg_default
from dassl.data.samplers import keyed_streams
from dassl.engine import TrainerX
from dassl.engine.authoring import place_of
from dassl.engine.comparison import OF_ONE_RUN, differences, to_dict
from dassl.engine.record import code_version_of
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, group_equal, load_checkpoint, stream_seed
from dassl.utils.checkpoints import pointed_name, require_finite
from dassl.utils.torchtools import free_cached_memory

logger = logging.getLogger(__name__)

LEAST_MEMORY = 2**14  # bytes of activations of a step, below which smaller chunks are no help
FINAL_MODELS = ("last_step", "best_val")


@contextmanager
def names_of_keys() -> Iterator[None]:
    """Add to the sentence of a mistake with the backbone's path by which key it is set."""
    try:
        yield
    except (ValueError, OSError) as error:
        if len(error.args) == 1 and "path of the backbone" in str(error):
            error.args = (f"{error} (MODEL.BACKBONE.PATH)",)
        raise


@lru_cache(maxsize=2)
def frozen_backbone(name: str, path: str, precision: str, device: torch.device) -> Backbone:
    """The backbone on its device in its precision; runs that follow each other in one process share it."""
    logger.info("Loading CLIP (backbone: %s)", name)
    with names_of_keys():
        backbone = load_backbone(name, path)
    Precision(precision, device).prepare(backbone)
    return backbone


@lru_cache(maxsize=4)
@torch.no_grad()
def frozen_text_features(
    name: str, path: str, precision: str, device: torch.device, limit: int | None, classnames: tuple[str, ...]
) -> torch.Tensor:
    """Features (C, E) of `a photo of a {}.` by the frozen text encoder; seeds in one process share them."""
    backbone = frozen_backbone(name, path, precision, device).with_memory_limit(limit)
    with Precision(precision, device).autocast():
        return backbone.encode_text(backbone.tokenize(fill(DEFAULT, list(classnames))))


def fill_known_input(cfg: CfgNode, given: Container[str]) -> None:
    """Set the INPUT keys that a backbone's name alone says (OpenAI's, the carried one), unless they were given.


    So they hold for trainers too that know nothing of `fill_input`.

    Args:
        cfg: the configuration, which is changed.
        given: the dotted keys that files and the command line give; these stay.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name in ARCHITECTURES:
        side = ARCHITECTURES[name]["image_resolution"]
        known = {
            "SIZE": (side, side),
            "INTERPOLATION": "bicubic",
            "PIXEL_MEAN": [*PIXEL_MEAN],
            "PIXEL_STD": [*PIXEL_STD],
        }
        cfg.INPUT.update({key: value for key, value in known.items() if f"INPUT.{key}" not in given})


def fill_input(cfg: CfgNode, backbone: Backbone) -> CfgNode:
    """A copy of the configuration whose INPUT keys agree with the backbone.

    Keys that still have the engine's default are filled from the backbone; no transforms at all are filled with the
    normalisation. `FILLED` of dassl/engine/comparison.py names these keys.

    Raises:
        ValueError: a key was set to something that the backbone cannot take (both values are named).
    """
    default, cfg = get_cfg_default().INPUT, cfg.clone()
    cfg.defrost()
    for key, value in backbone.input_settings().items():
        current = cfg.INPUT[key]
        if not _same(current, default[key]) and not _same(current, value):
            raise ValueError(
                f"INPUT.{key} is {current}, but the backbone {backbone.name} takes {value}: leave the key out of the "
                "configuration or set it to that"
            )
        cfg.INPUT[key] = value
    cfg.INPUT.TRANSFORMS = cfg.INPUT.TRANSFORMS or ("normalize",)
    if not {"normalize", "instance_norm"} & set(cfg.INPUT.TRANSFORMS):
        logger.warning(
            "INPUT.TRANSFORMS %s has no normalize: %s takes images as they are, which it was not trained on",
            tuple(cfg.INPUT.TRANSFORMS), backbone.name,
        )  # fmt: skip
    cfg.freeze()
    return cfg


def _same(a: object, b: object) -> bool:
    """Whether two values of a key say the same; numbers to 1e-4."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return abs(a - b) <= 1e-4 if isinstance(a, int | float) and isinstance(b, int | float) else a == b


class MethodTrainer(TrainerX):
    """Trains and evaluates one `Method`. A subclass declares its keys and builds the method; the rest is here.

    Class attributes:
        CONFIG: the method's keys with their defaults, `PREC` among them, as one node by its name under `TRAINER`.
        checkpoint_dir: the directory name of its checkpoints.
        most_views: how many views of an image a step can take (DATALOADER.K_TRANSFORMS).
        lr_per_step: whether the learning rate moves on after each batch rather than each epoch.
        supports_stacking: whether its steps may be computed together with those of other seeds
            (`adaptation.stacking`): a trainer whose loss depends on more than parameters, images and labels, or that
            replaces `backward`, may not.
    """

    random_streams = "keyed"
    code_version = 1
    model: Method
    CONFIG: dict[str, CfgNode] = {}
    checkpoint_dir = "prompt_learner"
    most_views = 1
    lr_per_step = False
    supports_stacking = True
    transductive = (TRANSCLIP,)
    stacking: Mapping[str, Any] = {}  # what `adaptation.stacking` keeps of a run that it computes together with others
    config_node = ""  # the name of that node
    _idle: set[str] = set()  # names of parameters that no epoch so far has ended with a gradient of
    replaceable = True  # a dropped-in trainer of the same name takes its place

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        cls.config_node = next(iter(cls.CONFIG), "")
        translate_trainer(cls)

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """The method for these classes, from this trainer's keys (`self.settings`)."""
        raise NotImplementedError

    @property
    def settings(self) -> CfgNode:
        """The method's own configuration node."""
        return self.cfg.TRAINER[self.config_node]

    @property
    def memory_limit(self) -> int | None:
        """Bytes that a step's activations may take; None for what is free."""
        return int(self.cfg.TRAIN.MEMORY_GB * 2**30) or None

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what cannot run before anything is loaded: an unknown precision, no epochs, an unknown final model."""
        require_declared(type(self))
        if cfg.TRAINER[self.config_node].PREC not in PRECISIONS:
            raise ValueError(
                f"TRAINER.{self.config_node}.PREC is {cfg.TRAINER[self.config_node].PREC!r}, but must be one of "
                f"{', '.join(PRECISIONS)}"
            )
        check_dept(cfg, self.CONFIG)
        if cfg.OPTIM.MAX_EPOCH < 1:
            raise ValueError(f"OPTIM.MAX_EPOCH is {cfg.OPTIM.MAX_EPOCH}, but must be at least 1")
        if cfg.INPUT.NO_TRANSFORM or not 1 <= cfg.DATALOADER.K_TRANSFORMS <= self.most_views:
            raise ValueError(
                f"{cfg.TRAINER.NAME} takes {self.most_views} transformed view(s) of an image: leave INPUT.NO_TRANSFORM "
                f"({cfg.INPUT.NO_TRANSFORM}) at False, DATALOADER.K_TRANSFORMS ({cfg.DATALOADER.K_TRANSFORMS}) at that"
            )
        if cfg.TEST.FINAL_MODEL not in FINAL_MODELS:
            raise ValueError(f"TEST.FINAL_MODEL is {cfg.TEST.FINAL_MODEL!r}, but must be one of {FINAL_MODELS}")

    def set_model_mode(self, mode: str = "train", names=None) -> None:
        """Set the mode of what is registered; constants of training are computed in the run's precision."""
        with self.precision.autocast():
            super().set_model_mode(mode, names)

    def require_own(self, checkpoint: Mapping, path: str) -> None:
        """Refuse to go on from a checkpoint of a run with other settings (each is named), or on another backbone."""
        now = code_version_of(type(self))
        other = differences({"recipe": checkpoint.get("recipe", now)}, {"recipe": now})
        other += differences(checkpoint.get("config", {}), to_dict(self.cfg), OF_ONE_RUN)
        if other:
            raise ValueError(
                f"{Path(path).parents[1]} holds a run with other settings ({'; '.join(map(str, other[:5]))}): choose "
                "another --output-dir, or delete that one"
            )
        with names_of_keys():
            self.backbone.require_identity(checkpoint, path)
        super().require_own(checkpoint, path)

    def progress(self) -> dict:
        """What the engine needs to go on, the state of the gradient scaler (empty where none is used), and with which
        other runs the steps are computed."""
        stacking = {"stacking": dict(self.stacking)} if self.stacking else {}
        return {**super().progress(), "scaler": self.precision.scaler.state_dict(), **stacking}

    def restore_progress(self, progress: Mapping) -> None:
        """Take over what `progress` returned."""
        super().restore_progress(progress)
        if progress.get("scaler"):
            self.precision.scaler.load_state_dict(progress["scaler"])
        self.stacking = progress.get("stacking", {})

    def build_data_loader(self) -> None:
        """Load the backbone, fill the INPUT keys from it, then build the loaders."""
        self.precision = Precision(self.settings.PREC, self.device)
        node = self.cfg.MODEL.BACKBONE
        shared = frozen_backbone(node.NAME, node.PATH, self.settings.PREC, self.device)
        self.backbone = shared.with_memory_limit(self.memory_limit)
        self.cfg = fill_input(self.cfg, self.backbone)
        super().build_data_loader()
        # runs that share the global generators cannot take turns: each is carried out whole
        self.supports_stacking = self.supports_stacking and keyed_streams(self.cfg, self.random_streams)

    def build_model(self) -> None:
        """Build the method, and the optimiser and scheduler over what it owns."""
        classnames = self.dm.dataset.classnames
        tokens = self.backbone.tokenize(fill(DEFAULT, classnames))
        self._warn_of_unknown_words(classnames, tokens)
        self._check_same_names(classnames, tokens)
        with torch.random.fork_rng():
            if self.cfg.SEED >= 0:
                torch.manual_seed(stream_seed(self.cfg.SEED, "init"))
            with self.precision.autocast():
                self.model = build(self, classnames).to(self.device).eval()
        require_learning(type(self), self.model)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        logger.info("Trainable parameters: %s", f"{count_num_param(params=trainable):,}")
        if self.cfg.MODEL.INIT_WEIGHTS:
            self._start_from(self.cfg.MODEL.INIT_WEIGHTS)
        optim, self.sched = self.build_optim(trainable) if trainable else (None, None)
        if optim is not None:
            self.optim = optim
        if self.model.state_dict():
            self.register_model(self.checkpoint_dir, self.model, optim, self.sched)

    def _start_from(self, path: str) -> None:
        """Load the learned state of a checkpoint, or of a plain state dict, to train on from there."""
        checkpoint = load_checkpoint(path)
        check_dept_state(checkpoint.get("state_dict", checkpoint), self.model, path)
        try:
            self.model.load_state_dict(checkpoint.get("state_dict", checkpoint))
        except ValueError as error:
            raise ValueError(f"MODEL.INIT_WEIGHTS {path}: {error}") from error

    def build_optim(self, trainable: list[nn.Parameter]) -> tuple[Optimizer, LRScheduler | None]:
        """The optimiser over what is trained, and the schedule of its learning rate, as OPTIM says.

        Where `lr_per_step`, the schedule's epochs are steps.
        """
        optim, node = build_optimizer(trainable, self.cfg.OPTIM), self.cfg.OPTIM.clone()
        if self.lr_per_step:
            node.defrost()
            node.MAX_EPOCH = self.max_epoch * len(self.train_loader_x)
        return optim, build_lr_scheduler(optim, node)

    def _warn_of_unknown_words(self, classnames: list[str], tokens: torch.Tensor) -> None:
        """Say which class names have words whose embedding was never trained (rows of zeros in the token table)."""
        untrained = ~self.backbone.token_embedding(tokens).any(dim=-1) & (tokens > 0)
        names = [name for name, row in zip(classnames, untrained.tolist(), strict=True) if any(row)]
        if names:
            logger.warning("%s never saw some words of these class names: %s", self.backbone.name, ", ".join(names))

    def _check_same_names(self, classnames: list[str], tokens: torch.Tensor) -> None:
        """Refuse classes whose sentences have the same tokens, unless DATASET.ALLOW_SAME_NAMES or a published list has
        them; say so in any case. Tokens are (C, L)."""
        groups = group_equal(classnames, map(tuple, tokens.tolist()))
        known = set(getattr(self.dm.dataset, "same_names", ()))
        for group in groups:
            logger.warning("%s are the same sentence to %s, which cannot tell them apart", group, self.backbone.name)
        unexpected = [group for group in groups if not known.issuperset(group)]
        if unexpected and not self.cfg.DATASET.ALLOW_SAME_NAMES:
            raise ValueError(
                f"DATASET.NAME {self.cfg.DATASET.NAME}: {len(unexpected)} group(s) of classes have names that are the "
                f"same sentence to {self.backbone.name}, such as {' and '.join(map(repr, unexpected[0]))}: give them "
                "names that differ, or set DATASET.ALLOW_SAME_NAMES True to run all the same"
            )

    def train(self) -> None:  # type: ignore[override]  # without arguments, as in Dassl
        """Train and test; a method that learns nothing is only tested."""
        if self._models:
            with first_step_explained(self):
                super().train()
        else:
            logger.info("%s learns nothing: evaluating it", self.cfg.TRAINER.NAME)
            self.test()

    def test(self, split: str | None = None, is_final: bool = False) -> float:
        """Evaluate; with TEST.TRANSDUCTIVE, by answers that depend on all test images."""
        if not self.cfg.TEST.TRANSDUCTIVE or (split == "val" and not is_final):
            return super().test(split, is_final)
        inductive = self.evaluator
        with kept_features(self.model) as features:
            self.evaluator = TransductiveEvaluator(inductive, features)
            try:
                return super().test(split, is_final)
            finally:
                self.evaluator = inductive

    def forward_backward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """One step on one batch; the learning rate moves on at the epoch's last batch (or each: `lr_per_step`)."""
        images, labels = self.parse_batch_train(batch)
        self.optim.zero_grad()
        summary = self.compute_gradients(images, labels)
        self.model_update()
        if self.sched is not None and (self.lr_per_step or self.batch_idx + 1 == self.num_batches):
            self.sched.step()
        return summary

    def compute_gradients(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Give what is learned the gradients of the loss; returns what the log shows of the step.

        Where several runs share a process, `adaptation.stacking` puts itself in this place. A step that is out of
        memory is computed again in smaller chunks.
        """
        try:
            with self.precision.autocast():
                loss, summary = self.model.loss(images, labels)
            self.backward(loss)
            return summary
        except torch.OutOfMemoryError:
            if not self.encode_less():
                raise
        return self.compute_gradients(images, labels)

    def encode_less(self) -> bool:
        """Forget a step that was out of memory, and encode in smaller chunks from here on; False if that is no help."""
        self.model.zero_grad(set_to_none=True)
        free_cached_memory(self.device)
        limit = self.model.backbone.lower_memory_limit()
        said = "Out of memory: the activations of a step may take %s from here on (TRAIN.MEMORY_GB)"
        logger.warning(said, format_bytes(limit))
        return limit > LEAST_MEMORY

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients of a loss, scaled where the precision asks for it.

        Args:
            loss: a scalar, or the K parts of a loss, (K,), whose gradients `combined_gradient` combines.
        """
        scaled = self.precision.scaler.scale(loss)
        if loss.ndim == 0:
            scaled.backward()
        else:
            backward_parts([self], scaled)

    def combined_gradient(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """The gradient of one parameter from those of the K parts of the loss, for a method whose loss is (K,)."""
        raise NotImplementedError(
            f"{place_of(type(self))}: the loss of {type(self).__name__} has several parts, or is no scalar (take its "
            "mean), and combined_gradient does not say how to combine their gradients"
        )

    def model_update(self, names=None) -> None:
        """One optimiser step, through the precision's gradient scaler."""
        self.precision.scaler.step(self.optim)
        self.precision.scaler.update()

    def must_be_finite(self, name: str) -> bool:
        """Losses must be."""
        return "loss" in name

    def gradients_to_check(self) -> Mapping[str, torch.Tensor]:
        """All gradients, unless a gradient scaler looks at them and skips the step."""
        if self.precision.scaler.is_enabled():
            return {}
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None and p.numel()}

    def after_epoch(self) -> None:
        """As the engine's; parameters that no epoch has ended with a gradient of are named after the last."""
        idle = set(without_gradient(self.model))
        if idle == {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}:
            idle = set()  # a run that goes on after the last step of an epoch has taken none of them itself
        self._idle = idle if self.epoch == self.start_epoch else self._idle & idle
        if self.epoch + 1 == self.max_epoch:
            warn_of_idle(self.model, sorted(self._idle))
        super().after_epoch()

    def parse_batch_train(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, H, W) and labels (B,) on the device."""
        return batch["img"].to(self.device, non_blocking=True), batch["label"].to(self.device, non_blocking=True)

    def evaluation_batches(self, loader: DataLoader) -> Iterator[dict]:
        """The batches; the frozen tower's features of their images come from the cache, or are kept there."""
        return cached_batches(self.cfg, loader, self.model, self.precision)

    def model_inference(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, C)."""
        with self.precision.autocast():
            return self.model(images)

    def scale_of_logits(self) -> float:
        """The backbone's logit scale."""
        return float(self.backbone.logit_scale)

    def features_of_classes(self) -> dict[str, torch.Tensor]:
        """The class features that the images were compared with, and the frozen model's; none of CoCoOp's kind."""
        own, node = self.model.evaluated_text_features(), self.cfg.MODEL.BACKBONE
        if own is None:
            return {}
        about = node.NAME, node.PATH, self.settings.PREC, self.device, self.memory_limit
        return {
            "text_features": own,
            "frozen_text_features": frozen_text_features(*about, tuple(self.model.classnames)),
        }

    def extra_metrics(self) -> dict:
        """Which backbone was used, and what the method reports of itself, for metrics.json."""
        with self.precision.autocast():
            return {**self.backbone.identity(), **self.model.report()}

    def checkpoint_extras(self) -> dict:
        """What a checkpoint says of its run beside the weights; plain data."""
        return {
            **super().checkpoint_extras(),
            "trainer": self.cfg.TRAINER.NAME,
            "backbone": self.cfg.MODEL.BACKBONE.NAME,
            **self.backbone.identity(),
            "dataset": self.cfg.DATASET.NAME,
            "recipe": code_version_of(type(self)),
            "classnames": list(self.dm.dataset.classnames),
            "config": to_dict(self.cfg),
        }

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load what a run of this trainer learned, or the learned part of an official whole-model checkpoint.

        Args:
            directory: a run's output directory.
            epoch: which checkpoint; by default the best where the configuration selects by validation, else the last.

        Raises:
            ValueError: no directory was given, or the checkpoint is another trainer's, backbone's or shape's, was
                trained on other weights, or belongs to other classes.
            FileNotFoundError: no such checkpoint (those that are there are named).
        """
        if not self._models:
            logger.info("%s learns nothing: no checkpoint is loaded", self.cfg.TRAINER.NAME)
            return
        if not directory:
            raise ValueError("no directory to load from: evaluating an untrained method is refused (give --model-dir)")
        best = self.cfg.TEST.FINAL_MODEL == "best_val"
        self.load_learned(find_checkpoint(Path(directory) / self.checkpoint_dir, epoch, best))

    def load_learned(self, path: str | os.PathLike[str]) -> None:
        """Load what a checkpoint file holds.

        Raises:
            ValueError: as `load_model`; or the file is damaged, or of a run that diverged.
        """
        path = Path(path)
        checkpoint = load_checkpoint(str(path))
        require_finite(checkpoint, self.model, str(path))
        self._compare_runs(checkpoint, path)
        self.model.load_state_dict(self._state_for_classes(checkpoint, path))
        self.model_epoch = checkpoint.get("epoch") or 0
        self.note_checkpoint(self.checkpoint_dir, str(path), checkpoint)
        logger.info("Loading weights to %s from %s (epoch = %s)", self.checkpoint_dir, path, checkpoint.get("epoch"))

    def _compare_runs(self, checkpoint: dict, path: Path) -> None:
        """Refuse the checkpoint of another trainer or backbone; say which of the method's settings are not those."""
        for key, own in self.checkpoint_extras().items():
            if key in ("trainer", "backbone") and checkpoint.get(key, own) != own:
                raise ValueError(f"{path} was written with {key} {checkpoint[key]!r}, but this run's {key} is {own!r}")
        with names_of_keys():
            self.backbone.require_identity(checkpoint, path)
        kept = checkpoint.get("config", {}).get("TRAINER", {}).get(self.config_node, {})
        if other := differences(kept, to_dict(self.settings), prefix=f"TRAINER.{self.config_node}."):
            said = "; ".join(map(str, other))
            logger.warning("%s was trained with other settings than this evaluation has: %s", path, said)

    def _state_for_classes(self, checkpoint: dict, path: Path) -> Mapping[str, torch.Tensor]:
        """The learned state of a checkpoint, for this run's classes where it says for which it was trained."""
        state, trained = checkpoint.get("state_dict", checkpoint), checkpoint.get("classnames")
        check_dept_state(state, self.model, str(path))
        if trained is None or list(trained) == self.model.classnames:
            return state
        transfer, name = self.class_transfer(self.cfg), self.cfg.TRAINER.NAME
        if transfer == "none" or (transfer == "subset" and not set(self.model.classnames) <= set(trained)):
            raise ValueError(
                f"{path} was trained on other classes ({len(trained)}: {', '.join(trained[:3])}, ...), and what {name} "
                "learns belongs to its classes: it cannot be evaluated on this list"
            )
        return self.model.select_classes(state, list(trained))


def backward_parts(trainers: Sequence[MethodTrainer], parts: torch.Tensor) -> None:
    """Set the gradients of what runs learn from those of the parts (K,) of a loss, as their trainers combine them."""
    owners = [(trainer, p) for trainer in trainers for p in trainer.model.parameters() if p.requires_grad]
    learned = [p for _, p in owners]
    gradients = [torch.autograd.grad(part, learned, retain_graph=True) for part in parts]
    for (trainer, parameter), *own in zip(owners, *gradients, strict=True):
        parameter.grad = trainer.combined_gradient(own)


def find_checkpoint(folder: Path, epoch: int | None, best: bool) -> Path:
    """The checkpoint file of an epoch, the best one, or the last that a run wrote.

    Raises:
        FileNotFoundError: it is not there; the sentence names those that are.
    """
    if epoch:
        path = folder / f"model.pth.tar-{epoch}"
    elif best:
        path = folder / "model-best.pth.tar"
    else:
        path = folder / (pointed_name(str(folder)) or "checkpoint")
    if not path.is_file() or path.name == "checkpoint":
        if not folder.is_dir():
            raise FileNotFoundError(f"no checkpoint at {path}: there is no folder {folder}")
        there = sorted(file.name for file in folder.glob("model*"))
        raise FileNotFoundError(f"no checkpoint at {path}; in that folder: {', '.join(there) or 'nothing'}")
    return path
