"""The methods. A trainer is found by being in this folder: importing the package imports every module of it.

A trainer written for Dassl and CoOp may be dropped in as it is. Where it has the name of one that is here, it takes its
place; a file that cannot be imported is left out with a warning, and `LEFT_OUT` says why.
"""

import logging
from importlib import import_module
from pkgutil import iter_modules

from adaptation import former_names

former_names.install()
LEFT_OUT: dict[str, str] = {}  # module -> why

for _module in sorted(module.name for module in iter_modules(__path__)):
    try:
        import_module(f"{__name__}.{_module}")
    except Exception as _error:  # code of others can fail with anything, and must not take the other methods with it
        LEFT_OUT[_module] = f"{type(_error).__name__}: {_error}"
        logging.getLogger(__name__).warning("trainers/%s.py is left out: %s", _module, LEFT_OUT[_module])
