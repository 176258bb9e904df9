"""The protocols: each file says what is trained and tested, where the runs lie, and what their table is.

A protocol is found by being in this folder: importing the package imports every module of it, and these call
`sweep.protocol.register`. docs/EXTENDING.md has an example.
"""

from importlib import import_module
from pkgutil import iter_modules

from sweep.protocol import PROTOCOLS

__all__ = ["PROTOCOLS"]

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
