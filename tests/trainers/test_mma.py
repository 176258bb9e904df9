"""MMA against its equations written out: features, the scaled gradient, a step; names, sizes, refusals."""

import pytest
import torch
import written_out
from clip_models import RESNET, VIT, random_state
from parity import make_trainer, trainer_config
from small_methods import BASE, NEW, count_learned, draw, evaluate, small_vit, train_steps, vit_b16

from adaptation.templates import DEFAULT
from clip.loading import openai_backbone
from trainers.mma import MMAMethod
from trainers.zsclip import ZeroshotMethod

LEARNER = "adapter_learner"


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def logits(backbone, values, images, classnames, blocks, scale):
    """From values by their official names; the scale is that of an ordinary product."""

    def beside(side):
        def add(i, normed):
            if i + 1 not in blocks:
                return 0.0
            names = (f"{side}_adapter.{i + 1}.down.0", f"shared_adapter.{i + 1}.0", f"{side}_adapter.{i + 1}.up")
            for name, rectified in zip(names, (True, True, False), strict=True):
                weight, bias = (values[f"{LEARNER}.{name}.{kind}"] for kind in ("weight", "bias"))
                normed = normed @ weight.T + bias
                normed = normed.clamp(min=0) if rectified else normed
            return scale * normed

        return add

    sentences = [f"a photo of a {name.replace('_', ' ')}." for name in classnames]
    t = written_out.text_features(backbone, *written_out.embeddings(backbone, sentences), beside=beside("text"))
    z = written_out.image_features(backbone, images, beside=beside("visual"))
    return backbone.logit_scale * z @ t.T


@pytest.mark.parametrize(("first", "last", "blocks"), [(1, 2, {1, 2}), (2, 12, {2, 3}), (3, 3, {3})])
def test_forward(backbone, first, last, blocks):
    torch.manual_seed(0)
    method = MMAMethod(backbone, BASE, first=first, last=last, bottleneck=5, scale=0.5).eval()
    assert set(map(int, method.shared_adapter)) == blocks
    images = draw(backbone)
    expected = logits(backbone, written_out.learned(method), images, BASE, blocks, 0.5)
    torch.testing.assert_close(method(images), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, evaluate(ZeroshotMethod(backbone, BASE, [DEFAULT])), atol=0.1)


@pytest.mark.parametrize("scale", [0.001, 0.3])
def test_a_step_with_the_scaled_gradient(backbone, tmp_path, scale):
    """The weights learn as if the scale were 1: by the plain network's gradient over the scale, layer upon layer."""
    batches = [{"img": draw(backbone, seed=5), "label": torch.tensor([0, 1, 2, 0])}]
    keys = {"PREC": "fp32", "ADAPTER_START": 1, "ADAPTER_DIM": 4, "ADAPTER_SCALE": scale}
    optim = {"NAME": "sgd", "LR": 0.0015, "MAX_EPOCH": 1}
    trainer = make_trainer(trainer_config("MMA", optim, keys, tmp_path), backbone, BASE, batches)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    values = written_out.learned(trainer.model)
    expected = logits(backbone, values, batches[0]["img"], BASE, {1, 2, 3}, scale)
    loss = written_out.cross_entropy(expected, batches[0]["label"])
    gradients = {name: plain / scale for name, plain in written_out.gradients(loss, values).items()}
    assert all(gradient.any() for gradient in gradients.values())
    trainer.train()
    assert trainer.rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(trainer.grad0[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max())
    written_out.SGD(0.0015).step(values, gradients)
    for name, learned in trainer.model.state_dict().items():
        torch.testing.assert_close(learned, values[name].detach(), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_starts_near_zero_shot(backbone):
    torch.manual_seed(0)
    method, plain = MMAMethod(backbone, BASE, first=1), ZeroshotMethod(backbone, BASE, [DEFAULT])
    images = draw(backbone)
    with torch.no_grad():
        z, z0 = (torch.nn.functional.normalize(m.image_features(images), dim=-1) for m in (method, plain))
        t, t0 = (torch.nn.functional.normalize(m.text_features(), dim=-1) for m in (method, plain))
    assert 0 < (z - z0).abs().max() < 0.005  # of features of length 1
    assert 0 < (t - t0).abs().max() < 0.005  # of features of length 1


def test_names_and_numbers_learned(backbone):
    method = MMAMethod(backbone, BASE, first=2)
    layers = {f"shared_adapter.{i}.0" for i in (2, 3)}
    layers |= {f"{side}_adapter.{i}.{n}" for side in ("text", "visual") for i in (2, 3) for n in ("down.0", "up")}
    assert set(method.state_dict()) == {f"{LEARNER}.{n}.{kind}" for n in layers for kind in ("weight", "bias")}
    assert count_learned(MMAMethod(vit_b16(), BASE)) == 674_560


def test_a_tower_takes_the_blocks_that_it_has():
    deep = openai_backbone("deep", random_state({**VIT, "vision_layers": 5}))
    method = MMAMethod(deep, BASE, first=3)
    assert list(method.text_adapter) == ["3"]
    assert list(method.visual_adapter) == list(method.shared_adapter) == ["3", "4", "5"]


def test_state_serves_other_classes(backbone):
    torch.manual_seed(1)
    trained, other = MMAMethod(backbone, BASE, first=1), MMAMethod(backbone, NEW, first=1)
    train_steps(trained, lr=0.01)
    other.load_state_dict(trained.state_dict())
    expected = logits(backbone, written_out.learned(trained), draw(backbone, seed=1), NEW, {1, 2, 3}, 0.001)
    torch.testing.assert_close(evaluate(other), expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first": 0}, "ADAPTER_START is 0"),
        ({"first": 4}, "ADAPTER_START is 4.* 3 blocks"),
        ({"first": 3, "last": 2}, r"ADAPTER_END \(2\)"),
        ({"first": 1, "bottleneck": 0}, "ADAPTER_DIM is 0"),
    ],
)
def test_refusals(backbone, settings, said):
    with pytest.raises(ValueError, match=said):
        MMAMethod(backbone, BASE, **settings)


def test_a_resnet_is_refused():
    with pytest.raises(ValueError, match=r"is a ResNet.* ViT"):
        MMAMethod(openai_backbone("small ResNet", random_state(RESNET)), BASE)
