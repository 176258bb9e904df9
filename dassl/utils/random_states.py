"""The states of the global random generators, as plain data for a checkpoint."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dassl.utils.torchtools import on_gpu


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy, PyTorch, and of the device if it is a GPU."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - third-party code draws from it
    states: dict[str, Any] = {"python": [version, list(words), gauss], "torch": torch.get_rng_state()}
    states["numpy"] = [kind, np.asarray(keys).tolist(), *rest]
    if on_gpu(device) and torch.cuda.is_available():
        states["device"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators into these states; what is not among them stays.

    Raises:
        ValueError: that is no state of a generator.
    """
    try:
        if "python" in states:
            version, words, gauss = states["python"]
            random.setstate((version, tuple(words), gauss))
        if "numpy" in states:
            kind, keys, *rest = states["numpy"]
            np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        if "torch" in states:
            torch.set_rng_state(states["torch"])
        if "device" in states and on_gpu(device) and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["device"], device)
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise ValueError(f"the checkpoint has no state of random generators where one should be ({error})") from error
