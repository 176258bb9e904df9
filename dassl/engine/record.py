"""``metrics.json``: all that a table needs to know of one evaluation, without its log."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from yacs.config import CfgNode

import dassl
from dassl.config import get_cfg_default
from dassl.data.evidence import images_hash, noise_name, split_hash, support_name
from dassl.data.samplers import keyed_streams
from dassl.engine.build import TRAINER_REGISTRY
from dassl.engine.comparison import NO_EFFECT, OF_ONE_RUN, differences, flatten, to_dict
from dassl.utils import RUNS_IN_PROCESS, read_json
from dassl.utils.file_identity import file_digests
from dassl.utils.torchtools import device_name, peak_memory

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # is raised when code that all trainers share makes other numbers of the same configuration


def code_version_of(kind: Any) -> str:
    """Return the version of what a trainer class computes: the number of the shared code, then the class's own."""
    return f"{CODE_VERSION}.{kind.code_version}"


def config_hash(cfg: CfgNode, random_streams: str = "keyed") -> str:
    """Return a SHA-256 that is equal for runs that compute the same.

    It is that of the configuration without the keys ``NO_EFFECT`` and without the nodes that other trainers declare
    for themselves, so that it stays when a trainer is added.

    Args:
        cfg: the configuration.
        random_streams: of the trainer; what is drawn from the global generators depends on the number of workers.
    """
    tree = to_dict(cfg)
    keyed = keyed_streams(cfg, random_streams)
    for name in _nodes_of_others(cfg.TRAINER.NAME):
        tree["TRAINER"].pop(name, None)
    for name in NO_EFFECT.keys() - (() if keyed else {"DATALOADER.NUM_WORKERS"}):
        *nodes, key = name.split(".")
        functools.reduce(dict.__getitem__, nodes, tree).pop(key, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _nodes_of_others(trainer: str) -> set[str]:
    """Return the nodes under ``TRAINER`` that other trainers declare; none if this one declares nothing itself."""
    declared = {name: _declared_nodes(kind) for name, kind in TRAINER_REGISTRY}
    own = declared.get(trainer)
    return set().union(*declared.values()) - own if own else set()


def _declared_nodes(kind: type) -> set[str]:
    """Return the names of the nodes that a trainer class and its base classes declare."""
    return {node for base in kind.__mro__ for node in vars(base).get("CONFIG", {})}


def checkpoint_evidence(checkpoints: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Return the files that hold what was evaluated, with their SHA-256, and what they were trained on.

    Args:
        checkpoints: by model, the path of its file and the configuration in it (``{}`` where it has none).

    Returns:
        ``files`` (``<model>/<file>`` -> digest), and ``dataset``, ``seed``, ``shots`` and ``subsample_classes`` of the
        training as far as the files say; None if nothing was saved or loaded.
    """
    if not checkpoints:
        return None
    paths = {f"{name}/{os.path.basename(path)}": path for name, (path, _) in checkpoints.items()}
    files = dict(zip(paths, file_digests(list(paths.values())), strict=True))
    _, config = next(iter(checkpoints.values()))
    data = config.get("DATASET", {})
    said = {"dataset": data.get("NAME"), "seed": config.get("SEED"), "shots": data.get("NUM_SHOTS")}
    said["subsample_classes"] = data.get("SUBSAMPLE_CLASSES")
    return {"files": files, **{name: value for name, value in said.items() if value is not None}}


@functools.cache
def versions() -> dict[str, str | None]:
    """Return the versions of what the numbers may depend on; None for what is not installed."""
    found = installed("torchvision", "numpy", "pillow")
    return {"python": platform.python_version(), "torch": torch.__version__, **found, "dassl": dassl.__version__}


def installed(*packages: str) -> dict[str, str | None]:
    """Return the versions of packages; None for what is not installed."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@functools.cache
def commit() -> str | None:
    """Return the git commit of this code, with ``-dirty`` if files were changed since; None where nobody knows.

    A built package has it in a file. A copy that only lies inside a checkout of something else is not of its commit.
    """
    folder = os.path.dirname(__file__)
    built = os.path.join(folder, "commit.txt")
    if os.path.isfile(built):
        with open(built, encoding="utf-8") as file:
            return file.read().strip()
    tracked = ["git", "-C", folder, "ls-files", "--error-unmatch", os.path.basename(__file__)]
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(tracked, capture_output=True, timeout=10, check=True)
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def recordable(compute: Callable[[], Any]) -> tuple[Any, str]:
    """Return what ``compute`` returns and ``""``; or None and why not, where it fails or returns no plain data."""
    try:
        value = compute()
        json.dumps(value)
    except Exception as error:  # whatever it is: a finished run is not lost to what could not be noted of it
        return None, f"{type(error).__name__}: {error}"
    return value, ""


def require_own_result(path: str, cfg: CfgNode | None = None) -> None:
    """Refuse to evaluate where the result of another run lies, which would be overwritten.

    Args:
        path: where the evaluation's ``metrics.json`` will be.
        cfg: its configuration, if an evaluation with other settings is refused too, not only a training.

    Raises:
        ValueError: another run's result is there; the sentence says which.
    """
    try:
        there = read_json(path) if os.path.isfile(path) else {}
    except ValueError:
        return  # a damaged one is no loss
    if not isinstance(there, dict):
        return
    what = "the result of a training" if there.get("history") else ""
    if cfg and not what:
        defaults = flatten(to_dict(get_cfg_default()))
        other = differences(there.get("config") or {}, to_dict(cfg), OF_ONE_RUN, defaults)
        what = f"of an evaluation with other settings ({'; '.join(map(str, other[:3]))})" if other else ""
    if what:
        raise ValueError(f"{path} is {what}, which this evaluation would overwrite: give it an --output-dir of its own")


def make_record(trainer: Any, split: str, results: Mapping[str, float], eval_seconds: float) -> dict[str, Any]:
    """Return what ``metrics.json`` holds about one evaluation.

    What cannot be found out is left out: ``not_recorded`` names each such field with the reason, and so does a warning.

    Args:
        trainer: the ``SimpleTrainer``, after evaluating.
        split: ``"test"`` or ``"val"``.
        results: what the evaluator returned; each becomes a field.
        eval_seconds: how long the evaluation took.
    """
    record: dict[str, Any] = {}
    evidence = dict(trainer.training_evidence)
    not_recorded = dict(evidence.pop("not_recorded", {}))
    given = {"split": split, "eval_seconds": eval_seconds, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    fields = _fields(trainer, split) | {name: partial(float, value) for name, value in results.items()}
    for name, compute in fields.items():
        record[name], not_recorded[name] = recordable(compute)
    record |= given | evidence
    extra, not_recorded["extra_metrics"] = recordable(lambda: dict(trainer.extra_metrics()))
    for name, value in (extra or {}).items():
        if name in record:
            not_recorded[f"extra_metrics.{name}"] = "the engine has a field of this name"
        else:
            record[name] = value
    not_recorded = {name: reason for name, reason in not_recorded.items() if reason}
    if not_recorded:
        logger.warning("metrics.json lacks %s", "; ".join(f"{name} ({why})" for name, why in not_recorded.items()))
        record["not_recorded"] = not_recorded
    return {name: value for name, value in record.items() if name not in not_recorded}


def _fields(trainer: Any, split: str) -> dict[str, Callable[[], Any]]:
    """Return a function for each field of a record, by its name."""
    cfg = trainer.cfg

    def evaluated() -> Any:
        return (trainer.val_loader if split == "val" else trainer.test_loader).dataset

    def data() -> Any:
        return trainer.dm.dataset

    def trained() -> dict[int, Any]:
        parameters = (p for model in trainer._models.values() for p in model.parameters())
        return {id(p): p.numel() for p in parameters if p.requires_grad}

    return {
        "trainer": lambda: cfg.TRAINER.NAME,
        "dataset": lambda: cfg.DATASET.NAME,
        "subsample_classes": lambda: cfg.DATASET.SUBSAMPLE_CLASSES,
        "seed": lambda: cfg.SEED,
        "shots": lambda: cfg.DATASET.NUM_SHOTS,
        "backbone": lambda: cfg.MODEL.BACKBONE.NAME,
        "epoch": lambda: trainer.model_epoch,
        "per_class": lambda: trainer.evaluator.per_class(),
        "num_classes": lambda: trainer.num_classes,
        "num_test": lambda: len(evaluated()),
        "num_train": lambda: len(data().train_x),
        "history": lambda: trainer.history,
        "train_seconds": lambda: trainer.train_seconds,
        "runs_in_process": RUNS_IN_PROCESS.get,  # that took turns: their seconds of training overlap
        "peak_memory_bytes": lambda: peak_memory(trainer.device),
        "versions": versions,
        "device": lambda: device_name(trainer.device),
        "commit": commit,
        "config_hash": lambda: config_hash(cfg, trainer.random_streams),
        "split_hash": lambda: split_hash(cfg.DATASET.ROOT, data().train_x, data().test),
        "draw_source": lambda: getattr(data(), "draw_source", None),
        "full_split_hash": lambda: getattr(data(), "full_split_hash", None),
        "support": lambda: support_name(_training_keys(trainer)) if trainer.learns else None,
        "label_noise": lambda: noise_name(_training_keys(trainer)) if trainer.learns else None,
        "selection": lambda: trainer.selection,
        "transductive": lambda: cfg.TEST.TRANSDUCTIVE or None,
        "checkpoint": lambda: checkpoint_evidence(trainer.checkpoint_files),
        "test_images_hash": lambda: images_hash(data().val if split == "val" else data().test),
        "config": lambda: to_dict(cfg),
        "recipe": lambda: code_version_of(type(trainer)),
        "learns": lambda: trainer.learns,
        "trainable_parameters": lambda: sum(trained().values()),
    }


def _training_keys(trainer: Any) -> Mapping[str, Any]:
    """Return the node ``DATASET`` of the configuration that what was evaluated was trained with."""
    config: Mapping[str, Any] = next((config for _, config in trainer.checkpoint_files.values()), {})
    return config.get("DATASET") or to_dict(trainer.cfg.DATASET)
