"""Objects found by name."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from dassl.utils.tools import check_availability, did_you_mean

logger = logging.getLogger(__name__)


class Registry:
    """A table from ``__name__`` to object.

    ::

        TRAINER_REGISTRY = Registry("TRAINER")

        @TRAINER_REGISTRY.register()
        class MyTrainer: ...
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._objects: dict[str, Any] = {}

    @property
    def kind(self) -> str:
        """What is registered here, in lower case, such as ``trainer``."""
        return self._name.lower()

    def __contains__(self, name: str) -> bool:
        return name in self._objects

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._objects.items())

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Register ``obj``, or return a decorator that does.

        An object with a true attribute ``replaceable`` gives its name up to one without, whichever comes first: so a
        file that is dropped into a folder replaces what has the same name there.

        Raises:
            KeyError: another object has the name, neither gives it up, and ``force`` is not set.
        """
        if obj is None:
            return self._decorator(force)
        name = obj.__name__
        self._objects[name] = obj if force else self._holder(name, obj)
        return obj

    def _holder(self, name: str, obj: Any) -> Any:
        """Return the object that is to have ``name``: ``obj``, or the one that has it."""
        known = self._objects.get(name)
        if known is None:
            return obj
        if _replaceable(known) == _replaceable(obj):
            raise KeyError(f'An object named "{name}" was already registered in "{self._name}" registry')
        holder, other = (known, obj) if _replaceable(obj) else (obj, known)
        logger.warning("%s %s: that of %s replaces that of %s", self.kind, name, holder.__module__, other.__module__)
        return holder

    def _decorator(self, force: bool) -> Callable[[Any], Any]:
        return lambda obj: self.register(obj, force)

    def get(self, name: str) -> Any:
        """Return the object called ``name``; KeyError, with the nearest names, if there is none."""
        if name not in self._objects:
            raise KeyError(did_you_mean(name, self.registered_names(), self.kind))
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """Return all names, in the order of registration."""
        return list(self._objects)


def _replaceable(obj: Any) -> bool:
    return getattr(obj, "replaceable", False)


def build_from(registry: Registry, name: str, cfg: Any, **kwargs: Any) -> Any:
    """Call the object of ``registry`` called ``name`` with ``cfg``, and say so when ``cfg.VERBOSE``.

    Raises:
        ValueError: there is no such object; the message has the nearest names.
    """
    check_availability(name, registry.registered_names(), registry.kind)
    if getattr(cfg, "VERBOSE", True):  # which the trees of some repositories lack
        logger.info("Loading %s: %s", registry.kind, name)
    return registry.get(name)(cfg, **kwargs)
