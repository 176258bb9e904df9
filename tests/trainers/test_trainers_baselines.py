"""CLIP-Adapter, KgCoOp, ProGrad, PromptSRC, TaskRes, Tip-Adapter, CLIP-LoRA: start, gradients, names, refusals."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from clip_models import RESNET, random_state
from small_methods import BASE, NEW, count_learned, evaluate, small_vit, train_steps, vit_b16

from adaptation.templates import DEFAULT
from clip.loading import openai_backbone
from clip.precision import Precision, convert_weights
from trainers.clip_adapter import CLIPAdapterMethod
from trainers.clip_lora import CLIPLoRAMethod
from trainers.coop import CoOpMethod
from trainers.kgcoop import KgCoOpMethod
from trainers.prograd import ProGradMethod
from trainers.promptsrc import PromptSRCMethod
from trainers.taskres import TaskResMethod
from trainers.tip_adapter import TipAdapterMethod
from trainers.zsclip import ZeroshotMethod

PET = "a photo of a {}, a type of pet."
METHODS = {
    "CLIP-Adapter": partial(CLIPAdapterMethod, template=PET),
    "KgCoOp": partial(KgCoOpMethod, template=PET),
    "ProGrad": partial(ProGradMethod, template=DEFAULT),
    "PromptSRC": partial(PromptSRCMethod, depth_text=2, depth_vision=3),
    "TaskRes": partial(TaskResMethod, templates=[PET]),
    "Tip-Adapter-F": partial(TipAdapterMethod, templates=[PET], images=5, trainable=True),
    "CLIP-LoRA": CLIPLoRAMethod,
}
KEYS = {
    "CLIP-Adapter": {"adapter.fc.0.weight", "adapter.fc.2.weight"},
    "KgCoOp": {"prompt_learner.ctx"},
    "ProGrad": {"prompt_learner.ctx"},
    "PromptSRC": {
        "prompt_learner.ctx",
        "text_encoder.transformer.resblocks.1.VPT_shallow",
        "image_encoder.VPT",
        "image_encoder.transformer.resblocks.1.VPT_shallow",
        "image_encoder.transformer.resblocks.2.VPT_shallow",
    },
    "TaskRes": {"prompt_learner.text_feature_residuals"},
    "Tip-Adapter-F": {"adapter.weight", "cache_labels", "alpha", "beta", "searched"},
    "CLIP-LoRA": {
        f"{tower}.{block}.{p}_proj.w_lora_{matrix}"
        for tower in ("text", "vision")
        for block in range(3)
        for p in "qkv"
        for matrix in "AB"
    },
}
everyone = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def backbone():
    return small_vit()


def build(name, backbone, classnames):
    torch.manual_seed(0)
    method = METHODS[name](backbone, classnames)
    if name == "Tip-Adapter-F":
        method.fill(torch.randn(5, backbone.embed_dim), torch.arange(5) % len(classnames))
    return method


@everyone
def test_only_what_the_method_owns_is_trained(backbone, name):
    method = build(name, backbone, BASE)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    learned = dict(method.named_parameters())
    started = {key: value.detach().clone() for key, value in learned.items()}
    train_steps(method)
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(not torch.equal(value, started[key]) for key, value in learned.items())


@everyone
def test_names(backbone, name):
    assert set(build(name, backbone, BASE).state_dict()) == KEYS[name]


@everyone
def test_state_is_taken_over(backbone, name):
    trained, same = build(name, backbone, BASE), METHODS[name](backbone, BASE)
    train_steps(trained)
    same.load_state_dict(trained.state_dict())
    assert torch.equal(evaluate(same), evaluate(trained))
    if name not in ("TaskRes", "Tip-Adapter-F"):  # what these learn belongs to its classes
        other = METHODS[name](backbone, NEW)
        other.load_state_dict(trained.state_dict())
        assert evaluate(other).shape == (4, len(NEW))


@everyone
def test_half_weights_and_autocast(name):
    """The towers compute in fewer digits; what is learned and its gradients stay whole."""
    backbone = small_vit()
    method = build(name, backbone, BASE)
    expected = evaluate(method)
    with Precision("bf16", backbone.device).autocast():
        torch.testing.assert_close(evaluate(method).float(), expected, rtol=0.05, atol=0.5)
    convert_weights(backbone.model)
    torch.testing.assert_close(evaluate(method), expected, rtol=0.02, atol=0.2)
    train_steps(method)
    assert all(parameter.grad.dtype == torch.float32 for parameter in method.parameters())


@pytest.mark.parametrize(
    ("name", "template"), [("TaskRes", PET), ("CLIP-LoRA", DEFAULT), ("KgCoOp", DEFAULT)]
)  # fmt: skip
def test_starts_as_zero_shot(backbone, name, template):
    expected = evaluate(ZeroshotMethod(backbone, BASE, [template]))
    torch.testing.assert_close(evaluate(build(name, backbone, BASE)), expected, rtol=1e-4, atol=1e-5)


def test_tip_adapter_without_weight_is_zero_shot(backbone):
    method = build("Tip-Adapter-F", backbone, BASE)
    method.alpha.zero_()
    assert torch.equal(evaluate(method), evaluate(ZeroshotMethod(backbone, BASE, [PET])))


def test_prograd_starts_as_zero_shot_where_the_words_fill_the_context(backbone):
    method = ProGradMethod(backbone, BASE, DEFAULT, n_ctx=4)
    torch.testing.assert_close(evaluate(method), evaluate(CoOpMethod(backbone, BASE, init="a photo of a")))


@pytest.mark.parametrize("name", ["CLIP-Adapter", "KgCoOp", "ProGrad", "TaskRes", "Tip-Adapter-F"])
def test_resnet_image_towers_will_do(name):
    resnet = openai_backbone("small ResNet", random_state(RESNET))
    method = build(name, resnet, BASE)
    train_steps(method, steps=1)
    assert torch.isfinite(evaluate(method)).all()


@pytest.mark.parametrize("name", ["PromptSRC", "CLIP-LoRA"])
def test_resnet_image_towers_are_refused(name):
    resnet = openai_backbone("small ResNet", random_state(RESNET))
    with pytest.raises(ValueError, match="small ResNet is a ResNet"):
        METHODS[name](resnet, BASE)
    if name == "CLIP-LoRA":
        method = CLIPLoRAMethod(resnet, BASE, encoder="text")
        train_steps(method, steps=1)
        assert torch.isfinite(evaluate(method)).all()


def test_numbers_learned_on_vit_b16():
    backbone = vit_b16()
    expected = {
        "CLIP-Adapter": 131_072,
        "KgCoOp": 2_048,
        "ProGrad": 8_192,
        "TaskRes": 512 * len(BASE),
        "Tip-Adapter-F": 512 * 5,
        "CLIP-LoRA": 184_320,
    }
    for name, count in expected.items():
        assert count_learned(build(name, backbone, BASE)) == count
    assert count_learned(PromptSRCMethod(backbone, BASE, 4, 4)) == 46_080


def test_official_part_checkpoints(backbone):
    """The official code saves the adapter, or the prompt learner, without the name of the part."""
    adapter = build("CLIP-Adapter", backbone, BASE)
    state = {key.removeprefix("adapter."): value + 1 for key, value in adapter.state_dict().items()}
    assert set(state) == {"fc.0.weight", "fc.2.weight"}
    adapter.load_state_dict(state)
    assert torch.equal(adapter.adapter[0].weight, state["fc.0.weight"])
    residual = build("TaskRes", backbone, BASE)
    base_features = torch.zeros(3, 32)
    residual.load_state_dict({"text_feature_residuals": torch.ones(3, 32), "base_text_features": base_features})
    assert torch.equal(residual.residuals, torch.ones(3, 32))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(CLIPAdapterMethod, template=PET, ratio=1.5), "RATIO is 1.5"),
        (partial(ProGradMethod, template=DEFAULT, n_ctx=3), "N_CTX is 3"),
        (partial(ProGradMethod, template="{} texture."), "does not end"),
        (partial(PromptSRCMethod, depth_text=0), "PROMPT_DEPTH_TEXT is 0"),
        (partial(CLIPLoRAMethod, rank=0), "RANK is 0"),
        (partial(CLIPLoRAMethod, dropout=1.0), "DROPOUT is 1.0"),
        (partial(CLIPLoRAMethod, encoder="image"), "ENCODER is 'image'"),
        (partial(CLIPLoRAMethod, position="top4"), "POSITION is 'top4'"),
        (partial(CLIPLoRAMethod, params=("q", "o")), "PARAMS is"),
    ],
)
def test_mistakes_are_answered(backbone, make, said):
    with pytest.raises(ValueError, match=said):
        make(backbone, BASE)


def test_a_checkpoint_of_another_shape_is_refused(backbone):
    state = {key: value[:1] for key, value in build("CLIP-Adapter", backbone, BASE).state_dict().items()}
    with pytest.raises(ValueError, match="of another shape"):
        METHODS["CLIP-Adapter"](backbone, BASE).load_state_dict(state)


def test_kgcoop_without_distance_is_coop(backbone):
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    plain, near = CoOpMethod(backbone, BASE, init="a photo of a"), KgCoOpMethod(backbone, BASE, PET, weight=0.0)
    assert torch.equal(plain.train().loss(images, labels)[0], near.train().loss(images, labels)[0])
    logits = F.cross_entropy(evaluate(plain), labels)
    assert torch.isfinite(logits)
