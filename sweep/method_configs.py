"""Which configuration file a method takes where, and its settings for single data sets, unless the command line says
otherwise.

Both are declared in `configs/trainers/<METHOD>/sweep.yaml`; `configs/trainers/sweep.yaml`, which comes first, holds for
all methods. A method without such a file takes the only configuration in its folder. The files have two lists:

    configs:    # the first rule whose conditions hold, and whose pattern fits exactly one file, gives the file
      - {file: vit_b16_ep50, training: all, datasets: [imagenet, "drawn_*"], shots: [1, 2]}
    settings:   # KEY: VALUE pairs for the data sets that are trained on
      - {file: vit_b16_ep50, datasets: [eurosat], set: {OPTIM.MAX_EPOCH: 100}}

`file` is a name without suffix, of the method's folder or `FOLDER/NAME`, and may be a pattern, as data sets may;
`training` is what the protocol trains for: `base2new`, `all` or `transfer`. What is left out holds always.
"""

import functools
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from commands.names import configs

RULES = "sweep.yaml"
_KEYS = {"configs": {"file", "training", "datasets", "shots"}, "settings": {"file", "datasets", "set"}}


class Unserved(ValueError):
    """What is asked of a trainer, which it cannot serve; others of the same sweep may."""


def trainer_class(trainer: str) -> Any:
    """The class of a registered trainer: it says whether it learns (`SimpleTrainer`)."""
    import trainers  # noqa: F401 - registers what is in the folder
    from dassl.engine import TRAINER_REGISTRY

    return TRAINER_REGISTRY.get(trainer)


def config_of(trainer: str, training: str, dataset: str, shots: int, one_for_all: bool = False) -> str:
    """`FOLDER/STEM` of the configuration file under `configs/trainers` for a trainer.

    Args:
        trainer: registered name.
        training: `base2new`, `all` or `transfer`.
        dataset: name of the data set's configuration file, without its suffix; of the one that is trained on.
        shots: training images per class.
        one_for_all: pass over the method's rules that are for some data sets.

    Raises:
        ValueError: nothing is declared for this trainer; the sentence names the files that there are.
    """
    own = _rules(configs() / "trainers" / trainer / RULES)
    wanted = {"training": training, "datasets": dataset, "shots": shots}
    mine = [rule for rule in own["configs"] if not (one_for_all and "datasets" in rule)]
    for rule in (*_rules(configs() / "trainers" / RULES)["configs"], *mine):
        if _holds(rule, wanted) and len(files := _files(trainer, rule["file"])) == 1:
            return files[0]
    there = _files(trainer, "*")
    if len(there) == 1 and not own["configs"]:
        return there[0]
    raise Unserved(
        f"no configuration of {trainer} is declared for {dataset} ({training}): choose one with --configs "
        f"{trainer}=NAME; in {configs() / 'trainers' / trainer} there are: "
        f"{', '.join(Path(name).name for name in there) or 'none'}"
    )


def named_config(trainer: str, name: str) -> str:
    """`FOLDER/STEM` of the file that the command line names for a trainer: without a folder, a file of the trainer's
    own folder, or of one that its rules name."""
    if "/" in name:
        return name
    ruled = [rule["file"] for rule in _rules(configs() / "trainers" / trainer / RULES)["configs"]]
    folders = [trainer, *(file.partition("/")[0] for file in ruled if "/" in file)]
    there = [folder for folder in folders if (configs() / "trainers" / folder / f"{name}.yaml").is_file()]
    return f"{there[0] if there else trainer}/{name}"


def settings_of(trainer: str, cfg: str, dataset: str) -> tuple[str, ...]:
    """The KEY VALUE pairs that a configuration has for a data set (the one that is trained on)."""
    rules = _rules(configs() / "trainers" / trainer / RULES)["settings"]
    found = [rule["set"] for rule in rules if _holds(rule, {"datasets": dataset}) and fnmatchcase(cfg, rule["file"])]
    return tuple(str(word) for settings in found for pair in settings.items() for word in pair)


def _holds(rule: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether each of the things wanted is among those that the rule names, where it names some."""
    for key, value in wanted.items():
        named = rule.get(key, [value])
        if not any(fnmatchcase(str(value), str(one)) for one in (named if isinstance(named, list) else [named])):
            return False
    return True


def _files(trainer: str, pattern: str) -> list[str]:
    """`FOLDER/STEM` of the configuration files that a pattern fits, in the trainer's folder unless it names another."""
    folder, _, name = f"{'' if '/' in pattern else f'{trainer}/'}{pattern}".partition("/")
    there = (configs() / "trainers" / folder).glob("*.yaml")
    return sorted(f"{folder}/{path.stem}" for path in there if path.name != RULES and fnmatchcase(path.stem, name))


@functools.cache
def _rules_in(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rules of a file; ValueError, which names it, for what is none."""
    import yaml

    from dassl.config import load_yaml

    try:
        found = load_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(found, dict) or not found.keys() <= _KEYS.keys():
        raise ValueError(f"{path}: write the lists {' and '.join(_KEYS)}")
    for part, keys in _KEYS.items():
        for rule in found.setdefault(part, []):
            if not isinstance(rule, dict) or "file" not in rule or not rule.keys() <= keys:
                raise ValueError(f"{path}: {rule} is no rule of {part}; its keys are {', '.join(sorted(keys))}")
    return found


def _rules(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rules of a file, none if there is no such file."""
    return _rules_in(path.absolute()) if path.is_file() else {part: [] for part in _KEYS}
