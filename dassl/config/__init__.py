"""The configuration: a YACS tree, and merges whose errors say which key was meant."""

import ast
import functools
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import yaml
from yacs.config import CfgNode

from dassl.config.defaults import DEFAULTS
from dassl.utils import check_availability, did_you_mean

__all__ = [
    "admit_foreign_keys", "check_values", "clean_cfg", "declare_dataset_keys", "declare_trainer_keys", "declared_cfg",
    "did_you_mean_key", "dotted", "get_cfg_default", "load_yaml", "merge_file", "merge_opts", "set_key",
    "with_defaults",
]  # fmt: skip

logger = logging.getLogger(__name__)

NONE_IS_EMPTY = "CTX_INIT"  # keys whose empty text has a meaning though it is not the default: random contexts
LEAST = {  # below this no run can be made
    "SEED": -1,
    "DATASET.NUM_SHOTS": -1,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 1,
    "DATALOADER.TEST.BATCH_SIZE": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "OPTIM.LR": 0,
    "OPTIM.WEIGHT_DECAY": 0,
    "TRAIN.CHECKPOINT_MINUTES": 0,
}


MOST_VALUES = 100_000  # of a configuration file; the longest here has about 40


def get_cfg_default() -> CfgNode:
    """Return a copy of the default configuration, open to changes."""
    return DEFAULTS.clone()


def with_defaults(cfg: CfgNode) -> CfgNode:
    """Return ``cfg``, or, where it lacks keys of :data:`DEFAULTS`, a copy that has their defaults.

    Repositories with a tree of their own (a copy of Dassl's, of whatever version) lack what this engine added.
    """
    if not _lacks(cfg, DEFAULTS):
        return cfg
    whole = cfg.clone()
    _fill(whole, DEFAULTS)
    return whole


def _lacks(cfg: CfgNode, defaults: CfgNode) -> bool:
    """Say whether ``defaults`` has a key, at whatever depth, that ``cfg`` has not."""
    nodes = ((cfg.get(key), value) for key, value in defaults.items())
    return not cfg.keys() >= defaults.keys() or any(
        _lacks(own, value) for own, value in nodes if isinstance(own, CfgNode) and isinstance(value, CfgNode)
    )


def _fill(cfg: CfgNode, defaults: CfgNode) -> None:
    """Give ``cfg`` the keys of ``defaults`` that it lacks; a frozen node stays frozen."""
    frozen = cfg.is_frozen()
    for key, value in defaults.clone().items():
        own = cfg.setdefault(key, value)
        if isinstance(own, CfgNode) and isinstance(value, CfgNode):
            _fill(own, value)
    if frozen:
        cfg.freeze()


def declared_cfg() -> CfgNode:
    """Return the default configuration with the keys of all registered trainers and data sets, open to changes."""
    cfg = get_cfg_default()
    declare_trainer_keys(cfg)
    declare_dataset_keys(cfg)
    return cfg


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


def declare_dataset_keys(cfg: CfgNode) -> None:
    """Give ``cfg.DATASET`` the keys that the registered data sets declare.

    A data set class declares its keys as ``CONFIG: dict[str, object]``, from the name of the key to its default.  What
    ``cfg`` has already stays as it is.

    Raises:
        ValueError: two data sets declare one key with different defaults.
    """
    from dassl.data.datasets import DATASET_REGISTRY

    declared: dict[str, tuple[str, object]] = {}
    for name in DATASET_REGISTRY.registered_names():
        for kind in reversed(DATASET_REGISTRY.get(name).__mro__):
            for key, default in vars(kind).get("CONFIG", {}).items():
                first, known = declared.setdefault(key, (kind.__name__, default))
                if known != default:
                    raise ValueError(
                        f"DATASET.{key}: {first} declares the default {known!r}, {kind.__name__} {default!r}"
                    )
    for key, (_, default) in declared.items():
        cfg.DATASET.setdefault(key, default)


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


def merge_file(cfg: CfgNode, path: str) -> list[str]:
    """Merge a YAML file into ``cfg``; return the keys that it gives, such as ``OPTIM.LR``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not YAML, has a key that does not exist, or a value of the wrong type.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no configuration file "{path}"')
    with open(path, encoding="utf-8") as file:
        try:
            loaded = load_yaml(file) or {}
            _require_small(loaded)
            loaded = CfgNode(loaded)
        except (yaml.YAMLError, AssertionError, AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no configuration file: {error}") from error
    if cfg.is_new_allowed():
        _admit(cfg, dotted(loaded), path)
    _check_keys(cfg, dotted(loaded), path)
    _merge(cfg.merge_from_other_cfg, _typed_tree(loaded, cfg, "", path), path)
    return list(dotted(loaded))


def _require_small(tree: object) -> None:
    """Raise a ValueError for a tree of more than ``MOST_VALUES`` values, as aliases of aliases make it."""
    pending = [tree]
    for _ in range(MOST_VALUES):
        if not pending:
            return
        value = pending.pop()
        if isinstance(value, dict | list | tuple):
            pending += value.values() if isinstance(value, dict) else value
    raise ValueError(f"it holds more than {MOST_VALUES} values")


def merge_opts(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Merge a list ``[KEY, VALUE, KEY, VALUE...]`` into ``cfg``, as the end of a command line gives it.

    Raises:
        ValueError: a key without a value, a key that does not exist, a value of the wrong type, or a flag.
    """
    source = "the command line"
    if flags := [word for word in opts[::2] if word.startswith("--")]:
        raise ValueError(f"{source}: {flags[0]} stands among the KEY VALUE pairs: write flags before them")
    if len(opts) % 2:
        raise ValueError(
            f"{source}: options come as KEY VALUE pairs (or KEY=VALUE, with the key in capitals), but {opts[-1]!r} has "
            f"no partner in {list(opts)}"
        )
    if cfg.is_new_allowed():
        _admit(cfg, opts[::2], source)
    _check_keys(cfg, opts[::2], source)
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        set_key(cfg, key, value)


def set_key(cfg: CfgNode, key: str, text: str, source: str = "the command line") -> None:
    """Set a key that ``cfg`` has from text, which is read as a literal of Python unless a string is wanted.

    Raises:
        ValueError: the value is of another type than the default; the sentence names ``source``.
    """
    default = functools.reduce(CfgNode.__getitem__, key.split("."), cfg)
    value = _literal(text)
    if isinstance(default, str) and not isinstance(value, str | None):
        value = text  # a folder that is called 123
    value = _typed(value, default, key, source)
    value = repr(value) if isinstance(value, str) else value  # YACS reads text as a literal
    _merge(cfg.merge_from_list, [key, value], f"{source}: {key}")


def check_values(cfg: CfgNode) -> None:
    """Raise a ValueError for the first number of the engine's own that no run can be made with."""
    for key, least in LEAST.items():
        value = functools.reduce(CfgNode.__getitem__, key.split("."), cfg)
        if value < least:
            raise ValueError(f"{key} is {value}, but must be at least {least}")
    if len(cfg.INPUT.SIZE) != 2 or min(cfg.INPUT.SIZE) < 1:
        raise ValueError(f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but must be height and width in pixels")
    scale = tuple(cfg.INPUT.RRCROP_SCALE)
    if len(scale) != 2 or not all(isinstance(part, int | float) for part in scale) or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"INPUT.RRCROP_SCALE is {scale}, but must be two parts of an image's area, 0 < low <= high <= 1"
        )


class _Loader(yaml.SafeLoader):
    """Reads YAML; refuses a key that stands twice in one mapping, whose first value would be lost."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Return the next mapping; ValueError for a repeated key."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"{key.value} stands twice, in lines {lines[key.value]} and {line}: put both into one")
            lines[key.value] = line
        return node


def load_yaml(text: str | IO[str]) -> Any:
    """Return what a YAML text holds; a ``yaml.YAMLError`` or a ValueError for one that is damaged or repeats a key."""
    return yaml.load(text, _Loader)


def _literal(text: str) -> object:
    """Return the literal of Python that a text is, or the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _typed_tree(tree: CfgNode, defaults: CfgNode, prefix: str, source: str) -> CfgNode:
    """Return what a file gives, in the types of the defaults; texts are literals where no text is wanted."""
    for name, value in tree.items():
        default = defaults.get(name)
        if isinstance(value, CfgNode) and isinstance(default, CfgNode):
            _typed_tree(value, default, f"{prefix}{name}.", source)
            continue
        literal = _literal(value) if isinstance(value, str) else value
        kept = value if isinstance(default, str) and literal is not None else literal
        tree[name] = _typed(kept, default, f"{prefix}{name}", source)
    return tree


def _typed(value: object, default: object, key: str, source: str) -> object:
    """Return a value of the type of its default, where that is clear: YACS refuses the rest.

    Whole numbers become floats. None is nothing where a text or a list may be empty.

    Raises:
        ValueError: None where it has no meaning, or a number that is NaN.
    """
    if value is None and default is not None and not _is_foreign(key):
        if default not in ("", (), []) and not key.endswith(NONE_IS_EMPTY):
            raise ValueError(f"{source}: {key} is None, which has no meaning there (the default is {default!r})")
        return type(default)()
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{source}: {key} is NaN")
    if type(value) is int and isinstance(default, float) and abs(value) <= sys.float_info.max:
        return float(value)
    return value


def _is_foreign(key: str) -> bool:
    """Return whether a key belongs to a trainer that declares no keys, so that only it knows what None means there."""
    from dassl.engine.build import TRAINER_REGISTRY

    top, _, rest = key.partition(".")
    declared = (getattr(trainer, "CONFIG", {}) for _, trainer in TRAINER_REGISTRY)
    return top == "TRAINER" and "." in rest and not any(rest.split(".")[0] in nodes for nodes in declared)


def _merge(merge: Callable[[Any], None], what: Any, source: str) -> None:
    """Call a merge of YACS and let its error name the source."""
    try:
        merge(what)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def dotted(cfg: CfgNode, prefix: str = "", nodes: bool = False) -> Iterator[str]:
    """Yield the full names of the keys below ``cfg``, such as ``OPTIM.LR``; with ``nodes``, those of the nodes too."""
    for key, value in cfg.items():
        name = f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from dotted(value, f"{name}.", nodes)
        if nodes or not isinstance(value, CfgNode):
            yield name


def _check_keys(cfg: CfgNode, keys: Sequence[str] | Iterator[str], source: str) -> None:
    """Raise a ValueError for the first key that ``cfg`` does not have."""
    valid = list(dotted(cfg, nodes=True))
    for key in keys:
        if key not in valid:
            raise ValueError(f"{source}: {did_you_mean_key(key, valid)}")


def did_you_mean_key(key: str, valid: Sequence[str]) -> str:
    """Return the sentence that answers a key that there is not; one without a node, such as ``lr``, may mean a key that
    ends in it."""
    named = [one for one in valid if one.rpartition(".")[2].lower() == key.lower()]
    if named and "." not in key:
        return f'unknown configuration key "{key}": do you mean {named[:5]}?'
    return did_you_mean(key, valid, "configuration key", list_all=False)
