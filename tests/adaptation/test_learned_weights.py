"""Learned weights of the towers: which ones, in which precision, their average, what memory and stacking make of it."""

import gc
import logging
import weakref

import pytest
import torch
from clip_models import RESNET, VIT, random_state
from conformance import logits, make
from small_methods import BASE, batch, draw, small_vit, train_steps

from adaptation.learned_weights import LearnedTowers, LearnedWeights, tower_weights
from adaptation.stacking import run_together
from clip import clip
from clip.backbone import Backbone
from clip.loading import load_backbone, openai_backbone
from clip.model import ARCHITECTURES, CLIP
from clip.precision import CPU, Precision
from trainers.zsclip import ZeroshotMethod

PET = "a photo of a {}, a type of pet."


@pytest.fixture(scope="module")
def vit_b16() -> Backbone:
    """ViT-B/16 without weights."""
    with torch.device("meta"):
        model = CLIP(**ARCHITECTURES["ViT-B/16"])
    return Backbone("ViT-B/16", model, model.visual.tower(), model.text_tower(), clip.tokenize)


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        ({}, 149_620_737 - 1),  # without the logit scale
        ({"kind": "norm"}, 65_536),
        ({"kind": "norm", "encoder": "text"}, 25 * 2 * 512),
        ({"kind": "bias"}, 12 * 11 * (768 + 512) + 2 * 768 + 512),
        ({"first_block": 7}, 62_099_456),
        ({"first_block": 7, "encoder": "vision"}, 6 * 7_087_872 + 2 * 768 + 768 * 512),
    ],
)
def test_sizes_on_vit_b16(vit_b16, selection, count):
    names = tower_weights(vit_b16, **selection)
    assert sum(vit_b16.model.get_parameter(name).numel() for name in names) == count
    assert len(names) == len(set(names))


def test_what_cannot_be_learned_is_refused():
    resnet = openai_backbone("small ResNet", random_state(RESNET))
    for selection in ({"kind": "norm"}, {"first_block": 2}):
        with pytest.raises(ValueError, match=r"small ResNet is a ResNet.*ENCODER to 'text'.*ViT"):
            tower_weights(resnet, **selection)
        assert all(not name.startswith("visual") for name in tower_weights(resnet, "text", **selection))
    assert any("bn1" in name for name in tower_weights(resnet, kind="bias"))
    with pytest.raises(ValueError, match="ENCODER is 'image'"):
        tower_weights(resnet, "image")
    with pytest.raises(ValueError, match=r"ALPHA is 1\.5"):
        LearnedWeights(resnet, tower_weights(resnet), 1.5)


def test_a_resnet_learns_everything_but_its_statistics():
    backbone = openai_backbone("small ResNet", random_state(RESNET))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    method = LearnedTowers(backbone, BASE, PET, tower_weights(backbone))
    start = {name: value.detach().clone() for name, value in method.named_parameters()}
    train_steps(method, steps=1, lr=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(not torch.equal(value, start[name]) for name, value in method.named_parameters() if "bn" in name)


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_at_the_start_it_is_zero_shot_clip(mode):
    backbone, precision = small_vit(), Precision(mode, CPU)
    precision.prepare(backbone)
    images = draw(backbone)
    with torch.no_grad(), precision.autocast():
        method = LearnedTowers(backbone, BASE, PET, tower_weights(backbone)).eval()
        assert torch.equal(method.image_features(images), backbone.encode_image(images).float())
        assert torch.equal(method.text_features(), backbone.encode_text(method.tokens).float())
        zero_shot = ZeroshotMethod(backbone, BASE, [PET])(images)
        torch.testing.assert_close(method(images), zero_shot)
    assert all(parameter.dtype == torch.float32 for parameter in method.parameters())


def test_half_precision_starts_from_the_whole_weights(small_weights):
    """float32 values are read again where the towers hold rounded ones; steps too small for those are not lost."""
    state = torch.load(small_weights)
    backbone = Precision("bf16", CPU).prepare(load_backbone(str(small_weights)))
    method = LearnedTowers(backbone, BASE, PET, tower_weights(backbone))
    learned = method.learned.learned()
    assert all(torch.equal(value, state[name]) for name, value in learned.items())
    assert any(not torch.equal(backbone.model.get_parameter(name).float(), state[name]) for name in learned)
    method.train()
    with Precision("bf16", CPU).autocast():
        method.loss(*batch(method))[0].backward()
    assert all(value.grad.dtype == torch.float32 and value.grad.isfinite().all() for value in learned.values())
    state["logit_scale"] += 1
    torch.save(state, small_weights.with_name("other.pt"))
    backbone.reload = lambda: load_backbone(str(small_weights.with_name("other.pt")))
    with pytest.raises(ValueError, match="were changed since"):
        LearnedWeights(backbone, list(learned))


def test_average_with_the_frozen_weights():
    backbone = small_vit()
    names = tower_weights(backbone)
    method = LearnedTowers(backbone, BASE, PET, names, share=0.3)
    train_steps(method, steps=2, lr=1e-2)
    learned = {name: value.detach().clone() for name, value in method.learned.learned().items()}
    frozen = {name: backbone.model.get_parameter(name) for name in names}
    mixed = {**random_state(VIT), **{name: 0.3 * learned[name] + 0.7 * frozen[name] for name in names}}
    images = draw(backbone, seed=3)
    with torch.no_grad():
        expected = ZeroshotMethod(openai_backbone("mixed", mixed), BASE, [PET])(images)
        training = method(images)
        torch.testing.assert_close(method.eval()(images), expected)
        assert (training - expected).abs().max() > 1e-2
        for value in method.learned.learned().values():  # other weights have another average
            value.mul_(1.01)
        assert (method(images) - expected).abs().max() > 1e-4
        for name, value in method.learned.learned().items():
            value.copy_(learned[name])
        method.train().learned.finish(half=False)
        torch.testing.assert_close(method(images), expected)
        torch.testing.assert_close(method.eval()(images), expected)  # not averaged a second time


def test_a_small_memory_encodes_in_parts():
    """Activations are computed again in the backward pass, with the learned weights."""
    whole, parts = (
        LearnedTowers(backbone, BASE, PET, tower_weights(backbone)).train()
        for backbone in (small_vit(), small_vit().with_memory_limit(2**19))
    )
    for method in (whole, parts):
        method.loss(*batch(method))[0].backward()
    assert parts.backbone.is_chunked
    assert not whole.backbone.is_chunked
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_nothing_holds_the_weights_of_a_run_that_is_over():
    backbone = small_vit()
    method = LearnedTowers(backbone, BASE, PET, tower_weights(backbone))
    alive = weakref.ref(method.learned)
    gc.disable()
    try:
        del method
        assert alive() is None
    finally:
        gc.enable()


def test_seeds_that_learn_norms_are_computed_together(eurosat_root, tmp_path, caplog):
    trainers = [make("LayerNormTuning", eurosat_root, tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]
    with caplog.at_level(logging.INFO, "adaptation"):
        assert run_together([trainer.train for trainer in trainers]) == [None] * 3
    assert "runs together" in caplog.text
    assert "could not be computed together" not in caplog.text


def test_one_checkpoint_with_what_is_evaluated(eurosat_root, tmp_path):
    """Half its size on request, without the state of an optimiser; what a run says is what its checkpoint says."""
    opts = {"TRAINER.FULLFINETUNING.ALPHA": "0.5", "TRAINER.FULLFINETUNING.CHECKPOINT": "fp16", "OPTIM.LR": "0.001"}
    trainer = make("FullFineTuning", eurosat_root, tmp_path / "run", **opts)
    trainer.train()
    files = sorted(path.name for path in (tmp_path / "run/learned_weights").iterdir())
    assert files == ["checkpoint", "model.pth.tar-1"]
    saved = torch.load(tmp_path / "run/learned_weights/model.pth.tar-1", weights_only=True)
    assert saved["optimizer"] is saved["scheduler"] is None
    dtypes = {value.dtype for value in saved["state_dict"].values()}
    assert dtypes == {torch.float16, torch.bool}
    said = logits(trainer)
    again = make("FullFineTuning", eurosat_root, tmp_path / "again", **opts)
    again.load_model(str(tmp_path / "run"))
    assert torch.equal(logits(again), said)
    further = make("FullFineTuning", eurosat_root, tmp_path / "further", **opts, **{
        "MODEL.INIT_WEIGHTS": str(tmp_path / "run/learned_weights/model.pth.tar-1")
    })  # fmt: skip
    assert not further.model.learned.averaged  # a start like any other
    with pytest.raises(ValueError, match=r"TRAINER\.FULLFINETUNING\.CHECKPOINT is 'fp8'"):
        make("FullFineTuning", eurosat_root, tmp_path / "none", **{"TRAINER.FULLFINETUNING.CHECKPOINT": "fp8"})
