"""Methods that learn weights of the towers, against CLIP's own module trained in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from clip_models import VIT, random_state
from small_methods import BASE, NEW, batch, draw, small_vit, train_steps
from torch import Tensor

from adaptation.learned_weights import LearnedTowers, tower_weights
from clip import clip
from clip.model import CLIP, from_state_dict
from trainers.clip_cite import CLIPCITEMethod
from trainers.two_sfs import TwoSFSMethod, two_cosines

PET = "a photo of a {}, a type of pet."


def plain_clip() -> CLIP:
    """The weights of `small_vit` in a module of their own."""
    return from_state_dict(random_state(VIT))


def tokens(template: str, classnames: list[str]) -> Tensor:
    return clip.tokenize([template.replace("{}", name.replace("_", " ")) for name in classnames])


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(dim=-1, keepdim=True).sqrt()


def is_norm(name: str) -> bool:
    return name.split(".")[-2].startswith("ln_") if "." in name else False


@pytest.mark.parametrize(
    ("kind", "encoder", "mine"),
    [
        ("all", "both", lambda name: name != "logit_scale"),
        ("all", "vision", lambda name: name.startswith("visual.")),
        ("norm", "both", is_norm),
        ("norm", "text", lambda name: is_norm(name) and "visual" not in name),
        ("bias", "both", lambda name: name.endswith("bias")),
    ],
)
def test_fine_tuning(kind, encoder, mine):
    """Loss, gradients and one step."""
    backbone, model = small_vit(), plain_clip()
    method = LearnedTowers(backbone, BASE, PET, tower_weights(backbone, encoder, kind)).train()
    images, labels = batch(method)
    learned = method.learned.learned()
    assert set(learned) == {name for name, _ in model.named_parameters() if mine(name)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(mine(name))
    z, t = model.encode_image(images), model.encode_text(tokens(PET, BASE))
    expected = F.cross_entropy(model.logit_scale.exp() * unit(z) @ unit(t).T, labels)
    loss, _ = method.loss(images, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for name, value in learned.items():
        torch.testing.assert_close(value.grad, model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)
    for parameters in (learned.values(), [p for p in model.parameters() if p.requires_grad]):
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2).step()
    for name, value in learned.items():
        torch.testing.assert_close(value, model.get_parameter(name), rtol=1e-4, atol=1e-6)


def loop_contrast(s: Tensor, labels: list[int]) -> Tensor:
    """The supervised contrast of CLIP-CITE, anchor by anchor."""
    terms = []
    for i, own in enumerate(labels):
        others = [j for j, other in enumerate(labels) if other != own]
        if others:
            terms.append(-torch.log(s[i, i].exp() / sum(s[i, j].exp() for j in others)))
    return sum(terms) / len(terms) if terms else 0 * s.sum()


@pytest.mark.parametrize("class_weights", ["free", "text"])
@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [1, 1, 1, 1]])
def test_clip_cite(class_weights, labels):
    """Losses, gradients and one step; a batch of one class has no contrast."""
    backbone, model, frozen = small_vit(), plain_clip().double(), plain_clip().double()
    names, template = tower_weights(backbone), "a photo of a {}"
    method = CLIPCITEMethod(backbone, BASE, template, names, 0.5, 0.7, 0.1, class_weights).train()
    with torch.no_grad():  # away from the frozen ones, from which nothing diverges
        for name, value in method.learned.learned().items():
            value.mul_(1.02)
            model.get_parameter(name).mul_(1.02)
    images = draw(backbone)
    loss, summary = method.loss(images, torch.tensor(labels))
    loss.backward()

    words, scale = tokens(template, BASE), frozen.logit_scale.detach().exp()
    model.logit_scale.requires_grad_(False)
    z, t = unit(model.encode_image(images.double())), unit(model.encode_text(words))
    z0, t0 = (unit(x).detach() for x in (frozen.encode_image(images.double()), frozen.encode_text(words)))
    matrix = t0.clone().requires_grad_()
    logits = scale * z @ (unit(matrix) if class_weights == "free" else t).T
    s, s0 = scale * z @ t[labels].T, scale * z0 @ t0[labels].T
    dva = -sum(torch.log(torch.softmax(logits[i], 0)[label]) for i, label in enumerate(labels)) / 4
    scl = loop_contrast(s, labels) + loop_contrast(s.T, labels)
    p, p0 = s.softmax(dim=1), s0.softmax(dim=1)
    vld = sum(p[i, j] * torch.log(p[i, j] / p0[i, j]) for i in range(4) for j in range(4)) / 4
    expected = dva + 0.7 * scl + 0.1 * vld
    expected.backward()

    parts = {"loss": expected, "loss_dva": dva, "loss_scl": scl, "loss_vld": vld}
    for name, value in parts.items():
        torch.testing.assert_close(summary[name].double(), value, rtol=1e-4, atol=1e-4)
    assert (scl == 0).item() is (len(set(labels)) == 1)
    pairs = [(value, model.get_parameter(name)) for name, value in method.learned.learned().items()]
    pairs += [(method.class_weights, matrix)] if class_weights == "free" else []
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-4)
    for side in (0, 1):
        torch.optim.SGD([pair[side] for pair in pairs], lr=1e-3).step()
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


def test_clip_cite_evaluates_the_average_on_any_classes():
    backbone = small_vit()
    method = CLIPCITEMethod(backbone, BASE, PET, tower_weights(backbone), share=0.5)
    train_steps(method, steps=2, lr=1e-4)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    mixed = random_state(VIT)
    for name, value in method.learned.learned().items():
        mixed[name] = 0.5 * (mixed[name] + value.detach())
    other = CLIPCITEMethod(small_vit(), NEW, PET, tower_weights(backbone), share=0.5)
    other.load_state_dict(other.select_classes(state, BASE))
    average = from_state_dict(mixed)
    images = draw(backbone)
    with torch.no_grad():
        z, t = unit(average.encode_image(images)), unit(average.encode_text(tokens(PET, NEW)))
        torch.testing.assert_close(other.eval()(images), average.logit_scale.exp() * z @ t.T, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="CLASS_WEIGHTS is 'frozen'"):
        CLIPCITEMethod(backbone, BASE, PET, tower_weights(backbone), class_weights="frozen")


def test_two_sfs_stages():
    """The first is LayerNorm tuning, the second a classifier on features that do not change."""
    backbone, model = small_vit(), plain_clip()
    method = TwoSFSMethod(backbone, BASE, PET, tower_weights(backbone, kind="norm")).train()
    images, labels = batch(method)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_norm(name))
    scale, words = model.logit_scale.exp(), tokens(PET, BASE)

    first = F.cross_entropy(scale * unit(model.encode_image(images)) @ unit(model.encode_text(words)).T, labels)
    loss, _ = method.loss(images, labels)
    torch.testing.assert_close(loss, first)
    loss.backward()
    first.backward()
    norms = [(value, model.get_parameter(name)) for name, value in method.learned.learned().items()]
    for ours, theirs in norms:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert method.rows.grad is None
    for side in (0, 1):
        torch.optim.SGD([pair[side] for pair in norms], lr=0.01).step()

    method.zero_grad()
    method.begin_second_stage()
    with torch.no_grad():
        z, rows = unit(model.encode_image(images)), unit(model.encode_text(words))
    torch.testing.assert_close(method.rows.detach(), rows)
    rows.requires_grad_()
    second = F.cross_entropy(scale * z @ unit(rows).T, labels)
    loss, _ = method.loss(images, labels)
    torch.testing.assert_close(loss, second)
    loss.backward()
    second.backward()
    torch.testing.assert_close(method.rows.grad, rows.grad, rtol=1e-4, atol=1e-6)
    assert all(value.grad is None for value, _ in norms)


def test_two_sfs_mixes_classes_with_and_without_a_row():
    backbone = small_vit()
    method = TwoSFSMethod(backbone, BASE, PET, tower_weights(backbone, kind="norm"))
    train_steps(method, steps=2, lr=0.01)
    names = [NEW[0], BASE[2], NEW[1], BASE[0]]
    early = {name: value.clone() for name, value in method.state_dict().items()}
    method.begin_second_stage()
    train_steps(method, steps=2, lr=0.01)
    mixed = TwoSFSMethod(backbone, names, PET, tower_weights(backbone, kind="norm")).eval()
    mixed.load_state_dict(mixed.select_classes(method.state_dict(), BASE))
    with torch.no_grad():
        encoded = method.backbone.encode_text(tokens(PET, names))
        torch.testing.assert_close(
            mixed.text_features(), torch.stack([encoded[0], method.rows[2], encoded[2], method.rows[0]])
        )
        assert (encoded[1] - method.rows[2]).abs().max() > 1e-3
        mixed.load_state_dict(mixed.select_classes(early, BASE))  # of the first stage: no rows yet
        torch.testing.assert_close(mixed.text_features(), encoded)


def test_two_sfs_rates():
    """Two cosines, step by step those of PyTorch."""
    for first, total in ((6, 10), (10, 10), (0, 4)):
        expected = []
        for length in filter(None, (first, total - first)):
            optim = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
            sched = torch.optim.lr_scheduler.CosineAnnealingLR(optim, length, eta_min=1e-3)
            for _ in range(length):
                expected.append(optim.param_groups[0]["lr"])
                optim.step()
                sched.step()
        assert [0.1 * two_cosines(step, first, total, 0.01) for step in range(total)] == pytest.approx(expected)
