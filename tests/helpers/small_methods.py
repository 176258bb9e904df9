"""A small random CLIP, made images and a few training steps: what the tests of methods start from."""

import torch
from clip_models import VIT, random_state
from torch import Tensor

from adaptation.method import Method
from clip.backbone import Backbone
from clip.loading import openai_backbone
from clip.model import ARCHITECTURES, CLIP

TWO_OF_THREE: dict[str, dict[str, int]] = {  # keys of each method that prompt two of three blocks
    "ZeroshotCLIP": {},
    "CoOp": {"N_CTX": 3},
    "VPT": {"PROMPT_DEPTH_VISION": 2},
    "IVLP": {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2},
    "MaPLe": {"PROMPT_DEPTH": 2},
    "APEX": {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2},
}
BASE, NEW = ["golden_retriever", "tabby cat", "sushi"], ["bull mastiff", "apple pie"]


def small_vit() -> Backbone:
    return openai_backbone("small ViT", random_state(VIT))


def vit_b16() -> Backbone:
    """A ViT-B/16 whose weights are zeros: for its sizes."""
    with torch.device("meta"):
        shapes = CLIP(**ARCHITECTURES["ViT-B/16"]).state_dict()
    return openai_backbone("ViT-B/16", {key: torch.zeros(value.shape) for key, value in shapes.items()})


def count_learned(method: Method) -> int:
    """How many numbers a method trains."""
    return sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)


def draw(backbone: Backbone, count: int = 4, seed: int = 0) -> Tensor:
    """Random images."""
    size = backbone.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batch(method: Method, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    return draw(method.backbone, seed=seed), torch.arange(4) % len(method.classnames)


def train_steps(method: Method, steps: int = 3, lr: float = 0.1) -> None:
    """SGD on the sum of the method's losses."""
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr)
    method.train()
    for step in range(steps):
        optimiser.zero_grad()
        loss, _ = method.loss(*batch(method, step))
        loss.sum().backward()
        optimiser.step()
        assert torch.isfinite(loss).all()


@torch.no_grad()
def evaluate(method: Method) -> Tensor:
    """Logits of made images."""
    return method.eval()(draw(method.backbone, seed=1))
