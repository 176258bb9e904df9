"""The methods. A trainer is found by being in this folder: importing the package imports every module of it."""

from importlib import import_module
from pkgutil import iter_modules

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
