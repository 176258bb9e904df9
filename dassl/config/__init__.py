"""The configuration: a YACS tree, and merges whose errors say which key was meant."""

import functools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

import yaml
from yacs.config import CfgNode

from dassl.config.defaults import DEFAULTS
from dassl.utils import check_availability, did_you_mean

__all__ = ["admit_foreign_keys", "clean_cfg", "declare_trainer_keys", "get_cfg_default", "merge_file", "merge_opts"]

logger = logging.getLogger(__name__)


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


def admit_foreign_keys(cfg: CfgNode, name: str) -> None:
    """Make room in ``cfg`` for the keys of a trainer that was written for a ``train.py`` of its own.

    A trainer class with ``CONFIG`` declares its keys, and nothing happens.  For any other, ``extend_cfg(cfg)`` of its
    module is called, as that ``train.py`` would do.  Where there is none, every key that files and options name from
    here on is taken as the trainer's own, and what they give under ``TRAINER`` may be of any type.

    Raises:
        ValueError: no trainer of this name is registered.
    """
    from dassl.engine.build import TRAINER_REGISTRY

    check_availability(name, TRAINER_REGISTRY.registered_names(), "trainer")
    trainer = TRAINER_REGISTRY.get(name)
    if hasattr(trainer, "CONFIG"):
        return
    extend_cfg = getattr(sys.modules[trainer.__module__], "extend_cfg", None)
    if extend_cfg is None:
        cfg.set_new_allowed(True)
    else:
        extend_cfg(cfg)


def _admit(cfg: CfgNode, keys: Iterable[str], source: str) -> None:
    """Give ``cfg`` those of the keys that it does not have; a value of None takes any type when it is merged."""
    new = []
    for key in keys:
        *path, leaf = key.split(".")
        node = functools.reduce(_child, path, cfg)
        if node is None or isinstance(node.get(leaf), CfgNode):
            continue
        if leaf not in node:
            new.append(key)
        if leaf not in node or path[:1] == ["TRAINER"]:
            node[leaf] = None
    if new:
        logger.info("%s: no default for %s; taken as the trainer's own", source, ", ".join(new))


def _child(node: CfgNode | None, name: str) -> CfgNode | None:
    """Return the node of this name below ``node``, made if missing; None where a value has the name."""
    child = None if node is None else node.setdefault(name, CfgNode())
    return child if isinstance(child, CfgNode) else None


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
    if cfg.is_new_allowed():
        _admit(cfg, _dotted(loaded), path)
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
    if cfg.is_new_allowed():
        _admit(cfg, opts[::2], source)
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
