"""The configuration: a YACS tree, and merges whose errors say which key was meant."""

import os
from collections.abc import Iterator, Sequence

import yaml
from yacs.config import CfgNode

from dassl.config.defaults import DEFAULTS
from dassl.utils import did_you_mean

__all__ = ["clean_cfg", "declare_trainer_keys", "get_cfg_default", "merge_file", "merge_opts"]


def get_cfg_default() -> CfgNode:
    """Return a copy of the default configuration, open to changes."""
    return DEFAULTS.clone()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Remove the nodes of all trainers but ``trainer`` (in any case) from ``cfg.TRAINER``."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]


def declare_trainer_keys(cfg: CfgNode) -> None:
    """Give ``cfg.TRAINER`` the default nodes that the registered trainers declare.

    A trainer class declares its keys as ``CONFIG: dict[str, CfgNode]``, from the name of the node to its defaults.
    What ``cfg`` has already stays as it is.
    """
    from dassl.engine.build import TRAINER_REGISTRY

    for _, trainer in TRAINER_REGISTRY:
        for name, defaults in getattr(trainer, "CONFIG", {}).items():
            node = cfg.TRAINER.setdefault(name, CfgNode())
            node.update({key: value for key, value in defaults.clone().items() if key not in node})


def merge_file(cfg: CfgNode, path: str) -> None:
    """Merge a YAML file into ``cfg``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not YAML, has a key that does not exist, or a value of the wrong type.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no configuration file "{path}"')
    with open(path, encoding="utf-8") as file:
        try:
            loaded = CfgNode(yaml.safe_load(file) or {})
        except (yaml.YAMLError, AssertionError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no configuration file: {error}") from error
    _check_keys(cfg, _dotted(loaded), path)
    _merge(cfg.merge_from_other_cfg, loaded, path)


def merge_opts(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Merge a list ``[KEY, VALUE, KEY, VALUE...]`` into ``cfg``, as the end of a command line gives it.

    Raises:
        ValueError: a key without a value, a key that does not exist, or a value of the wrong type.
    """
    source = "the command line"
    if len(opts) % 2:
        raise ValueError(f"{source}: options come as KEY VALUE pairs, but {opts[-1]!r} has no partner in {list(opts)}")
    _check_keys(cfg, opts[::2], source)
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _merge(cfg.merge_from_list, [key, value], f"{source}: {key}")


def _merge(merge: object, what: object, source: str) -> None:
    """Call a merge of YACS and let its error name the source."""
    try:
        merge(what)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def _dotted(cfg: CfgNode, prefix: str = "", nodes: bool = False) -> Iterator[str]:
    """Yield the full names of the keys below ``cfg``, such as ``OPTIM.LR``; with ``nodes``, those of the nodes too."""
    for key, value in cfg.items():
        name = f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from _dotted(value, f"{name}.", nodes)
        if nodes or not isinstance(value, CfgNode):
            yield name


def _check_keys(cfg: CfgNode, keys: Sequence[str] | Iterator[str], source: str) -> None:
    """Raise a ValueError for the first key that ``cfg`` does not have."""
    valid = list(_dotted(cfg, nodes=True))
    for key in keys:
        if key not in valid:
            raise ValueError(f"{source}: {did_you_mean(key, valid, 'configuration key', list_all=False)}")
