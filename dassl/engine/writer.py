"""TensorBoard events, if TensorBoard is installed."""

from typing import Any


class SummaryWriter:
    """PyTorch's ``SummaryWriter``, imported when the first one is made; without TensorBoard every call does nothing."""

    def __init__(self, log_dir: str | None = None, **options: Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter as Writer
        except ImportError:
            self._writer = None
        else:
            self._writer = Writer(log_dir=log_dir, **options)

    def __getattr__(self, name: str) -> Any:
        return _nothing if self.__dict__["_writer"] is None else getattr(self._writer, name)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Take any call."""
