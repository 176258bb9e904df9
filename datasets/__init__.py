"""The benchmarks: every module of this folder is imported here, so a data set is found by being in the folder.

A file written for Dassl or CoOp (it registers its class in `DATASET_REGISTRY`) can be dropped in as it is. A class
may name configuration keys of its own, which live under `DATASET`, in a class attribute `CONFIG` (key -> default);
`dassl.config.declared_cfg` has all of them.
"""

import importlib
import sys
from pathlib import Path

if sys.argv[0] == "-m":  # `python -m datasets.<name>` imports the package first
    import dassl.ctrl_c  # noqa: F401

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


_import_modules(Path(__file__).parent)
