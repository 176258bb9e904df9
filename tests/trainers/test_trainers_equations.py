"""The equations of the papers, computed a second time in NumPy, number by number, against the methods."""

import numpy as np
import pytest
import torch
from equations import array, close, cross_entropy, frozen_images, frozen_text, scale, softmax, unit
from small_methods import BASE, batch, draw, small_vit, train_steps

from adaptation.templates import DEFAULT, IMAGENET_SELECT, imagenet_templates
from clip.loading import openai_backbone
from trainers.clip_adapter import CLIPAdapterMethod
from trainers.clip_lora import CLIPLoRAMethod
from trainers.kgcoop import KgCoOpMethod
from trainers.prograd import ProGradMethod, prograd_context, without_conflict
from trainers.promptsrc import TEMPLATES, PromptSRCMethod, epoch_weights
from trainers.taskres import TaskResMethod
from trainers.tip_adapter import SearchRange, TipAdapterMethod
from trainers.zsclip import ZeroshotMethod

PET = "a photo of a {}, a type of pet."


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def test_clip_adapter(backbone):
    torch.manual_seed(0)
    method = CLIPAdapterMethod(backbone, BASE, PET, ratio=0.3).eval()
    images = draw(backbone)
    x = frozen_images(backbone, images)
    down, up = array(method.adapter[0].weight), array(method.adapter[2].weight)
    assert down.shape == (8, 32)
    adapted = np.maximum(np.maximum(x @ down.T, 0) @ up.T, 0)
    mixed = 0.3 * adapted + 0.7 * x
    close(method(images), scale(backbone) * unit(mixed) @ unit(frozen_text(backbone, PET, BASE)).T)


def test_taskres(backbone):
    templates = [*IMAGENET_SELECT, PET]
    method = TaskResMethod(backbone, BASE, templates, scale=0.7).eval()
    torch.manual_seed(1)
    method.residuals.data.normal_()
    images = draw(backbone)
    base = sum(frozen_text(backbone, template, BASE) for template in templates) / 8
    t = base + 0.7 * array(method.residuals)
    close(method(images), scale(backbone) * unit(frozen_images(backbone, images)) @ unit(t).T)


def test_taskres_takes_rows_by_class_name(backbone):
    """As ImageNet-A and ImageNet-R do; two trained classes of one name give the mean of their rows."""
    trained = ["sushi", "tabby cat", "missile", "apple pie", "missile"]
    state = {"prompt_learner.text_feature_residuals": torch.arange(5.0)[:, None].expand(5, 32)}
    few = TaskResMethod(backbone, ["missile", "apple pie"], [PET])
    few.load_state_dict(few.select_classes(state, trained))
    assert few.residuals[:, 0].tolist() == [3.0, 3.0]


def test_kgcoop_loss(backbone):
    method = KgCoOpMethod(backbone, BASE, PET, weight=8.0)
    train_steps(method, steps=2)
    images, labels = batch(method)
    t, t0 = unit(array(method.text_features())), unit(frozen_text(backbone, PET, BASE))
    logits = scale(backbone) * unit(frozen_images(backbone, images)) @ t.T
    distance = np.mean([1 - sum(t[c] * t0[c]) for c in range(len(BASE))])
    # half the squared Euclidean distance that the paper writes
    assert distance == pytest.approx(np.mean(((t - t0) ** 2).sum(axis=1)) / 2)
    assert distance > 1e-4
    close(method.loss(images, labels)[0], cross_entropy(logits, labels.numpy()) + 8 * distance)


# ProGrad


def test_prograd_losses(backbone):
    method = ProGradMethod(backbone, BASE, DEFAULT, 16)
    method.temperature = 2.0
    train_steps(method, steps=1)
    images, labels = batch(method)
    z = unit(frozen_images(backbone, images))
    logits = scale(backbone) * z @ unit(array(method.text_features())).T
    zero_shot = softmax(scale(backbone) * z @ unit(frozen_text(backbone, DEFAULT, BASE)).T / 2)
    kl = 4 * np.mean([-sum(zero_shot[b] * np.log(softmax(logits / 2))[b]) for b in range(4)])
    losses, summary = method.loss(images, labels)
    close(losses, [cross_entropy(logits, labels.numpy()), kl])
    assert set(summary) == {"loss", "xe_loss", "kl_loss", "acc"}


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_prograd_projection(strength):
    g, reference = torch.tensor([[3.0, -1.0], [0.0, 2.0]]), torch.tensor([[-2.0, 0.0], [0.0, 1.0]])
    a, b = array(g).ravel(), array(reference).ravel()
    inner = float(a @ b)
    assert inner < 0
    length = np.sqrt(b @ b)
    expected = a - strength * (inner / length) * b / length
    close(without_conflict(g, reference, strength).flatten(), expected)
    if strength == 1:  # nothing against the reference is left
        assert abs(float((without_conflict(g, reference) * reference).sum())) < 1e-6
    assert torch.equal(without_conflict(g, -reference, strength), g)
    assert torch.equal(without_conflict(g, torch.zeros(2, 2), strength), g)
    assert torch.equal(without_conflict(g, -1e-30 * g, strength), g)  # its squares are zero in float32


def test_prograd_starts_with_words_on_the_right(backbone):
    def embedding(text):
        tokens = backbone.tokenize([text])[0]
        return backbone.token_embedding(tokens[1 : int(tokens.argmax())])

    start = prograd_context(backbone, BASE, 6, DEFAULT)
    assert torch.equal(start.vectors, torch.cat([torch.zeros(2, 64), embedding("a photo of a")]))
    assert start.sentences[0] == "X X a photo of a golden retriever."
    # eight words of nine tokens: the last token stays in the sentence, which reads the same
    pets = "a type of pet, a photo of a {}."
    method = ProGradMethod(backbone, BASE, pets, n_ctx=16)
    sentence = method.context()[0]
    assert torch.equal(sentence[1:9], torch.zeros(8, 64))
    assert torch.equal(sentence[9:20], embedding("a type of pet, a photo of a golden retriever"))


# PromptSRC


def test_promptsrc_loss(backbone):
    torch.manual_seed(2)
    method = PromptSRCMethod(backbone, BASE, 2, 2, 3, 3, text_weight=25.0, image_weight=10.0)
    train_steps(method, steps=1, lr=0.01)
    images, labels = batch(method)
    templates = imagenet_templates()
    assert len(templates) == 80
    assert templates[39] == DEFAULT
    g = unit(sum(frozen_text(backbone, template, BASE) for template in templates[:TEMPLATES]) / 60)
    t, z = unit(array(method.text_features())), unit(array(method.image_features(images)))
    z0 = unit(frozen_images(backbone, images))
    p0, p = softmax(scale(backbone) * z0 @ g.T), softmax(scale(backbone) * z @ t.T)
    divergence = sum(p0[b, c] * np.log(p0[b, c] / p[b, c]) for b in range(4) for c in range(3)) / 12
    expected = cross_entropy(scale(backbone) * z @ t.T, labels.numpy())
    expected += 25 * np.abs(t - g).mean() + 10 * np.abs(z - z0).mean() + divergence
    close(method.loss(images, labels)[0], expected)


def test_promptsrc_epoch_weights():
    e = np.arange(1, 21)
    weights = np.exp(-((e - 15) ** 2) / 2)
    close(epoch_weights(20, 15, 1), weights / weights.sum())
    assert torch.isfinite(epoch_weights(2, 45, 0.1)).all()  # all of the Gaussian underflows


# Tip-Adapter


def tip(backbone, **settings):
    method = TipAdapterMethod(backbone, BASE, IMAGENET_SELECT, images=5, **settings)
    labels = torch.tensor([2, 0, 1, 1, 0])
    method.fill(torch.randn(5, 32, generator=torch.Generator().manual_seed(3)), labels)
    return method, labels.numpy()


def tip_parts(backbone, method, images) -> tuple[np.ndarray, np.ndarray]:
    """Zero-shot logits, and affinities of images and cache."""
    f = unit(frozen_images(backbone, images))
    w = unit(sum(unit(frozen_text(backbone, template, BASE)) for template in IMAGENET_SELECT) / 7)
    return scale(backbone) * f @ w.T, f @ array(method.keys).T


def tip_logits(parts, labels, alpha, beta) -> np.ndarray:
    """Equation by equation: one-hot values, votes, sum."""
    zero_shot, affinities = parts
    return zero_shot + alpha * np.exp(-beta * (1 - affinities)) @ np.eye(3)[labels]


def test_tip_adapter(backbone):
    method, labels = tip(backbone, alpha=2.0, beta=5.5)
    images = draw(backbone)
    close(np.sqrt((array(method.keys) ** 2).sum(axis=1)), np.ones(5))
    close(method.eval()(images), tip_logits(tip_parts(backbone, method, images), labels, 2.0, 5.5))
    trained, _ = tip(backbone, trainable=True)
    train_steps(trained, steps=2, lr=1.0)  # trained keys are not normalised again
    close(trained.eval()(images), tip_logits(tip_parts(backbone, trained, images), labels, 1.17, 1.0))


def test_tip_adapter_search(backbone):
    method, labels = tip(backbone)
    images, truth = draw(backbone, 40, seed=5), np.arange(40) % 3
    parts, best, chosen = tip_parts(backbone, method, images), -1.0, None
    for i in range(200):
        for j in range(20):
            beta, alpha = 0.1 + i * (12 - 0.1) / 200, 0.1 + j * (5 - 0.1) / 20
            accuracy = 100 * (tip_logits(parts, labels, alpha, beta).argmax(axis=1) == truth).mean()
            if accuracy > best:
                best, chosen = accuracy, (alpha, beta)
    assert method.report()["tip_adapter"]["strengths"] == "initial"
    assert method.search(
        backbone.encode_image(images), torch.from_numpy(truth), SearchRange(3, 12, 5)
    ) == pytest.approx(best)
    close([method.alpha, method.beta], chosen)
    assert method.report()["tip_adapter"]["strengths"] == "searched on the validation images"


# CLIP-LoRA


def merged(backbone, method):
    """A plain CLIP whose projection weights hold what the method adds."""
    weights = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    for tower, prefix in (("text", ""), ("vision", "visual.")):
        for block, deltas in getattr(method, tower).items():
            packed = weights[f"{prefix}transformer.resblocks.{block}.attn.in_proj_weight"]
            for name, delta in deltas.items():
                rows = slice(64 * "qkv".index(name[0]), 64 * ("qkv".index(name[0]) + 1))
                packed[rows] += (0.8 / np.sqrt(3)) * delta.w_lora_B.detach() @ delta.w_lora_A.detach()
    return openai_backbone("merged", weights)


@pytest.mark.parametrize(
    ("settings", "adapted"),
    [
        ({}, {"text": "012", "vision": "012"}),
        ({"encoder": "text", "position": "up"}, {"text": "2", "vision": ""}),
        ({"encoder": "vision", "position": "half-bottom", "params": ("q", "v")}, {"text": "", "vision": "0"}),
        ({"position": "mid"}, {"text": "1", "vision": "1"}),
    ],
)
def test_clip_lora_is_a_change_of_the_weights(backbone, settings, adapted):
    torch.manual_seed(4)
    method = CLIPLoRAMethod(backbone, BASE, rank=3, alpha=0.8, **settings).eval()
    assert {tower: "".join(getattr(method, tower)) for tower in adapted} == adapted
    for name, parameter in method.named_parameters():
        if name.endswith("B"):
            assert not parameter.any()
            parameter.data.normal_()
    images, before = draw(backbone), {key: value.clone() for key, value in backbone.state_dict().items()}
    logits = method(images)
    plain = ZeroshotMethod(merged(backbone, method), BASE, [DEFAULT]).eval()
    close(logits, array(plain(images)), rtol=1e-3, atol=1e-3)
    untouched = ZeroshotMethod(backbone, BASE, [DEFAULT]).eval()
    assert not torch.allclose(logits, untouched(images), atol=0.1)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_clip_lora_dropout_is_a_stream_of_its_own(backbone):
    torch.manual_seed(5)
    method = CLIPLoRAMethod(backbone, BASE, dropout=0.25)
    delta = method.text["0"]
    for parameter in method.parameters():
        parameter.data.normal_()
    x = torch.ones(50, 20, 64)
    method.train().choose_dropout(1, 0, 0)
    dropped = delta.drop(x)[0]
    assert dropped.unique().tolist() == [0, 1]
    assert (dropped == 0).double().mean() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(delta.drop(x)[0], dropped)  # a function of the stream, whatever else draws
    assert not torch.equal(delta.drop(x)[1], dropped)
    assert not torch.equal(method.vision["0"].drop(x)[0], dropped)
    images, labels = batch(method)
    first = method.loss(images, labels)[0]
    state = torch.get_rng_state()
    assert torch.equal(method.loss(images, labels)[0], first)
    assert torch.equal(torch.get_rng_state(), state)
    method.choose_dropout(1, 0, 1)
    assert not torch.equal(method.loss(images, labels)[0], first)
    method.choose_dropout(1, 0, 0)
    assert torch.equal(method.loss(images, labels)[0], first)
    method.eval()
    logits = method(images)
    method.train().choose_dropout(1, 0, 1)
    assert torch.equal(method.eval()(images), logits)


@pytest.mark.parametrize(("params", "dropout"), [(("q", "k", "v"), 0.25), (("v", "q"), 0.25), (("k",), 0.0)])
def test_clip_lora_adds_to_each_projection_by_itself(backbone, params, dropout):
    torch.manual_seed(6)
    method = CLIPLoRAMethod(backbone, BASE, rank=3, alpha=0.8, dropout=dropout, params=params).train()
    for parameter in method.parameters():
        parameter.data.normal_()
    method.choose_dropout(1, 0, 0)
    method.vision.assemble(torch.float32)
    delta, x = method.vision["1"], torch.randn(4, 5, 64)
    kept = iter(delta.drop(x)) if dropout else iter([x] * 3)
    expected = {p: torch.zeros_like(x) for p in "qkv"}
    for p in [p for p in "qkv" if p in params]:
        own = delta[f"{p}_proj"]
        expected[p] = 0.8 / 3**0.5 / (1 - dropout) * next(kept) @ own.w_lora_A.T @ own.w_lora_B.T
    close(delta(x), array(torch.cat([*expected.values()], dim=-1)), rtol=1e-4, atol=1e-4)
