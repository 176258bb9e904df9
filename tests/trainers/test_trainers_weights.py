"""Methods that learn weights of the towers, against CLIP's own module trained in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from clip_models import VIT, random_state
from small_methods import BASE, batch, small_vit
from torch import Tensor

from adaptation.learned_weights import LearnedTowers, tower_weights
from clip import clip
from clip.model import CLIP, from_state_dict

PET = "a photo of a {}, a type of pet."


def plain_clip() -> CLIP:
    """The weights of `small_vit` in a module of their own."""
    return from_state_dict(random_state(VIT))


def tokens(template: str, classnames: list[str]) -> Tensor:
    return clip.tokenize([template.replace("{}", name.replace("_", " ")) for name in classnames])


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(dim=-1, keepdim=True).sqrt()


def is_norm(name: str) -> bool:
    return name.split(".")[-2].startswith("ln_") if "." in name else False


@pytest.mark.parametrize(
    ("kind", "encoder", "mine"),
    [
        ("all", "both", lambda name: name != "logit_scale"),
        ("all", "vision", lambda name: name.startswith("visual.")),
        ("norm", "both", is_norm),
        ("norm", "text", lambda name: is_norm(name) and "visual" not in name),
        ("bias", "both", lambda name: name.endswith("bias")),
    ],
)
def test_fine_tuning(kind, encoder, mine):
    """Loss, gradients and one step."""
    backbone, model = small_vit(), plain_clip()
    method = LearnedTowers(backbone, BASE, PET, tower_weights(backbone, encoder, kind)).train()
    images, labels = batch(method)
    learned = method.learned.learned()
    assert set(learned) == {name for name, _ in model.named_parameters() if mine(name)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(mine(name))
    z, t = model.encode_image(images), model.encode_text(tokens(PET, BASE))
    expected = F.cross_entropy(model.logit_scale.exp() * unit(z) @ unit(t).T, labels)
    loss, _ = method.loss(images, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for name, value in learned.items():
        torch.testing.assert_close(value.grad, model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)
    for parameters in (learned.values(), [p for p in model.parameters() if p.requires_grad]):
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2).step()
    for name, value in learned.items():
        torch.testing.assert_close(value, model.get_parameter(name), rtol=1e-4, atol=1e-6)
