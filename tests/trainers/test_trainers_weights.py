"""Methods that learn weights of the towers, against CLIP's own module trained in plain PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from clip_models import VIT, random_state
from conformance import make
from small_methods import BASE, NEW, batch, draw, small_vit, train_steps
from torch import Tensor

from adaptation.learned_weights import LearnedTowers, tower_weights
from clip import clip
from clip.backbone import Backbone
from clip.model import ARCHITECTURES, CLIP, from_state_dict
from trainers.clip_cite import CLIPCITEMethod
from trainers.skip_tuning import SkipTuningMethod, compose_batches, draw_kept_ranks
from trainers.two_sfs import TwoSFSMethod, two_cosines

PET = "a photo of a {}, a type of pet."


def plain_clip() -> CLIP:
    """The weights of `small_vit` in a module of their own."""
    return from_state_dict(random_state(VIT))


def tokens(template: str, classnames: list[str]) -> Tensor:
    return clip.tokenize([template.replace("{}", name.replace("_", " ")) for name in classnames])


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(dim=-1, keepdim=True).sqrt()


@pytest.fixture(scope="module")
def vit_b16() -> Backbone:
    """ViT-B/16 without weights."""
    with torch.device("meta"):
        model = CLIP(**ARCHITECTURES["ViT-B/16"])
    return Backbone("ViT-B/16", model, model.visual.tower(), model.text_tower(), clip.tokenize)


def test_learned_numbers_on_vit_b16(vit_b16):
    """Those of the publications; ten classes."""
    norms = tower_weights(vit_b16, kind="norm")
    methods = {
        149_620_736 + 5_120: CLIPCITEMethod(vit_b16, list("abcdefghij"), PET, tower_weights(vit_b16)),
        65_536 + 5_120: TwoSFSMethod(vit_b16, list("abcdefghij"), PET, norms),
        62_099_456: SkipTuningMethod(vit_b16, list("abcdefghij"), PET),
    }
    for count, method in methods.items():
        assert sum(parameter.numel() for parameter in method.parameters()) == count


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


def test_skip_tuning():
    """Upper blocks on outputs of the lower ones, over classes by rank: loss, gradients and one step."""
    backbone, model, frozen = small_vit(), plain_clip(), plain_clip()
    classnames, labels = BASE + NEW, torch.tensor([3, 3, 3, 3])
    method = SkipTuningMethod(backbone, classnames, PET).train()
    with torch.no_grad():
        for name, value in method.learned.learned().items():
            value.mul_(1.02)
            model.get_parameter(name).mul_(1.02)
    method.kept_ranks = torch.tensor([True, True, True, False, True])
    images = draw(backbone)
    loss, summary = method.loss(method.lower_outputs(images), labels)
    loss.backward()

    scale, words = model.logit_scale.exp(), tokens(PET, classnames)
    below = ("conv1", "embedding", "ln_pre", "resblocks.0.", "logit_scale")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in below))
    z, t = unit(model.encode_image(images)), unit(model.encode_text(words))
    nearest = (z @ unit(frozen.encode_text(words)).T).max(dim=0).values.tolist()
    order = sorted(range(5), key=lambda number: (number != 3, -nearest[number]))
    kept = [number for rank, number in enumerate(order) if rank != 3]
    logits = scale * z @ t.T
    expected = -torch.stack([logits[i, 3] - logits[i, kept].logsumexp(dim=0) for i in range(4)]).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert summary["acc"] == 100 * (logits[:, kept].argmax(dim=1) == kept.index(3)).float().mean()
    learned = method.learned.learned()
    assert set(learned) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    pairs = [(value, model.get_parameter(name)) for name, value in learned.items()]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    for side in (0, 1):
        torch.optim.SGD([pair[side] for pair in pairs], lr=0.01).step()
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="BLOCKS_SKIPPED is"):
            SkipTuningMethod(backbone, classnames, PET, skipped=share)


def test_skip_tuning_keeps_ranks_by_an_exponential_density():
    torch.manual_seed(0)
    draws = torch.stack([draw_kept_ranks(40, 0.5, 8, 0.3) for _ in range(4000)]).float().mean(dim=0)
    density = [math.exp(-5 * rank / 31 / 0.3) for rank in range(32)]
    wanted = [(value - density[-1]) / (density[0] - density[-1]) for value in density]
    assert draws[:9].tolist() == [1.0] * 9  # the first eight, and the first of the others, whose density is largest
    assert draws[-1] == 0
    torch.testing.assert_close(draws[8:], torch.tensor(wanted), rtol=0, atol=0.04)
    assert draw_kept_ranks(1, 0.5, 50, 0.3).tolist() == [True]
    assert len(draw_kept_ranks(2, 0.5, 50, 0.3)) == 2


def test_skip_tuning_batches():
    """Of one class, what is left over left out; where a class has too few images, of any."""
    labels = torch.tensor([0, 1] * 9 + [0])  # ten and nine
    first, again, other = (compose_batches(labels, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert [len(rows) for rows in first] == [4] * 4
    assert all(len(labels[rows].unique()) == 1 for rows in first)
    assert len(torch.cat(first).unique()) == 16
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    mixed = compose_batches(labels[:7], 4, torch.Generator().manual_seed(1))
    assert [len(rows) for rows in mixed] == [4]
    assert [len(rows) for rows in compose_batches(labels[:2], 4, None)] == [2]


def test_skip_tuning_sees_one_view_of_each_image_per_epoch(eurosat_root, tmp_path):
    opts = {"INPUT.TRANSFORMS": "('colorjitter', 'normalize')", "OPTIM.STAGED_LR": "True"}
    opts |= {"OPTIM.NAME": "sgd", "OPTIM.LR": "2e-5", "OPTIM.BASE_LR_MULT": "0.25", "OPTIM.NEW_LAYERS": "('text',)"}
    trainer = make("SkipTuning", eurosat_root, tmp_path, **opts)
    first = trainer.lower_outputs()
    assert torch.equal(trainer.lower_outputs(), first)
    assert len(first) == len(trainer.dm.dataset.train_x)
    trainer.epoch = 1
    assert (trainer.lower_outputs() - first).abs().max() > 0.1
    rates = {len(group["params"]): group["lr"] for group in trainer.optim.param_groups}
    children = trainer.model.learned
    assert rates == {len(list(children.text.parameters())): 2e-5, len(list(children.vision.parameters())): 5e-6}


@pytest.mark.parametrize("name", ["fine-tuning", "CLIP-CITE", "2SFS", "Skip Tuning"])
def test_half_weights_give_whole_gradients(name):
    """Towers in float16, as on a GPU: float32 gradients of the direction that float32 towers give."""
    gradients = []
    for half in (False, True):
        backbone = small_vit()
        if half:
            backbone.to_half_precision(backbone.model)
        makers = {
            "fine-tuning": lambda b: LearnedTowers(b, BASE, PET, tower_weights(b)),
            "CLIP-CITE": lambda b: CLIPCITEMethod(b, BASE, PET, tower_weights(b)),
            "2SFS": lambda b: TwoSFSMethod(b, BASE, PET, tower_weights(b, kind="norm")),
            "Skip Tuning": lambda b: SkipTuningMethod(b, BASE, PET),
        }
        method = makers[name](backbone).train()
        images, labels = batch(method)
        if isinstance(method, SkipTuningMethod):
            method.kept_ranks.fill_(True)
            images = method.lower_outputs(images)
            assert images.dtype == (torch.float16 if half else torch.float32)
        method.loss(images, labels)[0].backward()
        own = [value.grad for value in method.parameters() if value.grad is not None]
        assert {gradient.dtype for gradient in own} == {torch.float32}
        gradients.append(torch.cat([gradient.flatten() for gradient in own]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
