"""DePT: its equations in NumPy over several hosts; what is learned, on which classes the head counts; whole runs."""

from functools import partial

import conformance
import numpy as np
import pytest
import torch
from equations import array, close, cross_entropy, frozen_images, gradient, scale, unit
from small_methods import BASE, NEW, batch, count_learned, draw, small_vit, train_steps, vit_b16

from adaptation.dept import HEAD, DePTMethod
from dassl.engine import TRAINER_REGISTRY
from trainers.clip_adapter import CLIPAdapterMethod
from trainers.cocoop import CoCoOpMethod
from trainers.coop import CoOpMethod
from trainers.kgcoop import KgCoOpMethod
from trainers.maple import MaPLeMethod
from trainers.promptsrc import PromptSRCMethod
from trainers.vpt import VPTMethod

PET = "a photo of a {}, a type of pet."
METHODS = {
    "CoOp": partial(CoOpMethod, n_ctx=3),
    "CoCoOp": partial(CoCoOpMethod, n_ctx=3),
    "KgCoOp": partial(KgCoOpMethod, template=PET, weight=2.0),
    "MaPLe": partial(MaPLeMethod, depth=2),
    "PromptSRC": partial(PromptSRCMethod, depth_text=2, depth_vision=2),
    "VPT": VPTMethod,
    "CLIP_Adapter": partial(CLIPAdapterMethod, template=PET),
}
HOSTS = [name for name, cls in TRAINER_REGISTRY if "DEPT" in getattr(cls, "CONFIG", {})]
NAMES = {*HEAD, *(f"film_lp_{side}.{part}" for side in ("img", "text") for part in ("scale", "bias"))}
everyone = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def build(name, backbone, classnames=BASE) -> DePTMethod:
    torch.manual_seed(0)
    method = DePTMethod(METHODS[name](backbone, classnames), 0.7)
    for affine in (method.film_lp_img, method.film_lp_text):
        affine.scale.data += 0.1 * torch.randn_like(affine.scale)
        affine.bias.data += 0.1 * torch.randn_like(affine.bias)
    return method


def head(method, side, x) -> np.ndarray:
    """The head's logits of raw features."""
    affine, linear = getattr(method, f"film_lp_{side}"), method.linear_probe_proj
    return (x * array(affine.scale) + array(affine.bias)) @ array(linear.weight).T + array(linear.bias)


def test_all_hosts_are_tested():
    assert set(METHODS) == set(HOSTS)


@everyone
def test_logits_and_loss(backbone, name):
    method = build(name, backbone).train()
    images, labels = batch(method)
    z, t = (array(x) for x in method.host.encode(images))
    per_image = t if t.ndim == 3 else np.stack([t] * len(z))  # CoCoOp has text features for each image
    base = np.stack([scale(backbone) * unit(z[i]) @ unit(per_image[i]).T for i in range(len(z))])
    close(method.eval()(images), 0.3 * base + 0.7 * head(method, "img", z), atol=1e-4)
    own = np.stack([per_image[i, y] for i, y in enumerate(labels.tolist())])
    both = np.concatenate([head(method, "img", z), head(method, "text", own)])
    y = labels.numpy()
    method.train()
    alone = method.host.loss(images, labels)[0].item() - cross_entropy(base, y)  # the host's `extra_loss`
    expected = 0.3 * cross_entropy(base, y) + 0.7 * cross_entropy(both, np.concatenate([y, y])) + alone
    close(method.loss(images, labels)[0], expected)
    assert (alone > 1e-3) is (name in ("KgCoOp", "PromptSRC"))


def test_gradients_and_a_step(backbone):
    """Over CoOp, whose image features are fixed: of all that DePT adds."""
    method = build("CoOp", backbone).train()
    images, labels = batch(method)
    z, t = frozen_images(backbone, images), array(method.host.text_features())
    y, sides = labels.numpy(), {"img": z, "text": t[labels.numpy()]}
    values = {key: array(value) for key, value in method.state_dict().items() if key in NAMES}

    def loss(key, x):
        v = {**values, key: x}
        maps = [sides[s] * v[f"film_lp_{s}.scale"] + v[f"film_lp_{s}.bias"] for s in ("img", "text")]
        logits = np.concatenate(maps) @ v[HEAD[0]].T + v[HEAD[1]]
        return 0.7 * cross_entropy(logits, np.concatenate([y, y]))

    optim = torch.optim.SGD(method.parameters(), lr=0.1)
    method.loss(images, labels)[0].backward()
    gradients = {key: array(p.grad) for key, p in method.named_parameters()}
    context, start = gradients["host.context.vectors"], array(method.host.context.vectors)
    optim.step()
    for key, value in values.items():
        expected = gradient(partial(loss, key), value)
        close(gradients[key], expected, rtol=1e-3, atol=1e-5)
        close(method.state_dict()[key], value - 0.1 * expected, rtol=1e-3, atol=1e-5)
    close(method.host.context.vectors, start - 0.1 * context)
    assert np.abs(context).max() > 0


@everyone
@torch.no_grad()
def test_features_are_the_host_s(backbone, name):
    """What `predict.py --features` writes, prompts included."""
    method, images = build(name, backbone).eval(), draw(backbone)
    assert torch.equal(method.image_features(images), method.host.image_features(images))
    if name == "CoCoOp":
        with pytest.raises(NotImplementedError):
            method.text_features()
    else:
        assert torch.equal(method.text_features(), method.host.text_features())


@everyone
def test_names_and_numbers(backbone, name):
    method = build(name, backbone)
    host, width = METHODS[name](backbone, BASE), backbone.embed_dim
    assert set(method.state_dict()) == set(host.state_dict()) | NAMES
    assert count_learned(method) == count_learned(host) + len(BASE) * (width + 1) + 4 * width
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    train_steps(method, steps=1)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_numbers_learned_on_vit_b16():
    backbone = vit_b16()
    assert count_learned(DePTMethod(CoOpMethod(backbone, BASE, 4))) == 2_048 + 3 * 513 + 4 * 512


@torch.no_grad()
@everyone
def test_classes_decide_whether_the_head_counts(backbone, name):
    trained = build(name, backbone)
    state, images = trained.state_dict(), draw(backbone, seed=7)
    few, new = build(name, backbone, ["sushi", "golden_retriever"]).eval(), build(name, backbone, NEW).eval()
    new.load_state_dict(new.select_classes(state, BASE))
    assert torch.equal(new(images), new.host(images))
    assert "host alone" in new.report()["dept"]["logits"]
    few.load_state_dict(few.select_classes(state, BASE))
    whole = trained.eval()
    close(few(images), array(whole(images))[:, [2, 0]], rtol=1e-3, atol=1e-3)
    assert few.report()["dept"]["logits"] == "host and head"
    new.load_state_dict(build(name, backbone, NEW).state_dict())  # trained on these classes
    assert not torch.equal(new(images), new.host(images))


# Whole runs

ON = {"TRAINER.DEPT.ENABLED": "True"}


@pytest.mark.parametrize("name", HOSTS)
def test_a_run(name, eurosat_root, tmp_path):
    """Base to new as the protocol does it, from image files, and what does not fit."""
    make = partial(conformance.make, name, eurosat_root)
    trainer = make(tmp_path / "run", **ON)
    metrics = conformance.check_run(trainer)
    assert metrics["dept"]["logits"] == "host and head"
    assert metrics["config"]["TRAINER"]["DEPT"]["ENABLED"] is True
    conformance.check_round_trip(trainer, lambda: make(tmp_path / "again", **ON), trainer.output_dir)
    new = make(tmp_path / "new", **ON, **{"DATASET.SUBSAMPLE_CLASSES": "new"})
    new.load_model(trainer.output_dir)
    with torch.no_grad():
        logits = conformance.logits(new)
        new.model = new.model.host
        assert torch.equal(conformance.logits(new), logits)
    with pytest.raises(ValueError, match=r"trained with DePT: evaluate it with TRAINER.DEPT.ENABLED True"):
        make(tmp_path / "off").load_model(trainer.output_dir)


def test_a_checkpoint_without_dept_is_refused(eurosat_root, tmp_path):
    plain = conformance.make("CoOp", eurosat_root, tmp_path / "plain")
    plain.train()
    with pytest.raises(ValueError, match=r"trained without DePT: evaluate it with TRAINER.DEPT.ENABLED False"):
        conformance.make("CoOp", eurosat_root, tmp_path / "on", **ON).load_model(plain.output_dir)


@pytest.mark.parametrize("name", ["CoCoOp", "PromptSRC"])
def test_resuming_and_stacked_seeds(name, eurosat_root, tmp_path):
    """Also where the host keeps an average over the epochs: it is of all that is learned."""

    def make_again(out, **more):
        return conformance.make(name, eurosat_root, tmp_path / out, **ON, **more)

    conformance.check_resume(make_again)
    conformance.check_stacked(make_again)


def test_half_precision(eurosat_root, tmp_path):
    trainer = conformance.make("MaPLe", eurosat_root, tmp_path, precision="bf16", **ON)
    conformance.check_run(trainer)
    assert torch.isfinite(conformance.logits(trainer)).all()


def test_trainers_that_are_no_hosts(eurosat_root, tmp_path):
    with pytest.raises(
        ValueError, match=r"TRAINER.DEPT.ENABLED is True, but APEX does not take DePT; these do: .*CoOp"
    ):
        conformance.make("APEX", eurosat_root, tmp_path, **ON)
    with pytest.raises(ValueError, match=r"TRAINER.DEPT.WEIGHT is 1.5, but must lie in \[0, 1\]"):
        conformance.make("CoOp", eurosat_root, tmp_path, **ON, **{"TRAINER.DEPT.WEIGHT": "1.5"})
