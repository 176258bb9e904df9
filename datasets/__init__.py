"""The benchmarks: every module of this folder is imported here, so a data set is found by being in the folder.

A file written for Dassl or CoOp (it registers its class in `DATASET_REGISTRY`) can be dropped in as it is. A class
may name configuration keys of its own, which live under `DATASET`, in a class attribute `CONFIG` (key -> default);
`declare_keys` puts all of them into a configuration before files are merged into it.
"""

import importlib
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY

COMMANDS = ("check", "prepare")  # run by `python -m datasets.<name>`, hence not imported with the package


def _import_modules(folder: Path) -> list[str]:
    """Import every module of `folder` in sorted order and return their names.

    Raises ImportError naming the file of a module that cannot be imported, whatever it failed with.
    """
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith(("_", ".")))
    names = [name for name in names if name not in COMMANDS]
    for name in names:
        try:
            importlib.import_module(f"{__name__}.{name}")
        except Exception as error:
            raise ImportError(
                f"data set file {folder / name}.py cannot be imported ({type(error).__name__}: {error}); "
                "mend it or move it out of the folder"
            ) from error
    return names


def declare_keys(cfg: CfgNode) -> None:
    """Put the keys that registered data sets declare in `CONFIG` under `cfg.DATASET`, in place.

    A key that is there already keeps its value. Two data sets may share a key only with the same default.
    """
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
        if key not in cfg.DATASET:
            cfg.DATASET[key] = default


_import_modules(Path(__file__).parent)
