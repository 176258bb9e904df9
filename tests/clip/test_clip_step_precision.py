"""Under autocast the frozen weights are held in the format that it computes in: the same features, no conversions."""

import pytest
import torch
from clip_models import SENTENCES
from small_methods import draw, small_vit

from clip.precision import CPU, Precision, tf32_state


@pytest.mark.parametrize("name", ["bf16", "amp"])
def test_weights_are_converted_once(name):
    precision, backbone, whole = Precision(name, CPU), small_vit(), small_vit()
    weights = precision.prepare(backbone).model.visual.transformer.resblocks[0].mlp.c_fc.weight
    assert weights.dtype == torch.bfloat16
    assert backbone.model.ln_final.weight.dtype == torch.float32
    assert backbone.logit_scale.dtype == torch.float32
    tokens = whole.tokenize(SENTENCES)
    with precision.autocast(), torch.no_grad():
        assert torch.equal(backbone.encode_image(draw(whole)), whole.encode_image(draw(whole)))
        assert torch.equal(backbone.encode_text(tokens), whole.encode_text(tokens))


def test_tf32_is_said(monkeypatch):
    assert tf32_state().startswith("matrix products in full float32")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert tf32_state().startswith("matrix products in TF32")
