"""TorchScript archives read as data: tensors and the names of their modules; code is neither compiled nor run.

An archive is a zip file. `data.pkl` is a pickle of nested modules whose classes are named in `code/`; the values of
tensors lie in `data/`. Which attributes of a class are parameters and buffers stands in the first lines of its source,
which are read as text.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip.precision import STORAGES

TEXT_LIMIT = 64 << 20  # bytes of `data.pkl` and of one source file; those of OpenAI's archives are a few MiB at most
MODULE_LIMIT = 100_000  # modules of an archive; a reference to itself would have no end
_CLASS = re.compile(
    r"^class (\S+)\(Module\):\n(?:  (__parameters__) = \[(.*)\]\n)?(?:  (__buffers__) = \[(.*)\]\n)?", re.M
)
_NAME = re.compile(r'"([^"]*)"')


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip archive that carries code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the archive's module by their dotted names, as `state_dict` of the loaded module.

    Raises:
        pickle.UnpicklingError: the archive holds something else than modules of tensors and plain values.
        ValueError, zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        reader = _Archive(archive, root)
        module = reader.load()
        if not isinstance(module, _Module):
            raise pickle.UnpicklingError("the archive holds no module")
        return dict(reader.tensors_of(module, ""))


class _Call:
    """A function that a pickle may call; nothing can be set on it."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a function is not changed")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function is not changed")


class _Module:
    """A module as its attributes; subclasses, made for one archive, know the name of its class there."""

    source = name = ""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("the state of a module is made by its code, which is not run")
        self.attributes = state


class _Archive:
    """The open archive: the pickle's reader, and what it looks up."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        self.archive, self.root = archive, root
        self._storages: dict[str, Tensor] = {}
        self._state_names: dict[tuple[str, str], list[str]] = {}

    def load(self) -> Any:
        """What `data.pkl` holds."""
        with self._open("data.pkl") as file:
            return _Unpickler(file, self).load()

    def tensors_of(self, module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of a module, then those of its children, under their dotted names."""
        pending = [(module, prefix)]
        for _ in range(MODULE_LIMIT):
            if not pending:
                return
            module, prefix = pending.pop()
            attributes = getattr(module, "attributes", {})
            for name in self._names_of(module):
                if isinstance(attributes.get(name), Tensor):
                    yield prefix + name, attributes[name]
            children = [(value, f"{prefix}{name}.") for name, value in attributes.items() if isinstance(value, _Module)]
            pending += reversed(children)
        raise pickle.UnpicklingError(f"it has more than {MODULE_LIMIT} modules")

    def _names_of(self, module: _Module) -> list[str]:
        """Names of the parameters and buffers that the source of a module's class lists."""
        key = module.source, module.name
        if key not in self._state_names:
            with self._open(f"code/{module.source.replace('.', '/')}.py") as file:
                text = file.read().decode("utf-8")
            for name, _, parameters, _, buffers in _CLASS.findall(text):
                self._state_names[module.source, name] = _NAME.findall(parameters) + _NAME.findall(buffers)
            if key not in self._state_names:
                raise ValueError(f"its code has no class {module.source}.{module.name}")
        return self._state_names[key]

    def _open(self, name: str) -> Any:
        info = self.archive.getinfo(f"{self.root}/{name}")
        if info.file_size > TEXT_LIMIT:
            raise ValueError(f"{name} has {info.file_size} bytes")
        return self.archive.open(info)

    def storage(self, kind: Any, key: Any, count: Any) -> Tensor:
        """The values of a storage, one-dimensional."""
        if not isinstance(kind, torch.dtype) or not isinstance(key, str) or not isinstance(count, int):
            raise pickle.UnpicklingError("a storage is not described as one")
        if key not in self._storages:
            data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            if len(data) != count * kind.itemsize:
                raise ValueError(f"storage {key} has {len(data)} bytes instead of {count * kind.itemsize}")
            self._storages[key] = torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
        if self._storages[key].dtype != kind:
            raise pickle.UnpicklingError("a storage is of two types")
        return self._storages[key]


class _Unpickler(pickle._Unpickler):  # the one in Python: a damaged index costs the one in C gigabytes
    """Admits modules of the archive's own, tensors, and plain values."""

    def __init__(self, file: Any, archive: _Archive):
        super().__init__(file, encoding="utf-8")
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name: a module class made here, a tensor's or list's maker, or a storage's type."""
        if module.startswith("__torch__"):
            return type(name, (_Module,), {"source": module, "name": name})
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage that a tensor refers to."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something else than a storage")
        _, kind, key, _, count = pid
        return self._archive.storage(kind, key, count)


def _tensor(values: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch.as_strided(values, size, stride, offset)


_ADMITTED = {
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("collections", "OrderedDict"): _Call(lambda: OrderedDict()),
    ("torch.jit._pickle", "restore_type_tag"): _Call(lambda value, _: value),
    **{
        ("torch.jit._pickle", f"build_{kind}list"): _Call(lambda values: values)
        for kind in ("int", "double", "bool", "tensor")
    },
}
