"""TCP against its equations written out: features, loss, a step of Adam; names, sizes, refusals."""

import pytest
import torch
import written_out
from clip_models import RESNET, random_state
from parity import make_trainer, trainer_config
from small_methods import BASE, NEW, count_learned, draw, evaluate, small_vit, train_steps, vit_b16

from clip.loading import openai_backbone
from trainers.tcp import ENDINGS, TCPMethod

TEXTURE = "a photo of a {}, a type of texture."
PART = "prompt_learner"


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def text_features(backbone, values, classnames, layer, ending="{}."):
    """Normalised text features, from values by their official names; the sentence has four words before `ending`."""
    sentences = [f"b b b b {ending.replace('{}', name.replace('_', ' '))}" for name in classnames]
    x, end = written_out.embeddings(backbone, sentences)
    frozen = written_out.sentence_features(backbone, TEXTURE, classnames).detach()
    down, up = (f"{PART}.meta_net.linear{i}" for i in (1, 2))
    hidden = frozen @ values[f"{down}.weight"].T + values[f"{down}.bias"]
    hidden = hidden / (1 + torch.exp(-1.702 * hidden))
    of_class = (hidden @ values[f"{up}.weight"].T + values[f"{up}.bias"]).reshape(len(classnames), 4, -1)
    x = torch.cat([x[:, :1], values[f"{PART}.ctx"].expand(len(x), -1, -1), x[:, 5:]], dim=1)

    def before(i, x):
        return torch.cat([x[:, :1], of_class, x[:, 5:]], dim=1) if i == layer else x

    return written_out.text_features(backbone, x, end, before), frozen


def loss(backbone, values, images, labels, layer):
    t, frozen = text_features(backbone, values, BASE, layer)
    logits = backbone.logit_scale * written_out.image_features(backbone, images) @ t.T
    return written_out.cross_entropy(logits, labels) + 8 * (1 - (t * frozen).sum(dim=1).mean())


@pytest.mark.parametrize(("layer", "block"), [(1, 1), (2, 2), (8, 2)])
def test_forward(backbone, layer, block):
    torch.manual_seed(0)
    method = TCPMethod(backbone, BASE, TEXTURE, ENDINGS["UCF101"], layer=layer).eval()
    t, _ = text_features(backbone, written_out.learned(method), BASE, block, "person doing {}.")
    images = draw(backbone)
    expected = backbone.logit_scale * written_out.image_features(backbone, images) @ t.T
    torch.testing.assert_close(method(images), expected, rtol=1e-4, atol=1e-4)


def test_a_step_of_adam(backbone, tmp_path):
    """The first step moves by `lr g / (|g| + eps)`, `g` with the weight decay: the method's epsilon counts."""
    batches = [{"img": draw(backbone, seed=5), "label": torch.tensor([0, 1, 2, 0])}]
    optim = {"NAME": "adam", "LR": 0.002, "MAX_EPOCH": 1}
    cfg = trainer_config("TCP", optim, {"PREC": "fp32"}, tmp_path)
    trainer = make_trainer(cfg, backbone, BASE, batches, TEXTURE)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    values = written_out.learned(trainer.model)
    value = loss(backbone, values, batches[0]["img"], batches[0]["label"], layer=2)
    gradients = written_out.gradients(value, values)
    trainer.train()
    assert trainer.rows[0]["loss"] == pytest.approx(value.item(), rel=1e-5)
    for name, learned in trainer.model.state_dict().items():
        gradient = gradients[name] + 5e-4 * values[name].detach()
        torch.testing.assert_close(trainer.grad0[name], gradients[name], rtol=1e-3, atol=1e-6)
        expected = values[name].detach() - 0.002 * gradient / (gradient.abs() + 1e-3)
        torch.testing.assert_close(learned, expected, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_names_and_numbers_learned(backbone):
    net = {f"{PART}.meta_net.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert set(TCPMethod(backbone, BASE, TEXTURE).state_dict()) == {f"{PART}.ctx", *net}
    assert count_learned(TCPMethod(vit_b16(), BASE, TEXTURE)) == 331_904


def test_starts_from_words_where_it_is_told_to(backbone):
    start = TCPMethod(backbone, BASE, TEXTURE, init="a photo of a").context.vectors
    tokens = backbone.tokenize(["a photo of a"])[0, 1:5]
    assert torch.equal(start, backbone.token_embedding(tokens))


def test_state_serves_other_classes(backbone):
    trained, other = TCPMethod(backbone, BASE, TEXTURE), TCPMethod(backbone, NEW, TEXTURE)
    train_steps(trained, lr=0.01)
    other.load_state_dict(trained.state_dict())
    t, _ = text_features(backbone, written_out.learned(trained), NEW, 2)
    z = written_out.image_features(backbone, draw(backbone, seed=1))
    torch.testing.assert_close(evaluate(other), (backbone.logit_scale * z @ t.T).detach(), rtol=1e-4, atol=1e-4)


def test_resnet_image_towers_will_do():
    resnet = openai_backbone("small ResNet", random_state(RESNET))
    method = TCPMethod(resnet, BASE, TEXTURE)
    train_steps(method, steps=1, lr=0.01)
    assert torch.isfinite(evaluate(method)).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"n_ctx": 0}, "N_CTX is 0"), ({"layer": 0}, "LAYER is 0"), ({"init": "a photo", "n_ctx": 4}, "only 2 words")],
)
def test_refusals(backbone, settings, said):
    with pytest.raises(ValueError, match=said):
        TCPMethod(backbone, BASE, TEXTURE, **settings)
