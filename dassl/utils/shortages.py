"""What PyTorch says when memory is short, as a sentence that says what to set."""

import torch

_SHARED = ("out of shared memory", "unable to write to file </torch", "unable to allocate shared memory", "shm_open",
           "unable to resize file", "ftruncate")  # fmt: skip
_HOST = ("DefaultCPUAllocator", "can't allocate memory", "Cannot allocate memory")


class ShortageError(OSError):
    """The machine has not enough of something."""


def shortage_of(error: BaseException) -> ShortageError | None:
    """Return an error with one sentence for what is a shortage of memory; None for what is something else."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return ShortageError(
            f"the memory of the device is too small ({text.splitlines()[0]}): set TRAIN.MEMORY_GB to what a step may "
            "take, or lower DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TEST.BATCH_SIZE"
        )
    if isinstance(error, RuntimeError | OSError) and any(words in text for words in _SHARED):
        return ShortageError(
            "the shared memory (/dev/shm) is too small for the workers of the loaders: set DATALOADER.NUM_WORKERS 0, "
            "or give the container more (docker run --shm-size 2g)"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in text for words in _HOST)):
        return ShortageError(
            "the memory of the machine is too small: lower DATALOADER.CACHE_MB, DATALOADER.NUM_WORKERS or the batch "
            "sizes (DATALOADER.TRAIN_X.BATCH_SIZE, DATALOADER.TEST.BATCH_SIZE)"
        )
    return None
