"""For third-party code: rectified Adam, under the module path of Dassl."""

from torch.optim import RAdam

__all__ = ["RAdam"]
