"""What a sweep plans beyond one configuration of each trainer: values of keys, several files, trainers left out."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product, zip_longest
from typing import Any

from results.layout import grid_level
from sweep.method_configs import Unserved, trainer_class
from sweep.plan import Run, SweepConfig

Axes = Mapping[str, Sequence[str]]  # KEY -> VALUES, as the command line gives them
Refusal = tuple[str, str, str]  # trainer; configuration file, point and shots; reason
Make = Callable[[SweepConfig, Sequence[str], Sequence[str]], list[Run]]


@dataclass
class Request:
    """The runs that are asked for, each once.

    Attributes:
        runs: those that can be.
        left_out: what cannot be (a trainer, with its file and its point of the grid where there are several) -> why.
        remarks: what else is to be said, in sentences.
    """

    runs: list[Run] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def read_axes(grid: Sequence[Sequence[str]], opts: Sequence[str], refused: Mapping[str, str]) -> dict[str, list[str]]:
    """The axes of `--grid KEY VALUE...`, each given once.

    Args:
        grid: the words of each.
        opts: KEY VALUE pairs of the same line.
        refused: keys that cannot be swept over -> what gives them.

    Raises:
        ValueError: a key without values, one that stands twice, or one that is refused.
    """
    axes: dict[str, list[str]] = {}
    for words in grid:
        key, *values = words[0].split("=", 1)[:1] + [w for w in (*words[0].split("=", 1)[1:], *words[1:]) if w != ""]
        said = f"--grid {' '.join(words)}"
        if not values:
            raise ValueError(f"{said}: write the key and its values, such as --grid OPTIM.LR 0.001 0.002")
        if key in refused:
            raise ValueError(f"{said}: each run of a sweep has its own {key}, which comes from {refused[key]}")
        if key in axes or key in opts[::2]:
            raise ValueError(f"{said}: {key} is given twice")
        axes[key] = values
    return axes


def typed(axes: Axes) -> dict[str, dict[str, str]]:
    """The values of each axis by what their levels are called: those that are equal, such as 1 and 1.0, are one.

    Raises:
        ValueError: a key that there is not, or a value of a wrong type.
    """
    from dassl.config import declared_cfg, did_you_mean_key, dotted, set_key

    cfg = declared_cfg()
    found: dict[str, dict[str, str]] = {}
    known = set(dotted(cfg))
    for key, values in axes.items():
        foreign = key.startswith("TRAINER.") and not any(own.startswith(_node(key)) for own in known)
        if key not in known and not foreign:
            raise ValueError(f"--grid {key}: {did_you_mean_key(key, sorted(known))}")
        own: dict[str, str] = {}
        for text in values:
            if not foreign:
                set_key(cfg, key, text, "--grid")
            own.setdefault(grid_level({key: text if foreign else _value(cfg, key)}), text)
        found[key] = own
    return found


def _value(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _node(key: str) -> str:
    """The node of a trainer's key with its point, `TRAINER.APEX.`; of another key all of it."""
    parts = key.split(".")
    return f"{parts[0]}.{parts[1]}." if parts[0] == "TRAINER" and len(parts) > 2 else key


def applies(key: str, trainer: str) -> bool:
    """Whether a trainer reads a key: one that is no trainer's, or of a node that it declares (or has the name of)."""
    node = _node(key)
    if not node.endswith("."):
        return True
    declared = getattr(trainer_class(trainer), "CONFIG", {}) or [trainer.upper()]
    return node.split(".")[1] in declared


def points(axes: Axes) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """The points of a grid: KEY -> VALUE as it was given, and KEY -> its part of the level; one without axes."""
    named = typed(axes)
    for choice in product(*(own.items() for own in named.values())):
        yield (
            {key: text for key, (_, text) in zip(named, choice, strict=True)},
            {key: level for key, (level, _) in zip(named, choice, strict=True)},
        )


def rounds(configs: Mapping[str, Sequence[str]], trainers: Sequence[str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The files of trainers, one for each: the first of all, then the second of those that have one, and so on."""
    columns = zip_longest(*(configs.get(trainer) or [""] for trainer in trainers))
    for column in columns:
        chosen = {t: file for t, file in zip(trainers, column, strict=True) if file is not None}
        yield {t: file for t, file in chosen.items() if file}, list(chosen)


def request(
    make: Make,
    config: SweepConfig,
    trainers: Sequence[str],
    datasets: Sequence[str],
    shots: Sequence[int],
    axes: Axes,
    configs: Mapping[str, Sequence[str]],
) -> Request:
    """The runs of a protocol for trainers, numbers of shots, points of a grid and configuration files.

    A trainer that cannot serve what is asked is left out, as long as there is something else to do.

    Raises:
        ValueError: a wrong axis; or nothing of what is asked can be done, for the first reason.
    """
    refused: list[Refusal] = []
    found, unread = Request(), {key: [t for t in trainers if not applies(key, t)] for key in axes}
    for key, others in unread.items():
        if len(others) == len(trainers):
            raise ValueError(f"--grid {key}: none of the trainers ({', '.join(trainers)}) has this key")
        if others:
            found.remarks.append(f"{', '.join(others)}: without the key {key}, so run once for all its values")
    for files, serving in rounds(configs, trainers):
        for values, levels in points(axes):
            for number in shots:
                for point, own in _by_point(values, serving):
                    level = ",".join(levels[key] for key in point)
                    setting = replace(config, shots=number, configs=files, point=point, level=level)
                    found.runs += _served(make, setting, own, datasets, refused)
    if not found.runs and refused:
        raise Unserved(refused[0][2])
    found.runs = list({run.output_dir: run for run in found.runs}.values())
    found.left_out = _by_reason(refused, {run.place.trainer for run in found.runs})
    return found


def _by_reason(refused: Sequence[Refusal], running: Collection[str]) -> dict[str, str]:
    """Refusals by what is left out: a trainer, or, where it has other runs, its files and points of the grid."""
    details: dict[tuple[str, str], list[str]] = {}
    for trainer, detail, reason in refused:
        details.setdefault((trainer, reason), []).append(detail)
    return {
        f"{trainer} ({'; '.join(dict.fromkeys(own))})" if trainer in running else trainer: reason
        for (trainer, reason), own in details.items()
    }


def _by_point(values: Mapping[str, str], trainers: Sequence[str]) -> list[tuple[dict[str, str], list[str]]]:
    """The trainers in groups with the same keys of a point, each with those keys."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for trainer in trainers:
        groups.setdefault(tuple(key for key in values if applies(key, trainer)), []).append(trainer)
    return [({key: values[key] for key in keys}, own) for keys, own in groups.items()]


def _served(
    make: Make, config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str], refused: list[Refusal]
) -> list[Run]:
    """The runs of those trainers that can serve them; the others are written down with the reason."""
    try:
        return make(config, trainers, datasets)
    except Unserved as error:
        if len(trainers) == 1:
            detail = ", ".join(
                filter(None, (config.configs.get(trainers[0], ""), config.level, f"{config.shots} shots"))
            )
            refused.append((trainers[0], detail, str(error)))
            return []
    served = [trainer for trainer in trainers if _served(make, config, [trainer], datasets, refused)]
    return make(config, served, datasets) if served else []
