"""Sentences are computed without padding and their common beginning once: features and gradients are the same."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_methods import batch, draw, small_vit

from adaptation.templates import DEFAULT
from clip.precision import CPU, Precision
from clip.towers import SentenceLayout
from trainers.apex import APEXMethod
from trainers.clip_lora import CLIPLoRAMethod
from trainers.cocoop import CoCoOpMethod
from trainers.coop import CoOpMethod
from trainers.ivlp import IVLPMethod
from trainers.kgcoop import KgCoOpMethod
from trainers.maple import MaPLeMethod
from trainers.mma import MMAMethod
from trainers.mmrl import MMRLMethod
from trainers.promptsrc import PromptSRCMethod
from trainers.tcp import TCPMethod

NAMES = ["tabby cat", "ox", "a very long-haired guinea pig", "ox cart", "pie"]  # 2, 1, 7, 2 and 1 tokens
# and the tokens that all sentences of a training step begin with; None where they are computed whole
METHODS: dict[str, tuple[Callable, int | None]] = {
    "CoOp": (CoOpMethod, 17),
    "CoOp, from words": (partial(CoOpMethod, init="a photo of a"), 5),
    "CoOp, name in the middle": (partial(CoOpMethod, n_ctx=4, position="middle"), 3),
    "CoOp, name in front": (partial(CoOpMethod, n_ctx=4, position="front"), 1),
    "CoOp, contexts of single classes": (partial(CoOpMethod, n_ctx=4, class_specific=True), 1),
    "CoCoOp": (partial(CoCoOpMethod, n_ctx=3), 4),
    "KgCoOp": (partial(KgCoOpMethod, template=DEFAULT), 5),
    "APEX": (APEXMethod, 5),
    "APEX with deep prompts": (partial(APEXMethod, depth_text=3), 5),
    "IVLP": (partial(IVLPMethod, depth_text=3, depth_vision=2), 5),
    "IVLP, more prompts than the beginning holds": (partial(IVLPMethod, n_text=6, depth_text=2, init=""), 7),
    "MaPLe": (partial(MaPLeMethod, depth=3), 5),
    "PromptSRC": (partial(PromptSRCMethod, n_text=4, depth_text=3, depth_vision=2), 5),
    "MMRL, tokens that are inserted": (
        partial(MMRLMethod, template=DEFAULT, n=2, width=8, layers=(2, 3), share=0.5),
        5,
    ),
    "MMA, adapters": (partial(MMAMethod, first=2, scale=0.1), 5),
    "CLIP-LoRA, no dropout": (partial(CLIPLoRAMethod, dropout=0.0), 5),
    "TCP, tokens of each class": (partial(TCPMethod, template=DEFAULT, layer=1), None),
}


def whole_sentences(backbone):
    """The backbone, whose sentences are padded and computed whole."""
    backbone.text = replace(backbone.text, tokenwise=False)
    return backbone


def step(backbone, kind):
    """A method's loss and gradients, by name."""
    torch.manual_seed(0)
    method = kind(backbone, NAMES).train()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    loss, _ = method.loss(*batch(method))
    learned = {name: p for name, p in method.named_parameters() if p.requires_grad}
    return method, loss, dict(zip(learned, torch.autograd.grad(loss, list(learned.values())), strict=True))


@pytest.fixture
def runs(monkeypatch):
    """The layouts by which a tower is run."""
    used, run = [], SentenceLayout.run

    def noted(layout, *arguments):
        used.append(layout)
        return run(layout, *arguments)

    monkeypatch.setattr(SentenceLayout, "run", noted)
    return used


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_that_of_whole_sentences(name, runs):
    kind, shared = METHODS[name]
    method, loss, gradients = step(small_vit(), kind)
    other, expected, whole = step(whole_sentences(small_vit()), kind)
    assert (loss - expected).abs() <= 1e-6 * expected.abs()
    for key, gradient in gradients.items():
        assert (gradient - whole[key]).abs().max() <= 5e-6 * whole[key].abs().max(), key
    runs.clear()
    method.loss(*batch(method))
    assert [layout.shared for layout in runs if layout.shared == shared or shared is None] == [shared] * len(runs)
    assert bool(runs) == (shared is not None)
    with torch.no_grad():
        logits, expected = (one.eval()(draw(one.backbone)) for one in (method, other))
    assert (logits - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_sentences_that_drop_places_of_their_own_share_nothing(runs):
    method, *_ = step(small_vit(), CLIPLoRAMethod)
    assert {layout.shared for layout in runs} == {0}
    assert len(runs) == 1
    with torch.no_grad():
        method.eval()(draw(method.backbone))
    assert [layout.shared for layout in runs] == [0, 5]


def test_what_is_computed():
    """The beginning once, and of each sentence what follows, whichever sentences are chosen."""
    tokens = torch.tensor([[9, 1, 2, 5, 8, 0], [9, 1, 2, 8, 0, 0], [9, 1, 2, 6, 7, 8]])
    layout = SentenceLayout.of(tokens, torch.tensor([4, 3, 5]))
    assert (layout.shared, layout.lengths, layout.length, len(layout)) == (3, (5, 4, 6), 6, 3)
    assert layout.last.tolist() == [4, 5, 8]  # of nine tokens
    assert (layout[1:3].lengths, layout[1:3].shared) == ((4, 6), 3)
    assert layout[1:3] is layout[1:3]
    assert (layout.repeat(2).lengths, layout.repeat(2).last.tolist()) == ((5, 4, 6) * 2, [7, 8, 11, 13, 14, 17])
    assert (layout.lengthened(2).lengths, layout.lengthened(2).shared) == ((7, 6, 8), 5)
    same = SentenceLayout.of(tokens[:1].expand(2, -1), torch.tensor([4, 4]))
    assert (same.shared, same.lengths) == (4, (5, 5)), "each sentence has its end token"


def test_layouts_of_ids_are_computed_once_and_follow_their_values():
    backbone = small_vit()
    tokens = backbone.tokenize(NAMES)
    assert backbone.layout(tokens) is backbone.layout(tokens)
    assert backbone.layout(tokens).shared == 1
    tokens.copy_(backbone.tokenize(["ox cart"] * len(tokens)))
    assert backbone.layout(tokens).shared == 3


@pytest.mark.parametrize("name", ["CoOp", "APEX with deep prompts"])
def test_bfloat16_rounds_as_with_whole_sentences(name):
    kind, _ = METHODS[name]
    exact = step(small_vit(), kind)[1]
    losses = []
    for backbone in (small_vit(), whole_sentences(small_vit())):
        precision = Precision("bf16", CPU)
        with precision.autocast():
            losses.append(step(precision.prepare(backbone), kind)[1])
    assert all((loss - exact).abs() <= 0.05 * exact.abs() for loss in losses), (losses, exact)


def test_chunks_of_sentences_keep_their_beginning(runs):
    kind, shared = METHODS["CoOp, from words"]
    _, expected, whole = step(whole_sentences(small_vit()), kind)
    runs.clear()
    backbone = small_vit().with_memory_limit(1)
    method, loss, gradients = step(backbone, kind)
    assert method.backbone.is_chunked
    assert {(len(layout), layout.shared) for layout in runs[2:]} == {(1, shared)}, "after what was measured"
    assert (loss - expected).abs() <= 1e-6 * expected.abs()
    assert all((gradients[key] - whole[key]).abs().max() <= 5e-6 * whole[key].abs().max() for key in whole)


@torch.no_grad()
def test_classes_that_were_trained_on_need_no_frozen_pass(runs):
    backbone, images = small_vit(), draw(small_vit())
    state = APEXMethod(backbone, NAMES).train().state_dict()
    lists = {"those": NAMES, "others": ["oak", *NAMES[:2]], "some of those": NAMES[1:3]}
    methods = {key: APEXMethod(backbone, names) for key, names in lists.items()}
    sentences = {}
    for key, method in methods.items():
        method.load_state_dict(state)
        runs.clear()
        method.eval()(images)
        sentences[key] = [len(layout) for layout in runs]
    assert sentences == {"those": [5], "others": [3, 6], "some of those": [2]}, "each row of tokens at most once"
    assert all((methods[key].ensemble_weights()["alpha"] == 1).all() for key in ("those", "some of those"))
    runs.clear()
    said = methods["some of those"].report()["apex"]
    assert [len(layout) for layout in runs] == [5]
    assert said["d_nn"] == [0, 0]
    assert min(said["d_avg"]) > 0
