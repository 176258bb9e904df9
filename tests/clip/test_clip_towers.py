"""The one way for prompts to enter: where they go, what they change, what they leave alone."""

from dataclasses import replace

import pytest
import torch
from clip_models import RESNET, SENTENCES, VIT, random_state

from clip import towers
from clip.backbone import end_of_text
from clip.loading import openai_backbone

N, D = 2, 64


@pytest.fixture(scope="module")
def backbone():
    return openai_backbone("small ViT", random_state(VIT))


@pytest.fixture(scope="module")
def resnet():
    return openai_backbone("small ResNet", random_state(RESNET))


def _draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _images(n=4, size=32):
    return _draw(n, 3, size, size, seed=7)


def _prompts(depth, *shape, first=0):
    return [_draw(*shape, seed=i) if i >= first else None for i in range(depth)]


def _close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_without_prompts_it_is_the_plain_model(backbone, resnet):
    for clip_backbone, size in ((backbone, 32), (resnet, 64)):
        images, tokens = _images(size=size), clip_backbone.tokenize(SENTENCES)
        assert torch.equal(clip_backbone.encode_image(images), clip_backbone.model.encode_image(images))
        assert torch.equal(clip_backbone.encode_text(tokens), clip_backbone.model.encode_text(tokens))


@torch.no_grad()
def test_image_prompts_against_the_written_out_loop(backbone):
    visual, images, prompts = backbone.model.visual, _images(), _prompts(2, N, D)
    x = visual.embed(images)
    count = x.shape[1]
    x = visual.ln_pre(torch.cat([x, prompts[0].expand(4, N, D)], dim=1))
    x = visual.transformer.resblocks[0](x)
    x = torch.cat([x[:, :count], prompts[1].expand(4, N, D)], dim=1)  # what block 0 made of its prompts is dropped
    x = visual.transformer.resblocks[1](x)
    x = visual.transformer.resblocks[2](x)  # past the depth they flow on
    assert x.shape[1] == count + N
    _close(backbone.encode_image(images, prompts), visual.pool(x))


@torch.no_grad()
def test_text_prompts_against_the_written_out_loop(backbone):
    model, prompts = backbone.model, _prompts(3, N, D, first=1)
    tokens = backbone.tokenize(SENTENCES)
    x = model.token_embedding(tokens) + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        if i > 0:
            x = torch.cat([x[:, :1], prompts[i].expand(len(tokens), N, D), x[:, 1 + N :]], dim=1)
        x = block(x, attend=towers.attend_causal)
    features = model.ln_final(x[torch.arange(len(tokens)), end_of_text(tokens)]) @ model.text_projection
    _close(backbone.encode_text(tokens, prompts), features)


def _late_image_tokens(visual, images, prompts, share):
    """Tokens after the last block, the prompts right behind the class token, from block 1 on."""
    x = visual.transformer.resblocks[0](visual.ln_pre(visual.embed(images)))
    x = torch.cat([x[:, :1], prompts[1].expand(len(x), N, D), x[:, 1:]], dim=1)
    x = visual.transformer.resblocks[1](x)
    mixed = share * prompts[2].expand(len(x), N, D) + (1 - share) * x[:, 1 : 1 + N]
    return visual.transformer.resblocks[2](torch.cat([x[:, :1], mixed, x[:, 1 + N :]], dim=1))


@torch.no_grad()
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_image_prompts_from_a_later_block_on_and_features_read_from_them(backbone, share):
    """Attention does not see where they stand: here behind the patches, there behind the class token."""
    visual, images, prompts = backbone.model.visual, _images(), _prompts(3, N, D, first=1)
    x, matrix = _late_image_tokens(visual, images, prompts, share), _draw(D, 32)
    expected = torch.stack([visual.pool(x), visual.ln_post(x)[:, 1 : 1 + N].mean(dim=1) @ matrix], dim=1)
    both = backbone.encode_image(images, prompts, share=share, read=lambda tokens: tokens.mean(dim=1) @ matrix)
    _close(both, expected)
    _close(backbone.encode_image(images, prompts, share=share), expected[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_text_prompts_inserted_against_the_written_out_loop(backbone, share):
    model, prompts = backbone.model, _prompts(3, N, D, first=1)
    tokens = backbone.tokenize([*SENTENCES, "word " * 75])  # the last one fills the context
    x, end = model.token_embedding(tokens) + model.positional_embedding, end_of_text(tokens)
    x = model.transformer.resblocks[0](x, attend=towers.attend_causal)
    x = torch.cat([x[:, :1], prompts[1].expand(len(x), N, D), x[:, 1:]], dim=1)
    assert x.shape[1] == 77 + N
    x = model.transformer.resblocks[1](x, attend=towers.attend_causal)
    mixed = share * prompts[2].expand(len(x), N, D) + (1 - share) * x[:, 1 : 1 + N]
    x = model.transformer.resblocks[2](torch.cat([x[:, :1], mixed, x[:, 1 + N :]], dim=1), attend=towers.attend_causal)
    features = model.ln_final(x[torch.arange(len(x)), end + N]) @ model.text_projection
    _close(backbone.encode_text(tokens, prompts, insert=True, share=share), features)
    assert torch.equal(backbone.encode_text(tokens, [None], insert=True), backbone.encode_text(tokens))


@torch.no_grad()
@pytest.mark.parametrize("blocks", [(0, 1, 2), (2,), (0,)])
def test_adapters_against_the_written_out_loop(backbone, blocks):
    """Their input is normalised, what they make is added to the block's output, in the last block too."""
    model, images, tokens = backbone.model, _images(), backbone.tokenize(SENTENCES)
    weights = {i: _draw(D, D, seed=i) / 8 for i in blocks}
    adapters = [None if i not in weights else (lambda x, w=weights[i]: x @ w) for i in range(3)]

    def run(transformer, x, **options):
        for i, block in enumerate(transformer.resblocks):
            y = block(x, **options)
            x = y + block.ln_1(x) @ weights[i] if i in weights else y
        return x

    x = run(model.transformer, model.token_embedding(tokens) + model.positional_embedding, attend=towers.attend_causal)
    t = model.ln_final(x[torch.arange(len(tokens)), end_of_text(tokens)]) @ model.text_projection
    z = model.visual.pool(run(model.visual.transformer, model.visual.ln_pre(model.visual.embed(images))))
    adapted = backbone.with_adapters(image=adapters, text=adapters)
    _close(adapted.encode_image(images), z)
    _close(adapted.encode_text(tokens), t)
    assert not adapted.plain_images
    only_text = backbone.with_adapters(text=adapters)
    assert only_text.plain_images
    assert torch.equal(only_text.encode_image(images), backbone.encode_image(images))
    with pytest.raises(ValueError, match="no attention blocks of OpenAI's kind"):
        towers.with_additions(replace(backbone.image, adaptable=False), "adapter", adapters)


@torch.no_grad()
def test_shared_prompts_equal_the_same_ones_per_sample(backbone):
    images, tokens = _images(), backbone.tokenize(SENTENCES)
    shared, text = _prompts(3, N, D), _prompts(3, N, D, first=1)
    per_image = [p.expand(4, N, D) for p in shared]
    per_text = [None if p is None else p.expand(len(tokens), N, D) for p in text]
    assert torch.equal(backbone.encode_image(images, shared), backbone.encode_image(images, per_image))
    assert torch.equal(backbone.encode_text(tokens, text), backbone.encode_text(tokens, per_text))


@torch.no_grad()
def test_per_sample_prompts_belong_to_their_sample(backbone):
    images = _images()
    prompts = [_draw(4, N, D, seed=i) for i in range(3)]
    together = backbone.encode_image(images, prompts)
    for i in range(4):
        _close(together[i : i + 1], backbone.encode_image(images[i : i + 1], [p[i] for p in prompts]))


@torch.no_grad()
def test_batch_composition_does_not_change_features(backbone, resnet):
    tokens, text = backbone.tokenize(SENTENCES), _prompts(3, N, D, first=1)
    for clip_backbone, size, prompts in ((backbone, 32, _prompts(3, N, D)), (resnet, 64, ())):
        images = _images(6, size)
        alone = torch.cat([clip_backbone.encode_image(image[None], prompts) for image in images])
        _close(clip_backbone.encode_image(images, prompts), alone)
    alone = torch.cat([backbone.encode_text(row[None], text) for row in tokens])
    _close(backbone.encode_text(tokens, text), alone)


@torch.no_grad()
def test_text_at_its_real_length_is_exact(backbone):
    tokens, prompts = backbone.tokenize(SENTENCES), _prompts(3, N, D, first=1)
    embeddings, end = backbone.token_embedding(tokens), end_of_text(tokens)
    full = backbone.encode_embeddings(embeddings, end, prompts)
    for length in (int(end.max()) + 1, int(end.max()) + 5, 77):
        _close(backbone.encode_embeddings(embeddings[:, :length], end, prompts), full)
    _close(backbone.encode_text(tokens, prompts), full)


def test_every_prompt_and_nothing_else_receives_gradient(backbone):
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    image = [p.requires_grad_() for p in _prompts(3, N, D)]
    text = [None if p is None else p.requires_grad_() for p in _prompts(3, N, D, first=1)]
    tokens = backbone.tokenize(SENTENCES)
    z, t = backbone.encode_image(_images(), image), backbone.encode_text(tokens, text)
    ((z @ t.T).square().mean() * backbone.logit_scale).backward()
    for prompt in [*image, *text[1:]]:
        assert (prompt.grad.abs().sum(dim=-1) > 0).all()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    after = backbone.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@torch.no_grad()
def test_depth_is_the_length_of_the_list(backbone):
    images, prompts = _images(), _prompts(3, N, D)
    features = [backbone.encode_image(images, prompts[:depth]) for depth in range(4)]
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(features[i], features[j])


@torch.no_grad()
def test_none_leaves_the_slots_as_they_flow(backbone):
    images, prompts = _images(), _prompts(1, N, D)
    assert torch.equal(backbone.encode_image(images, prompts), backbone.encode_image(images, [*prompts, None, None]))
    assert torch.equal(backbone.encode_image(images, [None]), backbone.encode_image(images))


@torch.no_grad()
def test_different_numbers_of_runs_share_a_batch(backbone):
    """Two runs' images concatenated, each with its own prompts, give each run's own features."""
    images, runs = _images(6), [_prompts(3, N, D), [_draw(N, D, seed=10 + i) for i in range(3)]]
    stacked = [torch.stack([a] * 4 + [b] * 2) for a, b in zip(*runs, strict=True)]
    together = backbone.encode_image(images, stacked)
    _close(together[:4], backbone.encode_image(images[:4], runs[0]))
    _close(together[4:], backbone.encode_image(images[4:], runs[1]))


def test_refusals(backbone, resnet):
    with pytest.raises(ValueError, match=r"48x48 pixels.*takes 32x32: resize"):
        backbone.encode_image(_images(size=48))
    with pytest.raises(ValueError, match="no token slots"):
        resnet.encode_image(_images(size=64), _prompts(1, N, D))
    with pytest.raises(AssertionError, match="cut the depth"):
        backbone.encode_image(_images(), _prompts(4, N, D))


def test_sizes(backbone, resnet):
    assert (backbone.vision_width, backbone.text_width, backbone.embed_dim) == (64, 64, 32)
    assert (backbone.vision_layers, backbone.text_layers, backbone.context_length) == (3, 3, 77)
    assert (resnet.vision_width, resnet.vision_layers, resnet.image_size) == (None, 0, 64)
    assert backbone.logit_bias is None
    torch.testing.assert_close(backbone.logit_scale, torch.tensor(3.0).exp())
    assert towers.encode_image(backbone.image, _images(1)).shape == (1, 32)
