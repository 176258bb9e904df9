"""Small CLIPs with random weights in OpenAI's format, and the files that such weights are found in."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from clip.model import CLIP

VIT = {
    "embed_dim": 32,
    "image_resolution": 32,
    "vision_layers": 3,
    "vision_width": 64,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 3,
}
RESNET = {
    **VIT,
    "image_resolution": 64,
    "vision_layers": (1, 2, 1, 1),
    "vision_width": 8,
    "vision_patch_size": None,
}
SENTENCES = ["a photo of a cat.", "a photo of a very long-haired guinea pig, a type of pet.", "x"]


def random_state(sizes: dict, seed: int = 0) -> dict[str, Tensor]:
    """Float32 weights whose values are exact in half precision; norms, biases and statistics are random as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = CLIP(**sizes).state_dict()
    return {key: _random(key, value, generator) for key, value in shapes.items()}


def _random(key: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if key == "logit_scale":
        return torch.tensor(3.0)
    draw = torch.randn(like.shape, generator=generator)
    if key.endswith("running_var"):
        value = 1 + 0.1 * draw.abs()
    elif like.ndim == 1 and key.endswith("weight"):
        value = 1 + 0.1 * draw
    elif like.ndim < 2:
        value = 0.1 * draw
    elif "embedding" in key:
        value = 0.3 * draw
    else:
        value = draw * like[0].numel() ** -0.5
    return value.half().float()


def _tree(state: dict[str, Tensor]) -> nn.Module:
    """Modules that hold the tensors under their dotted names."""
    root = nn.Module()
    for name, value in state.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(leaf, value)
    return root


def write_torchscript(state: dict[str, Tensor], path: Path) -> None:
    """A TorchScript archive like OpenAI's: half precision, with the three sizes stored beside the weights."""
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    sizes = {
        "input_resolution": torch.tensor(224),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")  # deprecated; what OpenAI's archives were written with
        torch.jit.save(torch.jit.script(_tree({**half, **sizes})), str(path))


def write_plain(state: dict[str, Tensor], path: Path) -> None:
    """A state dict of `torch.save`."""
    torch.save(state, path)


def write_training_checkpoint(state: dict[str, Tensor], path: Path) -> None:
    """A training checkpoint of a data-parallel model."""
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)


def write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    """A safetensors file."""
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in state.items()}, path)


WRITERS = {
    "torchscript.pt": write_torchscript,
    "state_dict.pt": write_plain,
    "training.pt": write_training_checkpoint,
    "weights.safetensors": write_safetensors,
}
