"""The reader of weights files: what is in a file is told by its content, and nothing in it is run.

TorchScript archives, files of `torch.save` (zip and legacy), safetensors; the layouts are those of `clip.layouts`.
"""

import json
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip.layouts import describe, layout_of, unwrap
from clip.precision import CPU
from clip.torchscript import is_torchscript, read_torchscript

BYTES_LIMIT = 64 << 30  # of all tensors of a file; the largest model of open_clip has 20 GiB in float32
RATIO_LIMIT = 200  # of unpacked to packed bytes of a zip file above 1 GiB
SETTINGS_LIMIT = 1 << 20  # bytes of a config.json
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # of transformers, beside its config.json
SIZE_ENTRIES = ("input_resolution", "context_length", "vocab_size")  # that OpenAI's releases hold beside the weights
DAMAGE = (  # what readers answer damaged files with; found by reading thousands of them
    *(AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, OverflowError, RuntimeError),
    *(TypeError, ValueError, struct.error, UnpicklingError, SafetensorError, tarfile.TarError, zipfile.BadZipFile),
    *(NotImplementedError, zipfile.LargeZipFile, zlib.error),
)
_FOREIGN = (  # how files begin that are none of weights
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    (b"<", "it is an HTML page"),
    (b"\x89HDF", "it is an HDF5 file of TensorFlow"),
    (b"GGUF", "it is a GGUF file of llama.cpp"),
    (b"\x1f\x8b", "it is a gzip archive: unpack it"),
    (b"\x93NUMPY", "it is an array of NumPy"),
    (b"{", "it is JSON"),
)


@dataclass(frozen=True)
class Weights:
    """The content of a weights file.

    Attributes:
        path: the file.
        state: tensors, in OpenAI's names where the layout is known.
        facts: what the file, or the settings beside it, say of the architecture that no shape tells: `activation`,
            `image_heads`, `text_heads`, `layer_norm_eps`; only those that are known.
    """

    path: Path
    state: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)

    def require(self, wanted: Mapping[str, Any], name: str, hint: str) -> None:
        """Refuse weights that say to be of another architecture than a name stands for.

        Args:
            wanted: the facts of the named architecture.
            name: of the backbone.
            hint: what to do about it.

        Raises:
            ValueError: a fact differs (named with both values).
        """
        for key, value in self.facts.items():
            if key in wanted and wanted[key] != value:
                raise ValueError(
                    f"{self.path} holds weights with {key} {value}, but the backbone {name} has {wanted[key]}: {hint}"
                )


def weights_file(path: str | Path) -> Path | None:
    """The weights file that a path names: itself, or that of a folder as transformers saves it; None for others."""
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / "config.json").is_file():
        return None
    return next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file; see `read_weights`."""
    return read_weights(path).state


def read_weights(path: str | Path) -> Weights:
    """Read a weights file, or a folder as transformers saves it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds no state dict of tensors (it is said what it looks like).
    """
    path = weights_file(path) or Path(path)
    if path.is_dir():
        raise FileNotFoundError(
            f"no weights in the folder {path}: it needs config.json and {' or '.join(FOLDER_FILES)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    kind = "safetensors" if _is_safetensors(path) else "weights"
    try:
        loaded = unwrap(load_file(path) if kind == "safetensors" else _read_pickled(path))
        state = _tensors(loaded)
        layout = layout_of(state)
        facts = _facts(path, state)
        state = layout.convert(state) if layout else state
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or no {kind} file: {reason(error)}") from error
    return Weights(path, state, facts)


def looks_like(state: Mapping[str, Tensor]) -> str:
    """A clause for messages that says what a refused state dict looks like; "" where nothing is recognised."""
    what = describe(state)
    return f"; it looks like {what}" if what else ""


def reason(error: BaseException) -> str:
    """What a library's error says, on one line and without its advice (PyTorch's is to load what is not trusted)."""
    if isinstance(error, UnpicklingError):
        return "it holds something else than tensors"
    if isinstance(error, EOFError):
        return "it ends too early"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    said = " ".join(str(error).split()).partition(". ")[0][:300]
    return said or type(error).__name__


def _is_safetensors(path: Path) -> bool:
    """By content; a file of that name that begins otherwise is one as well, which is damaged."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):
        return False
    length = int.from_bytes(start[:8], "little")
    return path.suffix == ".safetensors" or (start[8:] == b"{" and 2 <= length <= path.stat().st_size - 8)


def _read_pickled(path: Path) -> object:
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    for beginning, what in _FOREIGN:
        if start.startswith(beginning):
            raise ValueError(what)
    if zipfile.is_zipfile(path):
        require_small_zip(path)
        if is_torchscript(path):
            return read_torchscript(path)  # compares the checksums of what it reads
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith(".npy") for name in archive.namelist()):
                raise ValueError("it is an archive of NumPy arrays")
            if broken := archive.testzip():
                raise ValueError(f"the checksum of {broken} is wrong")
    elif tarfile.is_tarfile(path):
        raise ValueError(
            "it is a .tar of early PyTorch or of something else; those cannot be read without running code"
        )
    with open(path, "rb") as file, warnings.catch_warnings():  # of a path, the suffix would decide
        warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read ends in an error
        return torch.load(file, CPU, weights_only=True)


def require_small_zip(path: Path) -> None:
    """Refuse a zip file that unpacks to more than its size allows with a ValueError."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > max(1 << 30, RATIO_LIMIT * path.stat().st_size) or unpacked > BYTES_LIMIT:
            raise ValueError(f"it would unpack to {unpacked} bytes")


def _tensors(loaded: object) -> dict[str, Tensor]:
    """A state dict of ordinary tensors.

    Raises:
        ValueError: it holds something else.
    """
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and _is_ordinary(value) for key, value in loaded.items()
    ):
        entries = f", but {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else ""
        raise ValueError(f"it holds no state dict of tensors{entries}")
    if sum(value.numel() * value.element_size() for value in loaded.values()) > BYTES_LIMIT:
        raise ValueError(f"its tensors would take more than {BYTES_LIMIT >> 30} GiB")
    return {key: value.detach() for key, value in loaded.items()}


def _is_ordinary(value: object) -> bool:
    """Whether a value is a dense tensor on the host; a pickle may make others."""
    if not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and value.device == CPU and not value.is_quantized and not value.is_nested


def _facts(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What is known of the architecture beside the shapes."""
    released = {"activation": "quick_gelu"} if all(key in state for key in SIZE_ENTRIES) else {}
    return released | _open_clip_facts(path.with_name("open_clip_config.json")) | _transformers_facts(path)


def _settings(path: Path) -> dict:
    """A small JSON file beside the weights, {} where there is none; ValueError if it is no JSON object."""
    if not path.is_file():
        return {}
    if path.stat().st_size > SETTINGS_LIMIT:
        raise ValueError(f"{path} has more than {SETTINGS_LIMIT} bytes")
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is no JSON object")
    return settings


def _open_clip_facts(path: Path) -> dict[str, Any]:
    """The activation that open_clip's description of a folder gives its weights."""
    model = _settings(path).get("model_cfg", {})
    if not isinstance(model, dict) or "vision_cfg" not in model:
        return {}
    return {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}


def _transformers_facts(path: Path) -> dict[str, Any]:
    """What transformers' config.json says where it is a CLIP's and lies beside one of its own files.

    Raises:
        ValueError: its two towers differ in activation or normalisation, which no CLIP here does.
    """
    if path.name not in FOLDER_FILES:
        return {}
    settings = _settings(path.with_name("config.json"))
    if settings.get("model_type") != "clip":
        return {}
    image, text = (settings.get(f"{tower}_config") or {} for tower in ("vision", "text"))
    defaults = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    both = {key: (image.get(key, value), text.get(key, value)) for key, value in defaults.items()}
    for key, (one, other) in both.items():
        if one != other:
            raise ValueError(
                f"config.json has {key} {one} for images and {other} for text: no such model is known here"
            )
    return {
        "activation": both["hidden_act"][0],
        "layer_norm_eps": both["layer_norm_eps"][0],
        "image_heads": image.get("num_attention_heads", 12),
        "text_heads": text.get("num_attention_heads", 8),
    }
