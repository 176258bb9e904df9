"""In what two runs differ, and which differences mean nothing.

Resuming, sweeps, tables, published numbers and reports all ask here. Each has its list of keys that it ignores, with
the reasons. Configurations are nested dictionaries, or flat ones with dotted keys.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# Keys that change nothing about the result of any run.
NO_EFFECT = {
    "OUTPUT_DIR": "where a run lies",
    "RESUME": "where it began",
    "DATASET.ROOT": "where the data lie; images are compared by content",
    "DATASET.ALLOW_SAME_NAMES": "what a run may do",
    "DATALOADER.NUM_WORKERS": "order and augmentation do not depend on it, or are another draw of the same kind",
    "DATALOADER.CACHE_MB": "what is kept in memory is what would be read",
    "TRAIN.MEMORY_GB": "a batch in chunks has the gradients of the whole",
    "TRAIN.PRINT_FREQ": "how often a run speaks",
    "TRAIN.CHECKPOINT_FREQ": "how often it saves",
    "TRAIN.TRACKERS": "where its numbers are shown",
    "TRAIN.CHECKPOINT_MINUTES": "how often it saves",
    "TEST.CACHE_FEATURES": "cached features equal those that would be computed",
    "TEST.KEEP_PREDICTIONS": "what is written beside the result",
    "TEST.KEEP_VAL_PREDICTIONS": "what is written beside the result",
    "VERBOSE": "how much a run says",
    "USE_CUDA": "what it runs on",
}
# What a run may change when it is resumed.
OF_ONE_RUN = {"TEST.NO_TEST": "whether a run is tested when it ends changes nothing about what it learned"}
# What the runs that are averaged need not share.
OF_A_SEED = {**OF_ONE_RUN, "SEED": "what they are averaged over"}
# What is said by names of its own: what images and classes a run is tested on.
OF_THE_DATA = dict.fromkeys(
    ("split", "test images", "number of test images", "number of classes"), "differs from data set to data set"
)
# What the data sets that an average is over need not share. A key that ends in a point is that of a whole node.
OF_A_DATA_SET = {
    **OF_A_SEED,
    **OF_THE_DATA,
    "DATASET.": "says which it is",
    "epoch": "the number of epochs may be chosen by the set",
}
# What base and new classes need not share.
OF_A_ROLE = {**OF_A_SEED, "DATASET.SUBSAMPLE_CLASSES": "what they differ in"}
# What the runs of a method in a report need not share.
OF_A_PROTOCOL = {
    **OF_A_ROLE,
    **OF_THE_DATA,
    "DATASET.NAME": "protocols are over data sets",
    "DATASET.NUM_SHOTS": "protocols are over numbers of shots",
    "epoch": "follows from the configuration",
}
# What published numbers do not depend on.
OF_A_PUBLICATION = {
    **OF_A_ROLE,
    "DATASET.NUM_SHOTS": "said by the table, not by the configuration file",
    "MODEL.BACKBONE.PATH": "the backbone is compared by name",
    "TRAINER.NAME": "said by the table, not by the configuration file",
}
# What a method that learns nothing does not depend on.
OF_LEARNING = dict.fromkeys(("OPTIM.", "TRAIN.", "DATALOADER.TRAIN_X."), "nothing is learned")
# Keys that came later -> what runs without them had.
SINCE = {
    "DATASET.FOLD": "",
    "DATASET.SPLIT_LIST": "",
    "DATASET.SHOTS_PER_CLASS": [],
    "DATASET.SHOTS_POWER_LAW": 0.0,
    "DATASET.SHOTS_DIRICHLET": 0.0,
    "DATASET.NOISE_RATE": 0.0,
    "DATASET.OOD": "",
    "TEST.TRANSDUCTIVE": "",
}
# Keys that a trainer fills in from its backbone where the configuration leaves them at their defaults.
FILLED = tuple(
    f"INPUT.{key}"
    for key in ("SIZE", "PIXEL_MEAN", "PIXEL_STD", "INTERPOLATION", "RESIZE_MODE", "FILL_COLOR", "TRANSFORMS")
)

# What a record says beside the configuration -> what it is called in comparisons.
IDENTITY = {
    "recipe": "recipe",
    "backbone_digest": "weights",
    "backbone_architecture": "architecture",  # the same weights may be run in several
    "full_split_hash": "split",
    "draw_source": "few-shot draw",  # a stored one may be any
    "support": "support",
    "label_noise": "label noise",
    "transductive": "transductive",
    "test_images_hash": "test images",
    "num_test": "number of test images",
    "num_classes": "number of classes",
}


class Difference(NamedTuple):
    """A key in which two runs differ, with both values; as text `KEY old -> new`."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} {self.old!r} -> {self.new!r}"


def to_dict(cfg: Any) -> Any:
    """Return a configuration as nested dictionaries and lists."""
    if isinstance(cfg, Mapping):
        return {key: to_dict(value) for key, value in cfg.items()}
    return [to_dict(value) for value in cfg] if isinstance(cfg, list | tuple) else cfg


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one with dotted keys, without the keys that change nothing about the result."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flatten(value, f"{name}.")
        elif name not in NO_EFFECT:
            found[name] = value
    return found


def is_ignored(key: str, ignored: Iterable[str]) -> bool:
    """Say whether a dotted key is among those that are ignored, or below a node that is (``OPTIM.``)."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in ignored)


def differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    ignored: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> list[Difference]:
    """Return in what two configurations differ, and what that changes.

    A key that one side alone has is no difference: it came or went with a trainer or a version of the code. Those of
    ``SINCE`` had the value that stands there before they came.

    Args:
        old: the one that is there, as a run has resolved it.
        new: the one that is wanted, as files and command lines give it.
        ignored: keys besides ``NO_EFFECT`` that do not count.
        defaults: of the flat configuration: a key among ``FILLED`` that ``new`` leaves at its default counts as filled
            in by the trainer.
        prefix: of the keys, such as ``TRAINER.COOP.``, where both are that node.
    """
    old, new = (_with_later_keys(flatten(tree, prefix)) for tree in (old, new))
    defaults = defaults or {}
    return [
        Difference(key, old[key], new[key])
        for key in sorted(old.keys() & new.keys())
        if old[key] != new[key]
        and not is_ignored(key, ignored)
        and not (key in FILLED and key in defaults and new[key] == defaults[key])
    ]


def _with_later_keys(flat: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a flat configuration with the keys of ``SINCE``, if it is one of a whole run."""
    return {**SINCE, **flat} if "DATASET.NAME" in flat else flat


def run_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run was made with, by dotted keys: its configuration, and what ``IDENTITY`` names.

    ``epoch`` is that of the checkpoint, where it was not chosen by validation; the path of the weights is left out
    where their digest is there; digests are shortened. Empty for a run that is known by its log alone.

    Args:
        record: the content of a ``metrics.json``, of any version.
    """
    found = dict(_with_later_keys(flatten(record.get("config", {}))))
    if found:
        found |= {"support": "balanced", "label noise": "none"}
    for field, name in IDENTITY.items():
        value = record.get(field)
        if value is not None:
            found[name] = _shown(field, value)
    if "weights" in found:
        found.pop("MODEL.BACKBONE.PATH", None)
    if found.get("TEST.FINAL_MODEL") == "last_step" and "epoch" in record:
        found["epoch"] = record["epoch"]
    return found


def _shown(field: str, value: Any) -> Any:
    """Return the value of a field for comparisons: digests shortened, what is no text or whole number as one."""
    if isinstance(value, str):
        return value[:12] if field.endswith(("_digest", "_hash")) else value
    return value if isinstance(value, int) else _digest(value)


def _digest(value: Any) -> str:
    """Return a short digest of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def disagreements(
    runs: Iterable[tuple[Any, Mapping[str, Any]]], ignored: Iterable[str]
) -> dict[str, dict[str, list[Any]]]:
    """Return the settings in which several runs disagree: key -> value as text -> the runs that have it.

    Args:
        runs: each run with its ``run_settings``.
        ignored: keys that do not count.
    """
    ignored = tuple(ignored)
    found: dict[str, dict[str, list[Any]]] = {}
    for run, settings in runs:
        for key, value in settings.items():
            found.setdefault(key, {}).setdefault(str(value), []).append(run)
    return {key: own for key, own in found.items() if len(own) > 1 and not is_ignored(key, ignored)}
