"""In the last block only the token that is read out is computed: the same features and gradients, fewer operations."""

from copy import copy
from dataclasses import replace

import pytest
import torch
from clip_models import SENTENCES
from small_methods import draw, small_vit
from torch.utils.flop_counter import FlopCounterMode

from clip.backbone import Backbone


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def whole(backbone: Backbone) -> Backbone:
    """The same backbone whose last blocks compute every token."""
    other = copy(backbone)
    other.image, other.text = replace(backbone.image, last=None), replace(backbone.text, last=None)
    return other


def prompts(first: int, width: int) -> list:
    return [torch.randn(2, width, requires_grad=True) if i >= first else None for i in range(3)]


def features(backbone: Backbone, image: list, text: list) -> torch.Tensor:
    tokens = backbone.tokenize(SENTENCES)
    return torch.cat([backbone.encode_image(draw(backbone), image), backbone.encode_text(tokens, text)])


def test_features_and_gradients_are_the_same(backbone):
    torch.manual_seed(0)
    image, text = prompts(0, backbone.vision_width), prompts(1, backbone.text_width)
    learned = [*image, *text[1:]]
    ours, theirs = (features(b, image, text) for b in (backbone, whole(backbone)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    pairs = (torch.autograd.grad(f.square().sum(), learned) for f in (ours, theirs))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_additions_to_the_projections_of_the_last_block_count(backbone):
    torch.manual_seed(0)

    def deltas(width: int) -> list:
        weights = torch.randn(3, 3 * width, width) * width**-0.5
        return [lambda x, w=w: x @ w.T for w in weights]

    image, text = deltas(backbone.vision_width), deltas(backbone.text_width)
    ours, theirs = (features(b.with_qkv_deltas(image, text), [], []) for b in (backbone, whole(backbone)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    only_last = features(backbone.with_qkv_deltas([None, None, image[2]], [None, None, text[2]]), [], [])
    assert (only_last - features(backbone, [], [])).abs().amin(dim=0).max() > 0.1


def test_fewer_operations(backbone):
    def count(b: Backbone) -> int:
        with FlopCounterMode(display=False) as counter:
            b.encode_image(draw(b))
        return counter.get_total_flops()

    assert count(backbone) < 0.85 * count(whole(backbone))
