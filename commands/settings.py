"""What a run is said to have been asked for: the settings that differ from the defaults, and what is in force."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yacs.config import CfgNode

SAID_ELSEWHERE = ("OUTPUT_DIR", "SEED", "TRAINER.NAME")  # in the first line


def values(cfg: "CfgNode") -> dict[str, Any]:
    """A configuration by dotted keys."""
    from dassl.config import dotted

    found = {}
    for key in dotted(cfg):
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        found[key] = node
    return found


def own_nodes(cfg: "CfgNode") -> tuple[str, ...]:
    """The nodes below `TRAINER` that belong to the trainer of a configuration, such as `TRAINER.COOP.`.

    A trainer that declares none (one of others) has the node of its name.
    """
    from dassl.engine import TRAINER_REGISTRY

    name = cfg.TRAINER.NAME
    declared = getattr(TRAINER_REGISTRY.get(name), "CONFIG", {}) if name in TRAINER_REGISTRY else {}
    return tuple(f"TRAINER.{node}." for node in (declared or [name.upper()]))


def relevant(cfg: "CfgNode") -> dict[str, Any]:
    """The settings of a run by dotted keys, without the nodes of other trainers."""
    own = ("TRAINER.NAME", *own_nodes(cfg))
    return {k: v for k, v in values(cfg).items() if not k.startswith("TRAINER.") or k.startswith(own)}


def changed(cfg: "CfgNode", base: "CfgNode") -> dict[str, tuple[Any, Any]]:
    """The settings of a run that differ from those of another configuration: key -> value there, value here."""
    before, own = values(base), relevant(cfg)
    return {k: (before.get(k), v) for k, v in own.items() if _plain(before.get(k)) != _plain(v)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def from_defaults(cfg: "CfgNode") -> str:
    """What a run is and which settings it has that are not the defaults, as lines."""
    from dassl.config import declared_cfg

    differ = {k: v for k, (_, v) in changed(cfg, declared_cfg()).items() if k not in SAID_ELSEWHERE and v != ""}
    where = f" -> {cfg.OUTPUT_DIR}" if cfg.OUTPUT_DIR else ""
    seed = f", seed {cfg.SEED}" if cfg.SEED >= 0 else ", no seed"
    width = max(map(len, differ), default=0)
    lines = [f"  {key:{width}}  {_shown(value)}" for key, value in differ.items()]
    return "\n".join([f"{cfg.TRAINER.NAME} on {cfg.DATASET.NAME or 'no data set'}{seed}{where}", *lines])


def _shown(value: Any) -> str:
    """A value as it is written behind its key on a command line."""
    return value if isinstance(value, str) else repr(value)


def in_force(asked: "CfgNode", trainer: Any) -> str:
    """What only the built trainer knows: the settings that were filled in from its backbone, device and precision."""
    from dassl.utils.torchtools import device_name

    own = values(trainer.cfg)
    filled = [f"{key} {_shown(value)}" for key, (_, value) in changed(trainer.cfg, asked).items()]
    size = [] if any(text.startswith("INPUT.SIZE ") for text in filled) else [f"INPUT.SIZE {own['INPUT.SIZE']}"]
    device = [f"device {device_name(trainer.device)}"] if getattr(trainer, "device", None) else []
    return f"in force: {', '.join([*device, *_precision(trainer, own), *size, *filled])}"


def _precision(trainer: Any, settings: Mapping[str, Any]) -> list[str]:
    """What a trainer computes in, where it says that; and what was asked for, if that is another precision."""
    asked = next((settings[f"{node}PREC"] for node in own_nodes(trainer.cfg) if f"{node}PREC" in settings), "")
    used = getattr(getattr(trainer, "precision", None), "name", asked)
    return [f"precision {used}" + (f" (for {asked})" if used != asked else "")] if used else []


def as_yaml(cfg: "CfgNode", files: Sequence[str], given: "Mapping[str, CfgNode]") -> str:
    """A configuration as a YAML file that `--config-file` takes, and in comments what is in it not from the files.

    Args:
        cfg: the resolved configuration; the nodes of other trainers are left out.
        files: the configuration files that it was made of.
        given: name -> the configuration of the defaults alone, or of the files, that it is compared with.
    """
    import yaml

    tree: dict[str, Any] = {}
    for key, value in relevant(cfg).items():
        node, parts = tree, key.split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = list(value) if isinstance(value, tuple) else value
    lines = [f"# {' + '.join(['defaults', *files])}"]
    for name, base in given.items():
        lines.append(f"# in what this differs from {name}:")
        rows = [f"#   {key}: {_shown(old)} -> {_shown(new)}" for key, (old, new) in changed(cfg, base).items()]
        lines += rows or ["#   nothing"]
    return "\n".join(lines) + "\n" + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)
