"""The plain model: equal to open_clip's OpenAI model of the same weights, and its behaviour as a module."""

import pytest
import torch
from clip_models import RESNET, SENTENCES, VIT, random_state
from open_clip.model import build_model_from_openai_state_dict

from clip.clip import build_model, tokenize
from clip.model import CLIP, architecture, convert_weights, from_state_dict

KINDS = {"vit": VIT, "resnet": RESNET}


@pytest.fixture(scope="module", params=KINDS)
def state(request):
    return random_state(KINDS[request.param])


def _images(model, n=4):
    size = model.visual.input_resolution
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_equals_open_clip(state):
    ours = from_state_dict(state)
    theirs = build_model_from_openai_state_dict(dict(state)).float()
    images, tokens = _images(ours), tokenize(SENTENCES)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(tokens), theirs.encode_text(tokens), rtol=1e-5, atol=1e-5)
        per_image, per_text = ours(images, tokens)
        image_logits, text_logits = theirs.get_logits(images, tokens)
    torch.testing.assert_close(per_image, image_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(per_text, text_logits, rtol=1e-4, atol=1e-4)


def test_half_precision_is_kept_where_openai_keeps_it(state):
    ours = {key: value.dtype for key, value in build_model(dict(state)).state_dict().items()}
    theirs = {key: value.dtype for key, value in build_model_from_openai_state_dict(dict(state)).state_dict().items()}
    assert ours == theirs


def _cosine(a, b):
    return torch.cosine_similarity(a.float(), b.float(), dim=-1).min()


def test_precisions_agree(state):
    model, tokens = from_state_dict(state), tokenize(SENTENCES)
    images = _images(model)
    with torch.no_grad():
        image, text = model.encode_image(images), model.encode_text(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            assert _cosine(model.encode_image(images), image) > 0.999
            assert _cosine(model.encode_text(tokens), text) > 0.999
        convert_weights(model)
        assert _cosine(model.encode_text(tokens), text) > 0.9999
        if "visual.proj" in state:  # a CPU has no half-precision batch normalisation with float32 statistics
            assert _cosine(model.encode_image(images), image) > 0.9999


def test_loading_does_not_touch_the_random_state(state):
    before = torch.get_rng_state()
    from_state_dict(state)
    assert torch.equal(torch.get_rng_state(), before)


def test_sizes_are_read_from_shapes(state):
    expected = RESNET if "visual.attnpool.positional_embedding" in state else VIT
    assert architecture(state) == expected


def test_a_model_trained_from_scratch_starts_finite():
    torch.manual_seed(0)
    model = CLIP(**VIT).eval()
    logits, _ = model(_images(model), tokenize(SENTENCES))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("missing", ["text_projection", "visual.conv1.weight", "visual.positional_embedding"])
def test_missing_weights_are_named(missing):
    state = random_state(VIT)
    del state[missing]
    with pytest.raises(ValueError, match=missing):
        from_state_dict(state)


def test_left_over_weights_are_named():
    state = {**random_state(VIT), "visual.mystery": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"not used.*visual\.mystery"):
        from_state_dict(state)


def test_weights_of_something_else_are_refused():
    with pytest.raises(ValueError, match=r"neither visual\.proj nor visual\.attnpool"):
        architecture({key: value for key, value in random_state(VIT).items() if not key.startswith("visual.")})
    with pytest.raises(ValueError, match="not the weights of an OpenAI CLIP"):
        architecture({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)})


def test_width_that_heads_do_not_divide_is_refused():
    state = random_state({**VIT, "transformer_width": 96})
    with pytest.raises(ValueError, match="96"):
        architecture(state)
