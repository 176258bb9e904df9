"""APLe against its equations written out: the filter, the three updates of a batch; names, sizes, refusals."""

import numpy as np
import pytest
import torch
import written_out
from clip_models import RESNET, random_state
from parity import make_trainer, trainer_config
from small_methods import BASE, NEW, count_learned, draw, evaluate, small_vit, vit_b16

from adaptation.templates import DEFAULT
from clip.loading import openai_backbone
from trainers.aple import APLeMethod, low_pass

PART = "prompt_learner.compound_prompts"


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """The low pass as a convolution with the filter's periodic kernel, summed up pixel by pixel."""
    size = images.shape[-1]
    f = np.minimum(np.arange(size), size - np.arange(size)) / size
    gain = np.exp(-(f[:, None] ** 2 + f[None] ** 2) / (2 * sigma**2))
    kernel = np.fft.ifft2(gain).real
    pixels, out = images.double().numpy(), np.zeros(images.shape)
    for dy in range(size):
        for dx in range(size):
            out += kernel[dy, dx] * np.roll(pixels, (dy, dx), axis=(2, 3))
    return torch.from_numpy(out).float()


def test_low_pass(backbone):
    images = draw(backbone)
    torch.testing.assert_close(low_pass(images, 0.05), blurred(images, 0.05), rtol=1e-4, atol=1e-5)
    flat = torch.full((1, 3, 32, 32), 0.7)
    torch.testing.assert_close(low_pass(flat, 0.05), flat)  # the mean passes
    ramp = torch.linspace(-1, 1, 224)
    smooth = torch.sin(3 * ramp)[:, None] * torch.cos(2 * ramp)[None]
    assert low_pass(smooth.expand(1, 3, 224, 224), 0.05).std() > 0.9 * smooth.std()
    stripes = (-1.0) ** torch.arange(32).expand(1, 3, 32, 32)
    assert low_pass(stripes, 0.05).abs().max() < 1e-6  # the highest frequency does not


def filtered(images: torch.Tensor) -> torch.Tensor:
    return 0.9 * images + 0.1 * blurred(images, 0.05)


def features(backbone, values, images, classnames, n=2):
    """Image and text features, from values by their official names."""
    x, end = written_out.embeddings(backbone, [f"a photo of a {name.replace('_', ' ')}." for name in classnames])

    def context(x, vectors):
        return torch.cat([x[:, :1], vectors.expand(len(x), -1, -1), x[:, 1 + n :]], dim=1)

    def before_text(i, x):
        return context(x, values[f"{PART}_text.{i - 1}"]) if i else x

    def before_image(i, x):
        return torch.cat([x[:, :-n], values[f"{PART}_vision.{i - 1}"].expand(len(x), -1, -1)], dim=1) if i else x

    t = written_out.text_features(backbone, context(x, values[f"{PART}_text_ctx"]), end, before_text)
    z = written_out.image_features(backbone, images, values[f"{PART}_vision_shareI"], before_image)
    return z, t


@pytest.mark.parametrize("image_filter", ["lowpass", "published"])
def test_forward(backbone, image_filter):
    torch.manual_seed(0)
    method = APLeMethod(backbone, BASE, DEFAULT, depth=3, image_filter=image_filter).eval()
    images = draw(backbone)
    mixed = filtered(images) if image_filter == "lowpass" else 0.9 * images
    z, t = features(backbone, written_out.learned(method), mixed, BASE)
    torch.testing.assert_close(method(images), backbone.logit_scale * z @ t.T, rtol=1e-4, atol=1e-4)


def test_three_updates_of_a_batch(backbone, tmp_path):
    """Of two batches, an epoch each: momentum, weight decay and learning rate as two optimisers have them."""
    batches = [{"img": draw(backbone, seed=5), "label": torch.tensor([0, 1, 2, 0])}]
    optim = {"NAME": "sgd", "LR": 0.01, "MAX_EPOCH": 2, "LR_SCHEDULER": "cosine"}
    keys = {"PREC": "fp32", "PROMPT_DEPTH": 3}
    trainer = make_trainer(trainer_config("APLe", optim, keys, tmp_path), backbone, BASE, batches, DEFAULT)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    values = written_out.learned(trainer.model)
    of_text, of_image = ({n: v for n, v in values.items() if side in n} for side in ("_text", "_vision"))
    images, labels = batches[0]["img"], batches[0]["label"]
    s, mixed = backbone.logit_scale, filtered(images)
    with torch.no_grad():
        frozen = written_out.sentence_features(backbone, DEFAULT, BASE)
        zero_shot = (s * written_out.image_features(backbone, images) @ frozen.T).softmax(dim=1)
    text, image = written_out.SGD(0.01), written_out.SGD(0.01)

    def loss(weight):
        z, t = features(backbone, values, mixed, BASE)
        logits = s * z @ t.T
        return written_out.cross_entropy(logits, labels) + weight * written_out.cross_entropy(logits, zero_shot)

    expected = []
    for epoch in range(2):
        text.lr = image.lr = 0.01 * (1 + np.cos(np.pi * epoch / 2)) / 2
        losses = [loss(0.5)]
        text.step(values, written_out.gradients(losses[0], of_text))
        losses.append(loss(0.4))
        image.step(values, written_out.gradients(losses[1], of_image))
        losses.append(loss(0.0))
        both = written_out.gradients(losses[2], values)
        text.step(values, {name: both[name] for name in of_text})
        image.step(values, {name: both[name] for name in of_image})
        expected.append([value.item() for value in losses])

    trainer.train()
    logged = [[row[f"{name}_loss"] for name in ("text", "image", "both")] for row in trainer.history]
    np.testing.assert_allclose(logged, expected, rtol=1e-5)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, values[name].detach(), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_names_and_numbers_learned(backbone):
    assert set(APLeMethod(backbone, BASE, DEFAULT, depth=2).state_dict()) == {
        f"{PART}_text_ctx",
        f"{PART}_text.0",
        f"{PART}_vision_shareI",
        f"{PART}_vision.0",
    }
    assert count_learned(APLeMethod(vit_b16(), BASE, DEFAULT)) == 23_040


def test_state_serves_other_classes(backbone):
    torch.manual_seed(1)
    trained, other = APLeMethod(backbone, BASE, DEFAULT), APLeMethod(backbone, NEW, DEFAULT)
    other.load_state_dict(trained.state_dict())
    z, t = features(backbone, written_out.learned(trained), filtered(draw(backbone, seed=1)), NEW)
    torch.testing.assert_close(evaluate(other), (backbone.logit_scale * z @ t.T).detach(), rtol=1e-4, atol=1e-4)


def test_refusals(backbone):
    with pytest.raises(ValueError, match="PROMPT_DEPTH is 0"):
        APLeMethod(backbone, BASE, DEFAULT, depth=0)
    with pytest.raises(ValueError, match=r"FILTER is 'high'.*lowpass, published"):
        APLeMethod(backbone, BASE, DEFAULT, image_filter="high")
    with pytest.raises(ValueError, match=r"is a ResNet.* ViT"):
        APLeMethod(openai_backbone("small ResNet", random_state(RESNET)), BASE, DEFAULT)
