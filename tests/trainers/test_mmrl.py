"""MMRL and MMRL++ against their equations written out: features, loss, a step; which logits count; names, sizes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import written_out
from clip_models import RESNET, VIT, random_state
from parity import make_trainer, trainer_config
from small_methods import BASE, NEW, count_learned, draw, evaluate, small_vit, train_steps, vit_b16

from clip.loading import openai_backbone
from dassl.engine import TRAINER_REGISTRY
from trainers.mmrl import MMRLMethod
from trainers.mmrlpp import AddedProjection, SharedMaps

PET = "a photo of a {}, a type of pet."
SMALL = {"N_REP_TOKENS": 2, "REP_DIM": 7, "REP_LAYERS": (2, 3)}
NAMES = ["MMRL", "MMRLpp"]
everyone = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def build(name, backbone, classnames=BASE, **keys):
    """The method with few numbers; low-rank parts are not zero."""
    torch.manual_seed(0)
    keys = {"n": 2, "width": 7, "layers": (2, 3), "weight": 3.0, **keys}
    if name == "MMRL":
        return MMRLMethod(backbone, classnames, PET, **keys)
    parts = {"make_maps": partial(SharedMaps, 3), "make_projection": partial(AddedProjection, 4, backbone.image)}
    method = MMRLMethod(backbone, classnames, PET, share=0.6, **parts, **keys)
    for key, value in method.named_parameters():
        if key.endswith(".B"):
            value.data.normal_()
    return method


def tokens_of(values, side, block):
    """The tokens (n, D) of a block, by the names in checkpoints."""
    if f"{side}_maps.weight" not in values:
        return values["space"] @ values[f"{side}_maps.{block}.weight"].T + values[f"{side}_maps.{block}.bias"]
    low_rank = values[f"{side}_maps.parts.{block}.A"] @ values[f"{side}_maps.parts.{block}.B"]
    return values["space"] @ (values[f"{side}_maps.weight"] + low_rank).T + values[f"{side}_maps.biases.{block}"]


def features(backbone, values, images, classnames, share, n=2):
    """Normalised features of class token, tokens of the space, and sentences."""

    def before(side):
        def change(i, x):
            if i == 0:
                return x
            own = tokens_of(values, side, i + 1).expand(len(x), -1, -1)
            if i == 1:
                return torch.cat([x[:, :1], own, x[:, 1:]], dim=1)
            return torch.cat([x[:, :1], share * own + (1 - share) * x[:, 1 : 1 + n], x[:, 1 + n :]], dim=1)

        return change

    x, end = written_out.embeddings(backbone, [PET.replace("{}", name.replace("_", " ")) for name in classnames])
    t = written_out.text_tokens(backbone, x, before("text"))[torch.arange(len(end)), end + n]
    t = t @ backbone.model.text_projection
    x, own = written_out.image_tokens(backbone, images, before=before("image")), backbone.model.visual.proj
    mean = x[:, 1 : 1 + n].mean(dim=1)
    if "projection.weight" in values:
        of_tokens = mean @ values["projection.weight"]
    else:
        of_tokens = mean @ (own + values["projection.part.A"] @ values["projection.part.B"])
    return [v / v.norm(dim=1, keepdim=True) for v in (x[:, 0] @ own, of_tokens, t)]


def loss_of(backbone, values, images, labels, share, weight, alpha=0.7):
    z, of_tokens, t = features(backbone, values, images, BASE, share)
    z0, t0 = written_out.image_features(backbone, images), written_out.sentence_features(backbone, PET, BASE)
    s = backbone.logit_scale
    loss = alpha * written_out.cross_entropy(s * z @ t.T, labels)
    loss = loss + (1 - alpha) * written_out.cross_entropy(s * of_tokens @ t.T, labels)
    return loss + weight * ((1 - (z * z0).sum(dim=1).mean()) + (1 - (t * t0).sum(dim=1).mean()))


@everyone
def test_forward(backbone, name):
    method, share = build(name, backbone, alpha=0.6).eval(), 1.0 if name == "MMRL" else 0.6
    images, s = draw(backbone), backbone.logit_scale
    z, of_tokens, t = features(backbone, written_out.learned(method), images, BASE, share)
    fused = 0.6 * s * z @ t.T + 0.4 * s * of_tokens @ t.T
    torch.testing.assert_close(method(images), fused, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(F.normalize(method.image_features(images), dim=-1), z, rtol=1e-4, atol=1e-5)
    assert method.report() == {"mmrl": {"logits": "fused"}}
    method.fused = False
    torch.testing.assert_close(method(images), s * z @ t.T, rtol=1e-4, atol=1e-4)
    assert method.report() == {"mmrl": {"logits": "class token"}}


@everyone
def test_a_step(backbone, tmp_path, name):
    """Two steps of SGD; the low-rank parts begin at zero, so that only the second has gradients for all."""
    more = {"BETA": 0.6, "MAP_RANK": 3, "PROJ_RANK": 4} if name == "MMRLpp" else {}
    share = more.get("BETA", 1.0)
    batches = [{"img": draw(backbone, seed=s), "label": torch.tensor([0, 1, 2, 0])} for s in (5, 6)]
    keys = {"PREC": "fp32", "REG_WEIGHT": 3.0, **SMALL, **more}
    cfg = trainer_config(name, {"NAME": "sgd", "LR": 0.01, "MAX_EPOCH": 1}, keys, tmp_path)
    trainer = make_trainer(cfg, backbone, BASE, batches, PET)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    values, sgd, losses, all_gradients = written_out.learned(trainer.model), written_out.SGD(0.01), [], []
    start = {key: value.detach().clone() for key, value in values.items()}
    for batch in batches:
        loss = loss_of(backbone, values, batch["img"], batch["label"], share, 3.0)
        all_gradients.append(written_out.gradients(loss, values))
        losses.append(loss.item())
        sgd.step(values, all_gradients[-1])
    trainer.train()
    assert [row["loss"] for row in trainer.rows] == pytest.approx(losses, rel=1e-5)
    for key, value in trainer.model.state_dict().items():
        first = all_gradients[0][key]
        scale = float(first.abs().max())
        torch.testing.assert_close(trainer.grad0[key], first, rtol=1e-3, atol=1e-6 + 1e-4 * scale)
        torch.testing.assert_close(value, values[key].detach(), rtol=1e-4, atol=1e-6)
        assert not torch.equal(value, start[key])
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_maps_start_alike(backbone):
    """Copies of one map; one matrix and low-rank parts of zero, and the tower's own projection."""
    method = MMRLMethod(backbone, BASE, PET, n=2, width=7, layers=(2, 3))
    assert torch.equal(method.image_maps["2"].weight, method.image_maps["3"].weight)
    assert not torch.equal(method.image_maps["2"].weight, method.text_maps["2"].weight)
    maps, projection = SharedMaps(3, (2, 3), 7, 64), AddedProjection(4, backbone.image, 64, 32)
    tokens, x = maps(method.space), torch.randn(4, 64)
    assert torch.equal(tokens[2], tokens[3])
    torch.testing.assert_close(projection(x), x @ backbone.model.visual.proj)


@pytest.mark.parametrize(("name", "count"), [("MMRL", 4_992_256), ("MMRLpp", 813_312)])
def test_numbers_learned(name, count):
    backbone = vit_b16()
    if name == "MMRL":
        assert count_learned(MMRLMethod(backbone, BASE, PET)) == count
        assert count_learned(MMRLMethod(backbone, BASE, PET, width=2048)) == 18_762_496
        return
    keys = TRAINER_REGISTRY.get(name).CONFIG["MMRLPP"]
    maps, projection = partial(SharedMaps, keys.MAP_RANK), partial(AddedProjection, keys.PROJ_RANK, backbone.image)
    assert count_learned(MMRLMethod(backbone, BASE, PET, make_maps=maps, make_projection=projection)) == count


@everyone
def test_logits_are_fused_on_classes_and_data_set_of_the_training_alone(backbone, tmp_path, name):
    def trainer(folder, classnames, dataset):
        cfg = trainer_config(name, {"MAX_EPOCH": 1}, {"PREC": "fp32", **SMALL}, tmp_path / folder, dataset)
        batches = [{"img": draw(backbone), "label": torch.arange(4) % len(classnames)}]
        return make_trainer(cfg, backbone, classnames, batches, PET)

    trained = trainer("trained", BASE, "ImageNet")
    trained.train()
    for classnames, dataset, fused in ((BASE, "ImageNet", True), (BASE, "ImageNetV2", False), (NEW, "ImageNet", False)):
        other = trainer("other", classnames, dataset)
        other.load_model(str(tmp_path / "trained"))
        assert other.model.fused is fused
        assert evaluate(other.model).shape == (4, len(classnames))
        assert torch.equal(other.model.space, trained.model.space)


@everyone
def test_state_serves_other_classes(backbone, name):
    trained, other = build(name, backbone), build(name, backbone, NEW)
    train_steps(trained, lr=0.001)
    other.load_state_dict(trained.state_dict())
    other.fused = False
    share = 1.0 if name == "MMRL" else 0.6
    z, _, t = features(backbone, written_out.learned(trained), draw(backbone, seed=1), NEW, share)
    torch.testing.assert_close(evaluate(other), (backbone.logit_scale * z @ t.T).detach(), rtol=1e-4, atol=1e-4)


def test_a_tower_takes_the_blocks_that_it_has():
    deep = openai_backbone("deep", random_state({**VIT, "vision_layers": 5}))
    method = MMRLMethod(deep, BASE, PET, n=2, width=7, layers=(4, 5, 6))
    assert (list(method.image_maps), list(method.text_maps)) == (["4", "5"], [])
    zero_shot = deep.encode_text(method.tokens)
    assert torch.equal(method.text_features(), zero_shot)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 0}, "N_REP_TOKENS is 0"),
        ({"layers": (1, 2)}, r"REP_LAYERS is \(1, 2\)"),
        ({"layers": (3, 2)}, "ascending"),
        ({"layers": (4,)}, "3 image blocks"),
        ({"layers": ()}, "REP_LAYERS is"),
    ],
)
def test_refusals(backbone, settings, said):
    with pytest.raises(ValueError, match=said):
        MMRLMethod(backbone, BASE, PET, **settings)


def test_towers_without_slots_or_readable_tokens_are_refused(backbone):
    with pytest.raises(ValueError, match=r"is a ResNet.* ViT"):
        MMRLMethod(openai_backbone("small ResNet", random_state(RESNET)), BASE, PET)
    other = small_vit()
    other.image = replace(other.image, output_norm=None, project=None)
    with pytest.raises(ValueError, match="no features of single tokens"):
        MMRLMethod(other, BASE, PET)


@pytest.mark.parametrize(("keys", "said"), [({"MAP_RANK": 0}, "MAP_RANK is 0"), ({"BETA": 1.5}, r"BETA is 1\.5")])
def test_mistakes_in_the_keys_of_mmrlpp(backbone, tmp_path, keys, said):
    cfg = trainer_config("MMRLpp", {}, {"PREC": "fp32", **SMALL, **keys}, tmp_path)
    with pytest.raises(ValueError, match=said):
        make_trainer(cfg, backbone, BASE, [], PET)
