"""CoCoOp, VPT, IVLP, language-only prompting and MaPLe: start, gradients, checkpoints, refusals."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from clip_models import RESNET, VIT, random_state
from parity import make_trainer, trainer_config

from adaptation.stacking import RunGroup, stacked_losses
from clip.loading import openai_backbone
from clip.model import CLIP
from clip.precision import Precision, convert_weights
from trainers import cocoop
from trainers.cocoop import CoCoOpMethod
from trainers.coop import CoOpMethod
from trainers.ivlp import IVLPMethod
from trainers.maple import MaPLeMethod
from trainers.vpt import VPTMethod

SIZES = {**VIT, "embed_dim": 256}  # CoCoOp's hidden layer has a sixteenth of it
BASE, NEW = ["golden_retriever", "tabby cat", "sushi"], ["bull mastiff", "apple pie"]
WORDS = "a photo of a"
METHODS = {
    "CoCoOp": partial(CoCoOpMethod, init=WORDS),
    "VPT": partial(VPTMethod, n=2, depth=12),
    "IVLP": partial(IVLPMethod, depth_text=12, depth_vision=12),
    "LP": partial(IVLPMethod, n_text=4, n_vision=0, depth_text=12, depth_vision=0),
    "MaPLe": partial(MaPLeMethod, depth=3),
}
VISION = ["image_encoder.VPT", *(f"image_encoder.transformer.resblocks.{i}.VPT_shallow" for i in (1, 2))]
TEXT = ["prompt_learner.ctx", *(f"text_encoder.transformer.resblocks.{i}.VPT_shallow" for i in (1, 2))]
META_NET = [f"prompt_learner.meta_net.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
MAPS = ["proj", "compound_prompt_projections.0", "compound_prompt_projections.1"]
KEYS = {
    "CoCoOp": ["prompt_learner.ctx", *META_NET],
    "VPT": VISION,
    "IVLP": [*TEXT, *VISION],
    "LP": TEXT,
    "MaPLe": [
        "prompt_learner.ctx",
        *(f"prompt_learner.compound_prompts_text.{k}" for k in (0, 1)),
        *(f"prompt_learner.{name}.{part}" for name in MAPS for part in ("weight", "bias")),
    ],
}
BARE = {"CoCoOp": "prompt_learner."}  # the official checkpoint holds the prompt learner alone
TRAINERS = {
    "CoCoOp": ("CoCoOp", "prompt_learner", {"CTX_INIT": WORDS}),
    "VPT": ("VPT", "prompt_learner", {"PROMPT_DEPTH_VISION": 12}),
    "IVLP": ("IVLP", "VLPromptLearner", {}),
    "LP": ("IVLP", "VLPromptLearner", {"N_CTX_VISION": 0, "PROMPT_DEPTH_VISION": 0, "N_CTX_TEXT": 4}),
    "MaPLe": ("MaPLe", "MultiModalPromptLearner", {}),
}
everyone = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def backbone():
    return openai_backbone("small ViT", random_state(SIZES))


@pytest.fixture(scope="module")
def resnet():
    return openai_backbone("small ResNet", random_state(RESNET))


def draw(backbone, count=4, seed=0):
    size = backbone.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def train_steps(method, steps=3):
    """SGD on made images; the labels follow the images."""
    images, labels = draw(method.backbone), torch.arange(4) % len(method.classnames)
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    method.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss, _ = method.loss(images, labels)
        loss.backward()
        optimiser.step()
    assert torch.isfinite(loss)


@torch.no_grad()
def evaluate(method):
    return method.eval()(draw(method.backbone, seed=1))


@everyone
def test_only_what_the_method_owns_is_trained(backbone, name):
    method = METHODS[name](backbone, BASE)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    started = {key: value.clone() for key, value in method.state_dict().items()}
    train_steps(method)
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    for key, value in method.state_dict().items():
        assert not torch.equal(value, started[key]), key


@everyone
def test_names_are_the_official_ones(backbone, name):
    assert sorted(METHODS[name](backbone, BASE).state_dict()) == sorted(KEYS[name])


@everyone
def test_state_is_taken_over_by_another_class_list(backbone, name):
    trained, same, other = (METHODS[name](backbone, classes) for classes in (BASE, BASE, NEW))
    train_steps(trained)
    same.load_state_dict(trained.state_dict())
    other.load_state_dict(trained.state_dict())
    assert torch.equal(evaluate(same), evaluate(trained))
    assert evaluate(other).shape == (4, len(NEW))
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in other.state_dict().items())


@everyone
def test_official_checkpoint(backbone, name):
    """Frozen weights and token buffers beside the learned part, names cut or prefixed as the official code has them."""
    trained, loaded = METHODS[name](backbone, BASE), METHODS[name](backbone, NEW)
    train_steps(trained)
    prefix = BARE.get(name, "")
    frozen = {
        "prompt_learner.token_prefix": torch.zeros(3, 1, 64),
        "prompt_learner.token_suffix": torch.zeros(3, 9, 64),
    }
    if not prefix:
        frozen |= {"image_encoder.conv1.weight": torch.zeros(1), "logit_scale": torch.zeros(())}
    state = {key.removeprefix(prefix): value for key, value in {**trained.state_dict(), **frozen}.items()}
    loaded.load_state_dict({f"module.{key}": value for key, value in state.items()})
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in loaded.state_dict().items())


@everyone
def test_incomplete_checkpoint_is_refused(backbone, name):
    method = METHODS[name](backbone, BASE)
    state = dict(method.state_dict())
    del state[KEYS[name][-1]]
    with pytest.raises(ValueError, match=KEYS[name][-1].replace(".", r"\.")):
        method.load_state_dict(state)


@pytest.mark.parametrize("name", ["VPT", "IVLP", "LP", "MaPLe"])
def test_checkpoint_of_a_deeper_design_is_refused(backbone, name):
    shallow = {
        "VPT": partial(VPTMethod, n=2, depth=1),
        "IVLP": partial(IVLPMethod, depth_text=1, depth_vision=1),
        "LP": partial(IVLPMethod, n_text=4, n_vision=0, depth_text=1, depth_vision=0),
        "MaPLe": partial(MaPLeMethod, depth=2),
    }
    with pytest.raises(ValueError, match="without a place here"):
        shallow[name](backbone, BASE).load_state_dict(METHODS[name](backbone, BASE).state_dict())


@everyone
def test_trainer_round_trip(backbone, tmp_path, name):
    """Through the engine: two epochs, a checkpoint in the official folder, evaluated on base and on new classes."""
    trainer_name, folder, keys = TRAINERS[name]
    optim = {"NAME": "sgd", "LR": 0.01, "MAX_EPOCH": 2}
    cfg = trainer_config(trainer_name, optim, {**keys, "PREC": "fp32"}, tmp_path)
    batches = [{"img": draw(backbone, seed=seed), "label": torch.arange(4) % 3} for seed in (2, 3)]
    trainer = make_trainer(cfg, backbone, BASE, batches)
    trainer.train()
    path = tmp_path / folder / "model.pth.tar-2"
    checkpoint = torch.load(path, weights_only=True)
    assert set(KEYS[name]) <= set(checkpoint["state_dict"])
    assert checkpoint["classnames"] == BASE
    for classes in (BASE, NEW):
        loaded = make_trainer(cfg, backbone, classes, batches)
        loaded.load_model(str(tmp_path))
        logits = evaluate(loaded.model)
        assert logits.shape == (4, len(classes))
        if classes == BASE:
            assert torch.equal(logits, evaluate(trainer.model))


@everyone
def test_stacked_runs_take_the_steps_of_single_ones(backbone, name):
    """Losses and gradients of three runs computed together are those of each run alone."""
    precision = Precision("fp32", backbone.device)
    requests, alone = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        method = METHODS[name](backbone, BASE).train()
        images, labels = draw(backbone, seed=seed), torch.randint(3, (4,))
        loss, _ = method.loss(images, labels)
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        alone.append((loss.detach(), torch.autograd.grad(loss, trained)))
        requests.append((SimpleNamespace(model=method, precision=precision), images, labels))
    answers = stacked_losses(requests, RunGroup.of([trainer for trainer, *_ in requests]))
    for (trainer, *_), (loss, _), (expected, gradients) in zip(requests, answers, alone, strict=True):
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)
        for parameter, gradient in zip(trainer.model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


@everyone
def test_half_weights_and_autocast(name):
    """The towers compute in fewer digits; what is learned and its gradients stay whole."""
    backbone = openai_backbone("small ViT", random_state(SIZES))
    method = METHODS[name](backbone, BASE)
    expected = evaluate(method)
    precision = Precision("bf16", backbone.device)
    with precision.autocast():
        torch.testing.assert_close(evaluate(method).float(), expected, rtol=0.05, atol=0.5)
    convert_weights(backbone.model)
    torch.testing.assert_close(evaluate(method), expected, rtol=0.02, atol=0.2)
    train_steps(method)
    assert all(parameter.grad.dtype == torch.float32 for parameter in method.parameters())


def test_numbers_learned_on_vit_b16():
    sizes = {
        "embed_dim": 512,
        "image_resolution": 224,
        "vision_layers": 12,
        "vision_width": 768,
        "vision_patch_size": 16,
        "context_length": 77,
        "vocab_size": 49408,
        "transformer_width": 512,
        "transformer_heads": 8,
        "transformer_layers": 12,
    }
    with torch.device("meta"):
        shapes = CLIP(**sizes).state_dict()
    backbone = openai_backbone("ViT-B/16", {key: torch.zeros(value.shape) for key, value in shapes.items()})
    methods = {
        35_360: CoCoOpMethod(backbone, BASE, init=WORDS),
        73_728: VPTMethod(backbone, BASE, n=8, depth=12),
        30_720: IVLPMethod(backbone, BASE, depth_text=12, depth_vision=12),
        24_576: METHODS["LP"](backbone, BASE),
        46_080: IVLPMethod(backbone, BASE, n_text=4, n_vision=4),
        3_555_072: MaPLeMethod(backbone, BASE),
    }
    for count, method in methods.items():
        assert sum(p.numel() for p in method.parameters() if p.requires_grad) == count


# How a context starts


@pytest.mark.parametrize("method", [IVLPMethod, MaPLeMethod])
def test_context_takes_the_first_words(backbone, method):
    built = method(backbone, BASE, 2, init="a_photo of a")
    words = backbone.token_embedding(backbone.tokenize([WORDS]))[0, 1:3]
    assert torch.equal(built.context.vectors, words)
    # the other words stay: at the start the sentence is the ordinary one
    sentence = backbone.tokenize(["a photo of a golden retriever."])
    assert torch.equal(built.context.tokens[:1], sentence)
    assert torch.equal(built.context()[0], backbone.token_embedding(sentence[0, : built.context.fixed.shape[1]]))


@pytest.mark.parametrize("method", [IVLPMethod, MaPLeMethod])
@pytest.mark.parametrize(("n", "init"), [(5, "a photo of a very"), (2, "")])
def test_context_without_words_or_above_four_starts_random(backbone, method, n, init):
    built = method(backbone, BASE, n, init=init)
    assert built.context.vectors.std() < 0.03
    placeholders = " ".join("X" * n)
    assert torch.equal(built.context.tokens[0], backbone.tokenize([f"{placeholders} golden retriever."])[0])


def test_cocoop_takes_all_words(backbone):
    assert CoCoOpMethod(backbone, BASE, n_ctx=7, init=WORDS).context.vectors.shape == (4, 64)
    assert CoCoOpMethod(backbone, BASE, n_ctx=7).context.vectors.shape == (7, 64)


def test_deep_prompts_start_small_and_random(backbone):
    for name in ("VPT", "IVLP", "LP"):
        state = METHODS[name](backbone, BASE).state_dict()
        prompts = torch.stack([value for key, value in state.items() if "VPT" in key])
        assert 0.015 < prompts.std() < 0.025
        assert len({value.sum().item() for value in prompts}) == len(prompts)


# CoCoOp


def test_cocoop_without_shift_is_coop(backbone):
    method = CoCoOpMethod(backbone, BASE, init=WORDS)
    torch.nn.init.zeros_(method.meta_net.linear2.weight)
    torch.nn.init.zeros_(method.meta_net.linear2.bias)
    expected = evaluate(CoOpMethod(backbone, BASE, init=WORDS))
    torch.testing.assert_close(evaluate(method), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cocoop_reads_each_image_with_its_own_sentences(backbone):
    method = CoCoOpMethod(backbone, BASE, n_ctx=3).eval()
    images = draw(backbone)
    logits = method(images)
    for image, row in zip(images, logits, strict=True):
        z = F.normalize(backbone.encode_image(image[None]), dim=-1)
        net = method.meta_net
        shift = net.linear2(torch.relu(net.linear1(z)))
        embeddings = backbone.token_embedding(method.context.tokens)
        embeddings[:, 1:4] = method.context.vectors + shift
        t = F.normalize(backbone.encode_embeddings(embeddings, method.context.end), dim=-1)
        torch.testing.assert_close(row, (backbone.logit_scale * z @ t.T)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("limit", [1, 5, 6, 10**6])
def test_cocoop_encodes_a_bounded_number_of_sentences(backbone, monkeypatch, limit):
    method = CoCoOpMethod(backbone, BASE, init=WORDS)
    expected, seen = evaluate(method), []
    encode = backbone.encode_embeddings
    monkeypatch.setattr(cocoop, "MAX_SENTENCES", limit)
    monkeypatch.setattr(backbone, "encode_embeddings", lambda x, end: seen.append(len(x)) or encode(x, end))
    torch.testing.assert_close(evaluate(method), expected, rtol=1e-5, atol=1e-5)
    assert max(seen) <= max(limit, len(BASE))
    assert sum(seen) == 4 * len(BASE)


# The image side


@torch.no_grad()
def test_language_only_leaves_the_images_alone(backbone):
    images = draw(backbone)
    method = METHODS["LP"](backbone, BASE)
    assert torch.equal(method.image_features(images), backbone.encode_image(images))


def test_vpt_encodes_its_sentences_once_and_without_the_set_s_template(backbone, monkeypatch):
    sentences = []
    tokenize = backbone.tokenize
    monkeypatch.setattr(backbone, "tokenize", lambda texts: sentences.append(texts) or tokenize(texts))
    method = METHODS["VPT"](backbone, BASE)
    train_steps(method)
    assert sentences == [["a photo of a golden retriever.", "a photo of a tabby cat.", "a photo of a sushi."]]


def test_maple_maps_start_as_copies_of_one(backbone):
    method = MaPLeMethod(backbone, BASE, depth=4)
    first, *others = method.compound_prompt_projections
    assert all(torch.equal(first.weight, other.weight) and torch.equal(first.bias, other.bias) for other in others)
    assert not torch.equal(first.weight, method.proj.weight)
    assert len({parameter.data_ptr() for parameter in method.parameters()}) == len(list(method.parameters()))


@pytest.mark.parametrize(("text", "vision"), [(2, 4), (4, 2), (1, 1), (3, 3)])
def test_maple_beyond_the_last_block(text, vision):
    """Prompts and maps exist for the configured depth; those that act are trained, the others stay as they are."""
    backbone = openai_backbone("small", random_state({**VIT, "vision_layers": vision, "transformer_layers": text}))
    method = MaPLeMethod(backbone, BASE, depth=6)
    assert len(method.compound_prompts_text) == len(method.compound_prompt_projections) == 5
    started = {key: value.clone() for key, value in method.state_dict().items()}
    train_steps(method)
    act = {"prompt_learner.ctx", "prompt_learner.proj.weight", "prompt_learner.proj.bias"}
    act |= {f"prompt_learner.compound_prompts_text.{k}" for k in range(max(text, vision) - 1)}
    maps = (f"prompt_learner.compound_prompt_projections.{k}" for k in range(vision - 1))
    act |= {f"{name}.{part}" for name in maps for part in ("weight", "bias")}
    assert {method.official_name(key) for key, p in method.named_parameters() if p.requires_grad} == act
    assert {method.official_name(key) for key, p in method.named_parameters() if p.grad is not None} == act
    assert {key for key, value in method.state_dict().items() if not torch.equal(value, started[key])} == act


def test_a_depth_above_the_blocks_is_cut(backbone):
    assert (
        METHODS["IVLP"](backbone, BASE).state_dict().keys()
        == IVLPMethod(backbone, BASE, 2, 2, 3, 3).state_dict().keys()
    )


# Refusals


def test_methods_without_visual_prompts_run_on_a_resnet(resnet):
    for name in ("CoCoOp", "LP"):
        method = METHODS[name](resnet, BASE)
        train_steps(method, steps=1)
        assert evaluate(method).shape == (4, 3)


@pytest.mark.parametrize("name", ["VPT", "IVLP", "MaPLe"])
def test_visual_prompts_refuse_a_resnet(resnet, name):
    with pytest.raises(ValueError, match="small ResNet is a ResNet: its image tower has no token slots"):
        METHODS[name](resnet, BASE)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (partial(VPTMethod, depth=0), "PROMPT_DEPTH_VISION is 0"),
        (partial(VPTMethod, n=0), "N_CTX_VISION is 0"),
        (partial(IVLPMethod, depth_text=0), "PROMPT_DEPTH_TEXT is 0"),
        (partial(IVLPMethod, depth_vision=-1), "PROMPT_DEPTH_VISION is -1"),
        (partial(IVLPMethod, n_vision=-2), "N_CTX_VISION is -2"),
        (partial(IVLPMethod, n_text=0), "N_CTX is 0"),
        (partial(IVLPMethod, n_text=3, init="a photo"), "has only 2 words"),
        (partial(IVLPMethod, init="a photo-like"), "use plain words"),
        (partial(MaPLeMethod, depth=0), "PROMPT_DEPTH is 0"),
        (partial(MaPLeMethod, n=0), "N_CTX is 0"),
    ],
)
def test_numbers_out_of_range_are_named(backbone, build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(backbone, BASE)
