"""Kernels, bytes and synchronisations of a computation, counted by its operations: the same on every machine.

    with OperationCounter() as counted:
        trainer.forward_backward(batch)
    assert not counted.synchronisations, counted.synchronisations

What runs under the counter runs as it is. An operation that is no view and does not only reserve memory counts as one
kernel, whichever number a GPU makes of it; those of a whole list of tensors (`torch._foreach_...`) count once.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
# operations that only reserve memory or only name what is there
FREE = {
    *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "_reshape_alias", "lift_fresh", "lift", "detach", "set_", "resize_", "_local_scalar_dense"),
}
PRODUCTS = (
    *("mm", "addmm", "bmm", "baddbmm", "dot", "mv", "addmv", "convolution", "convolution_backward"),
    *("_scaled_dot_product", "_flash_attention", "_efficient_attention"),
)
# operations that wait until the device has computed a value or a size
WAITING = {
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"),
    *("unique_consecutive", "bincount"),
}
READING = {"cpu", "numpy", "tolist", "__array__"}  # methods of a tensor that need its values on the host
MADE_ON_HOST = {torch.tensor, torch.as_tensor, torch.asarray}


class OperationCounter(TorchDispatchMode):
    """Counts what is run inside.

    On a CPU nothing tells the host's tensors from the device's: all of them count as the device's, but for `on_host`.

    Args:
        on_host: returns tensors that stay on the host where there is a device, as the steps that an optimiser counts.
            What is computed of them alone stays there too.

    Attributes:
        kernels: how often each operation was launched, by its name.
        bytes: what operations other than products of matrices, attention and convolutions read and wrote.
        product_bytes: what these read and wrote.
        synchronisations: operations that made the host wait for the device, or copied between them without
            `non_blocking`, each with the line of this project that it comes from.
    """

    def __init__(self, on_host: Callable[[], Iterable[Tensor]] = tuple) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes = self.product_bytes = 0
        self.synchronisations: list[str] = []
        self._on_host = on_host
        self._known: dict[int, Tensor] = {}  # held, so that no other tensor gets their ids
        self._calls = _Calls(self)

    def __enter__(self) -> "OperationCounter":
        self._look_at_host()
        super().__enter__()
        self._calls.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count an operation and run it."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self._waits(name, args, kwargs or {}, read, result):
            self.note(name, *read)
        if self.are_on_host(read):
            self._known.update({id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)})
            return result
        if name not in FREE and not func.is_view:
            self.kernels[name] += 1
            changed = [arg for arg, said in zip(args, func._schema.arguments, strict=False) if said.is_write]
            written = {id(leaf): leaf for leaf in tree_leaves((result, changed)) if isinstance(leaf, Tensor)}
            moved = sum(tensor.numel() * tensor.element_size() for tensor in (*read, *written.values()))
            if name.lstrip("_").startswith(PRODUCTS) or name.startswith(PRODUCTS):
                self.product_bytes += moved
            else:
                self.bytes += moved
        return result

    def _waits(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], read: list[Tensor], result: Any
    ) -> bool:
        """Whether the host waits for the device at an operation."""
        if name in ("index", "index_put_", "index_put", "_unsafe_index"):
            return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        if name in ("_to_copy", "copy_"):
            devices = {tensor.device for tensor in (*read, result)}
            return len(devices) > 1 and not (kwargs.get("non_blocking") or args[2:] == (True,))
        return name in WAITING

    def are_on_host(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are tensors, and all of the host's."""
        return bool(tensors) and all(id(tensor) in self._known for tensor in tensors)

    def _look_at_host(self) -> None:
        self._known.update({id(tensor): tensor for tensor in self._on_host()})

    def note(self, name: str, *read: Tensor) -> None:
        """Note that the host waits for what is computed of these tensors, and where."""
        self._look_at_host()  # an optimiser's first step makes such tensors
        if self.are_on_host(read):
            return
        self.synchronisations.append(f"{name} at {_own_line(sys._getframe())}")


class _Calls(TorchFunctionMode):
    """Notes calls that copy between host and device, which on a CPU are no operations."""

    def __init__(self, counter: OperationCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in READING and isinstance(args[0], Tensor):
            self._counter.note(name, args[0])
        if func in MADE_ON_HOST and kwargs.get("device", "cpu") not in (None, "cpu"):  # by name it is the host
            self._counter.note(f"{name} on a device")
        return func(*args, **kwargs)


def _own_line(frame: FrameType | None) -> str:
    """File and line of the innermost frame that is this project's and not this file's."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path != Path(__file__) and not path.relative_to(ROOT).parts[0].startswith("."):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "a line outside of this project"
