"""What `build_model` gives to trainers written by others: OpenAI's conventions, and prompts as parts of the towers."""

import ast
import logging
from pathlib import Path

import pytest
import torch
from clip_models import RESNET, SENTENCES, VIT, random_state
from torch import nn

from clip import towers
from clip.clip import build_model, load, tokenize
from clip.model import from_state_dict

ROOT = Path(__file__).resolve().parents[2]
NONE = {"vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}
WIDTH, LAYERS = 64, 3


@pytest.fixture(scope="module")
def state():
    return random_state(VIT)


@pytest.fixture(scope="module")
def plain(state):
    return from_state_dict(state)


def build(state, **design):
    """A model as a trainer with PREC fp32 makes it."""
    return build_model(dict(state), {**NONE, **design}).float()


def images(n=2):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def encode(model, tokens, prompts=None):
    """Text features by the steps of a third-party `TextEncoder`, at the full context length."""
    x = model.token_embedding(tokens).type(model.dtype) + model.positional_embedding.type(model.dtype)
    x = x.permute(1, 0, 2)  # NLD -> LND
    x = model.transformer(x) if prompts is None else model.transformer([x, prompts, 0])[0]
    x = model.ln_final(x.permute(1, 0, 2)).type(model.dtype)
    return x[torch.arange(x.shape[0]), tokens.argmax(dim=-1)] @ model.text_projection


def conditions():
    return [None, {}, {"trainer": "CoOp", **NONE}, {"trainer": "CoCoOp", **NONE}, {"trainer": "MaPLe", **NONE}]


@pytest.mark.parametrize("design", conditions())
@torch.no_grad()
def test_without_prompts_it_is_the_plain_model(state, plain, design):
    model, tokens = build_model(dict(state), design).float(), tokenize(SENTENCES)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for features in (encode(model, tokens), model.encode_text(tokens)):
        close(features, plain.encode_text(tokens))
    for features in (model.visual(images()), model.encode_image(images())):
        close(features, plain.encode_image(images()))
    close(model(images(), tokens)[0], plain(images(), tokens)[0])


@torch.no_grad()
def test_blocks_take_tokens_sequence_first(state, plain):
    model, x = build(state), torch.randn(5, 2, WIDTH)
    for tower, reference, attend in (
        (model.transformer, plain.transformer, towers.attend_causal),
        (model.visual.transformer, plain.visual.transformer, None),
    ):
        expected = reference(x.transpose(0, 1), attend).transpose(0, 1)
        close(tower(x), expected)
        step = x
        for block in tower.resblocks:
            assert isinstance(block.attn, nn.MultiheadAttention)
            step = block(step)
        close(step, expected)
    assert (tower.width, tower.layers) == (WIDTH, LAYERS)


def test_a_design_names_its_parameters(state):
    model = build(state, trainer="IVLP", vision_depth=2, vision_ctx=4, language_depth=9, language_ctx=2)
    prompts = {name: p for name, p in model.named_parameters() if "VPT" in name}
    assert {name: tuple(p.shape) for name, p in prompts.items()} == {
        "visual.VPT": (4, WIDTH),
        "visual.transformer.resblocks.1.VPT_shallow": (4, WIDTH),
        "transformer.resblocks.1.VPT_shallow": (2, WIDTH),
        "transformer.resblocks.2.VPT_shallow": (2, WIDTH),
    }
    assert all(p.requires_grad and not p.is_meta for p in prompts.values())
    assert torch.cat(list(prompts.values())).std().item() == pytest.approx(0.02, rel=0.15)
    shallow = build(state, trainer="VPT", vision_depth=1, vision_ctx=8)
    assert [name for name, _ in shallow.named_parameters() if "VPT" in name] == ["visual.VPT"]


def test_prompts_in_the_towers_equal_prompts_as_arguments(state, plain):
    model, tokens = (
        build(state, trainer="IVLP", vision_depth=3, vision_ctx=4, language_depth=2, language_ctx=2),
        tokenize(SENTENCES),
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "VPT" in name:
                p.normal_()
        blocks = model.visual.transformer.resblocks
        visual = [model.visual.VPT, blocks[1].VPT_shallow, blocks[2].VPT_shallow]
        close(model.visual(images()), towers.encode_image(plain.visual.tower(), images(), visual))
        tower = plain.text_tower()
        text = [None, model.transformer.resblocks[1].VPT_shallow]
        expected = towers.encode_text(tower, tower.lookup(tokens), tokens.argmax(dim=-1), text)
        close(encode(model, tokens), expected)
        close(model.encode_text(tokens), expected)
    (model.visual(images()).sum() + encode(model, tokens).sum()).backward()
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "VPT" in name)


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
@torch.no_grad()
def test_maple_hands_its_prompts_over(state, plain, depth):
    """Prompts for more blocks than there are go unused, as in the official code."""
    model, tokens = build(state, trainer="MaPLe", maple_length=2), tokenize(SENTENCES)
    shared, deep = torch.randn(2, WIDTH), list(torch.randn(depth - 1, 2, WIDTH))
    expected = towers.encode_image(plain.visual.tower(), images(), [shared, *deep][:LAYERS])
    close(model.visual(images(), shared, deep), expected)
    tower = plain.text_tower()
    close(
        encode(model, tokens, deep),
        towers.encode_text(tower, tower.lookup(tokens), tokens.argmax(dim=-1), [None, *deep][:LAYERS]),
    )
    x, returned, counter = model.transformer([torch.randn(77, 3, WIDTH), deep, 0])
    assert x.shape == (77, 3, WIDTH)
    assert returned is deep
    assert counter == min(depth, LAYERS) - 1
    tokens = torch.cat([plain.visual.embed(images()), shared.expand(2, -1, -1)], dim=1)
    x = model.visual.transformer([plain.visual.ln_pre(tokens).transpose(0, 1), deep, 0])[0]
    close(plain.visual.pool(x.transpose(0, 1)), expected)


def test_formats_are_openais(state):
    model = build_model(dict(state), {**NONE, "vision_depth": 2, "vision_ctx": 2})
    formats = {name: p.dtype for name, p in model.named_parameters()}
    half = model.dtype
    assert half == model.visual.conv1.weight.dtype == formats["visual.proj"] == formats["text_projection"]
    assert formats["transformer.resblocks.0.attn.in_proj_bias"] == half
    for name in ("ln_final.weight", "positional_embedding", "token_embedding.weight", "visual.VPT", "logit_scale"):
        assert formats[name] == model.float().dtype != half, name
    assert (model.visual.input_resolution, model.visual.output_dim) == (32, 32)
    assert not model.training


def test_two_models_share_no_weights(state):
    first, second = build(state), build(state)
    kept = second.ln_final.weight.clone()
    with torch.no_grad():
        for p in first.parameters():
            p.add_(1)
    assert torch.equal(second.ln_final.weight, kept)
    assert torch.equal(state["ln_final.weight"], kept)


def test_missing_prompts_are_logged(state, caplog):
    caplog.set_level(logging.INFO, "clip")
    logging.getLogger("clip").propagate = True  # another test may have attached the handler of a run
    build(state)
    assert not caplog.text
    build(state, vision_depth=1, vision_ctx=1)
    assert "Weights not found for some missing keys: ['visual.VPT']" in caplog.text
    build(state, atprompt_num=2)
    assert "nothing here knows atprompt_num" in caplog.text


def test_kept_prompts_are_loaded(state):
    design = {"vision_depth": 2, "vision_ctx": 2}
    trained = build(state, **design).state_dict()
    again = build(trained, **design)
    assert torch.equal(again.visual.VPT, trained["visual.VPT"])
    with pytest.raises(ValueError, match=r"not used: visual\.VPT"):
        build(trained)
    del trained["ln_final.bias"]
    with pytest.raises(ValueError, match=r"missing: ln_final\.bias"):
        build(trained, **design)


@torch.no_grad()
def test_resnet_takes_no_visual_prompts():
    state = random_state(RESNET)
    with pytest.raises(ValueError, match="no token slots"):
        build(state, vision_depth=1, vision_ctx=2)
    model, plain = build(state, language_depth=2, language_ctx=2), from_state_dict(state)
    close(model.visual(torch.ones(1, 3, 64, 64)), plain.visual(torch.ones(1, 3, 64, 64)))
    assert [name for name, _ in model.named_parameters() if "VPT" in name] == ["transformer.resblocks.1.VPT_shallow"]


@torch.no_grad()
def test_load_has_the_same_conventions(state, plain, tmp_path):
    torch.save(state, tmp_path / "weights.pt")
    model, _ = load(str(tmp_path / "weights.pt"), "cpu", jit=False)
    close(encode(model, tokenize(SENTENCES)), plain.encode_text(tokenize(SENTENCES)))
    assert model.dtype == plain.dtype


def test_no_module_imports_it():
    for room in ("adaptation", "clip", "dassl", "datasets", "trainers"):
        for path in (ROOT / room).rglob("*.py"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            for node in body:
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    said = [getattr(node, "module", "") or "", *(alias.name for alias in node.names)]
                    assert not any("design_details" in name for name in said), path
