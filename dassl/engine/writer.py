"""TensorBoard events, if TensorBoard is installed."""

import functools
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class SummaryWriter:
    """PyTorch's ``SummaryWriter``, imported when the first one is made; without TensorBoard every call does nothing."""

    def __init__(self, log_dir: str | None = None, **options: Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter as Writer
        except ImportError:
            self._writer = None
        else:
            self._writer = self._written(Writer, log_dir=log_dir, **options)

    def __getattr__(self, name: str) -> Any:
        found = _nothing if self.__dict__["_writer"] is None else getattr(self._writer, name)
        return functools.partial(self._written, found) if callable(found) else found

    def _written(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the writer, and go on without it where its file cannot be written."""
        try:
            return call(*args, **kwargs)
        except OSError as error:
            logger.warning("TensorBoard events end here, for they cannot be written: %s", error.strerror or error)
            self._writer = None
            return None


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Take any call."""
