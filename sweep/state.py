"""What of a sweep is there already. Nothing is deleted here, except by `redo`."""

import argparse
import functools
import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import protocols  # noqa: F401 - declares the directories of runs
import train
from dassl.config import get_cfg_default
from dassl.engine.comparison import differences, flatten, to_dict
from dassl.engine.record import code_version_of
from dassl.utils import write_json
from dassl.utils.file_identity import file_digests
from dassl.utils.locks import run_lock
from results.evidence import REPEATED, contradictions, unlike_directory
from results.records import FAILURE, METRICS, NEEDED, read_failure, read_metrics
from sweep.images import Images
from sweep.method_configs import trainer_class
from sweep.plan import Run

logger = logging.getLogger(__name__)

REQUEST = "sweep.json"  # what was asked of a run, written when it starts


class AnotherConfiguration(ValueError):
    """A directory holds a run that was made with other settings, or a damaged one."""


@dataclass
class Progress:
    """The runs of a sweep.

    Attributes:
        complete: with their results.
        todo: with what is there of them, if they were interrupted.
        diverged: those that diverged, and those that need them, with reasons; they would diverge again.
    """

    complete: list[Run] = field(default_factory=list)
    todo: list[Run] = field(default_factory=list)
    diverged: dict[Run, str] = field(default_factory=dict)


def examine(runs: list[Run]) -> Progress:
    """Sort the runs into complete ones, those that diverged with these settings and this code, and others.

    Raises:
        AnotherConfiguration: a directory holds another configuration's run; names the first and what differs.
        ValueError, FileNotFoundError: a run's arguments are wrong.
    """
    progress, images = Progress(), Images()
    for run in runs:
        _require_directory(run)
        if finished(run, images):
            progress.complete.append(run)
        elif reason := divergence(run.output_dir):
            progress.diverged[run] = f"{reason}. It is not repeated, for it would diverge again; --redo repeats it"
        else:
            progress.todo.append(run)
    lost = {run.output_dir for run in progress.diverged}
    for run in [run for run in progress.todo if run.needs in lost]:
        progress.todo.remove(run)
        progress.diverged[run] = f"not tried: {run.needs} diverged"
    return progress


def divergence(directory: str) -> str:
    """Why the run in a directory diverged, as it was written down; "" if it did not."""
    if os.path.isfile(os.path.join(directory, METRICS)):
        return ""
    kind, reason = read_failure(os.path.join(directory, FAILURE))
    return reason if kind == "diverged" else ""


def _require_directory(run: Run) -> None:
    """Raise a ValueError if a run's settings are not what its directory says, which KEY VALUE pairs can bring about."""
    wanted = requested(run.argv)
    fields = {field: wanted[key] for field, key in REPEATED.items() if key in wanted}
    fields["learns"] = trainer_class(run.place.trainer).learns
    for name, value, known in unlike_directory(run.place, fields):
        raise ValueError(
            f"{run.output_dir}: its settings have {name} {value}, but the directory says {known}; neither KEY VALUE "
            "pairs nor a file of one's own may contradict what the sweep calls a run"
        )


def finished(run: Run, images: Images | None = None) -> bool:
    """Whether a run's result is there, and that of the run that it needs, whose checkpoint it has to be of.

    Raises as `examine`.
    """
    record = _result(run, requested(run.argv), images)
    if not record or not run.needs:
        return bool(record)
    needed = os.path.join(run.needs, METRICS)
    return os.path.isfile(needed) and _evaluates(record, run.needs, read_metrics(needed))


def _evaluates(record: Mapping[str, Any], folder: str, training: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of the checkpoint that a training left, by its content.

    Where the record is too old to say of which it is, by the times at which the results were written.
    """
    evaluated = record.get("checkpoint", {}).get("files", {})
    left = training.get("checkpoint", {}).get("files", {})
    for name, digest in evaluated.items():
        path = os.path.join(folder, name)
        there = left.get(name) or (file_digests([path])[0] if os.path.isfile(path) else digest)
        if there != digest:
            return False
    return bool(evaluated) or training.get("created", "") <= record.get("created", "")


def _result(run: Run, wanted: Mapping[str, Any], images: Images | None = None) -> dict[str, Any]:
    """The record of the run's result, {} if there is none.

    Raises:
        AnotherConfiguration: it was made with other settings, by another recipe, or on other weights or images.
    """
    metrics, request = (os.path.join(run.output_dir, name) for name in (METRICS, REQUEST))
    path = next((path for path in (metrics, request) if os.path.isfile(path)), "")
    if not path:
        return {}
    try:
        record = read_metrics(path, NEEDED if path == metrics else ())
    except ValueError as error:
        raise AnotherConfiguration(f"{error}: --redo deletes and repeats the run") from error
    found = compare(wanted, record.get("config", {})) + _other_code_or_weights(run, wanted, record)
    if path == metrics:
        found += _other_epoch(run, record)
        found += [text] if (text := contradictions(run.place, record)) else []
        found += images.changed(run, wanted, record) if images else []
    if found:
        raise AnotherConfiguration(
            f"{run.output_dir} holds a run with other settings ({'; '.join(found[:4])}). Give another --output, "
            "or --redo, which deletes and repeats the runs of this sweep that differ"
        )
    return record if path == metrics else {}


def _other_epoch(run: Run, record: Mapping[str, Any]) -> list[str]:
    """Whether an evaluation is of another epoch than `--load-epoch` asks for."""
    if "--load-epoch" not in run.argv:
        return []
    epoch = int(run.argv[run.argv.index("--load-epoch") + 1])
    there = record.get("epoch")
    return [f"epoch {there} there, {epoch} wanted"] if there != epoch else []


def _other_code_or_weights(run: Run, wanted: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """In which recipe and weights a run differs from what would be used now, where its record says which they were."""
    found = [("recipe", record.get("recipe"), code_version_of(trainer_class(run.place.trainer)))]
    if record.get("backbone_digest"):
        now = _weights_digest(wanted["MODEL.BACKBONE.NAME"], wanted["MODEL.BACKBONE.PATH"])
        found.append(("digest of the weights", record["backbone_digest"][:12], now[:12]))
    return [f"{what}: {there} there, {now} now" for what, there, now in found if there and now and there != now]


@functools.cache
def _weights_digest(name: str, path: str) -> str:
    """The digest of the weights in a file of the user's, which may have changed; "" for weights that have a name alone.

    These are verified when they are loaded, and reading them here would delay every sweep by seconds.
    """
    from clip.loading import load_backbone

    return load_backbone(name, path).digest if os.path.isfile(path or name) else ""


def requested(argv: tuple[str, ...]) -> dict[str, Any]:
    """The configuration of a run as dotted keys, without those that change nothing about the result."""
    args = _parser().parse_args(list(argv))
    seed, args.seed, args.output_dir, args.model_dir = args.seed, -1, "", ""
    return {**_configuration(repr(vars(args))), "SEED": seed}


_parser = functools.cache(train.build_parser)


@functools.cache
def _configuration(arguments: str) -> dict[str, Any]:
    """The configuration that arguments of train.py give; runs that differ only in seed and directory share it."""
    import ast

    return flatten(to_dict(train.build_config(argparse.Namespace(**ast.literal_eval(arguments)))))


def needs_root(run: Run) -> bool:
    """Whether the run's data set has to lie in the folder of the data sets: a drawn one is put there by itself."""
    from dassl.data.datasets import DATASET_REGISTRY

    name = requested(run.argv)["DATASET.NAME"]
    known = name in DATASET_REGISTRY.registered_names()
    return not known or getattr(DATASET_REGISTRY.get(name), "needs_root", True)


def compare(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs between the configuration wanted and the one that a run was made with, `KEY: x there, y wanted`."""
    defaults = flatten(to_dict(get_cfg_default()))
    return [
        f"{key}: {there} there, {here} wanted" for key, there, here in differences(found, wanted, defaults=defaults)
    ]


def redo(runs: list[Run]) -> list[Run]:
    """Delete the directories of those runs whose settings differ or that diverged, and of the evaluations of these;
    return them.

    Raises:
        RunBusy: another process is at work in one of them.
    """
    deleted: list[Run] = []
    images = Images()
    for run in runs:
        try:
            _result(run, requested(run.argv), images)
            stale = any(run.needs == other.output_dir for other in deleted) or bool(divergence(run.output_dir))
        except AnotherConfiguration:
            stale = True
        if stale and os.path.isdir(run.output_dir):
            with run_lock(run.output_dir):
                shutil.rmtree(run.output_dir)
            deleted.append(run)
    return deleted


def begin(run: Run) -> None:
    """Prepare the directory of a run, which this process holds: its request is written, an earlier log and failure set
    aside."""
    _set_log_aside(run.output_dir)
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(run.output_dir, FAILURE))
    config = to_dict(train.build_config(train.build_parser().parse_args(list(run.argv))))
    version = code_version_of(trainer_class(run.place.trainer))
    request = {"argv": list(run.argv), "recipe": version, "config": config}
    write_json(request, os.path.join(run.output_dir, REQUEST))


def failed(run: Run, reason: str, kind: str = "failed") -> str:
    """Write down why a run failed, for tables and for the next one who looks; returns the reason.

    Args:
        run: the run.
        reason: in a line.
        kind: "failed", or "diverged": the same line does not repeat it.
    """
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    content = {"kind": kind, "reason": reason, "argv": list(run.argv), "time": stamp}
    try:
        write_json(content, os.path.join(run.output_dir, FAILURE))
    except OSError as error:
        return f"{reason} (nor can that be written down: {error})"
    return reason


def _set_log_aside(directory: str) -> None:
    """Rename the log of an interrupted run, so that `log.txt` is the log of the run that is complete."""
    path = os.path.join(directory, "log.txt")
    if os.path.exists(path):
        stamp = time.strftime("%Y-%m-%d-%H-%M-%S", time.localtime(os.path.getmtime(path)))
        target, number = f"{path}-{stamp}", 1
        while os.path.exists(target):
            target, number = f"{path}-{stamp}-{number}", number + 1
        os.rename(path, target)
