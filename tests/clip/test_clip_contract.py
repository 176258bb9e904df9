"""What every backbone keeps to, whatever library and file it comes from: one set of tests over all kinds.

Models are reduced in size, with random weights, in the real architectures and the real file formats. A file in
`clip/backbones/` is a kind of its own, with the weights that it loads from `$BACKBONE_PATH`, or from "".
"""

import os
import pkgutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import openclip_models as reduced
import pytest
import torch
from clip_models import RESNET, VIT, random_state, write_plain, write_safetensors, write_torchscript
from open_clip.model import build_model_from_openai_state_dict
from torch import Tensor, nn

import clip.backbones
from clip import openclip, towers
from clip.backbone import Backbone
from clip.loading import load_backbone
from clip.precision import CPU, Precision
from clip.substitution import tower_of

n = 2
OPENAI = {
    "ViT, TorchScript": (VIT, "vit.pt", write_torchscript),
    "ViT, state dict": (VIT, "state.pt", write_plain),
    "ViT, safetensors": (VIT, "vit.safetensors", write_safetensors),
    "ResNet, TorchScript": (RESNET, "resnet.pt", write_torchscript),
}
FORMATS = {"weights.safetensors": reduced.write_safetensors, "epoch_3.pt": reduced.write_training_checkpoint}
OWN = [module.name for module in pkgutil.iter_modules(clip.backbones.__path__)]
KINDS = [*OPENAI, *reduced.CONFIGS, *OWN]


@dataclass
class Kind:
    """A backbone loaded by its name from a file, and the library's own model of the same weights where there is one."""

    name: str
    load: Callable[[], Backbone]
    library: nn.Module | None = None

    def __post_init__(self):
        self.backbone = self.load()
        generator = torch.Generator().manual_seed(1)
        size = self.backbone.image_size
        self.images = torch.randn(3, 3, size, size, generator=generator)
        fills = "word " * (self.backbone.context_length - 1 - self.backbone.context_start)
        self.tokens = self.backbone.tokenize(["a photo of a cat.", "x", "a guinea pig and its friends", fills])

    def library_images(self, images: Tensor) -> Tensor:
        return self.library.encode_image(images, normalize=False)

    def library_text(self, tokens: Tensor) -> Tensor:
        return self.library.encode_text(tokens, normalize=False)

    def image_prompts(self, *shape: int) -> list[Tensor]:
        if self.backbone.vision_width is None:
            return []
        return [draw(*shape, self.backbone.vision_width, seed=i) for i in range(2)]

    def text_prompts(self, *shape: int) -> list[Tensor | None]:
        return [None, *(draw(*shape, self.backbone.text_width, seed=10 + i) for i in range(2))]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def _openai_kind(name, folder):
    sizes, file, write = OPENAI[name]
    state = random_state(sizes)
    write(state, folder / file)
    library = build_model_from_openai_state_dict(dict(state)).float()
    return Kind(name, lambda: load_backbone(str(folder / file)), library)


def _openclip_kind(name, folder):
    library = reduced.random_model(name)
    file = list(FORMATS)[list(reduced.CONFIGS).index(name) % len(FORMATS)]
    FORMATS[file](library, folder / file)
    return Kind(name, lambda: load_backbone(name, str(folder / file)), library)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kind")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        if request.param in OPENAI:
            yield _openai_kind(request.param, folder)
            return
        if request.param in OWN:
            yield Kind(request.param, lambda: load_backbone(request.param, os.environ.get("BACKBONE_PATH", "")))
            return
        reduced.register(tmp_path_factory.mktemp("configs"))
        if "SigLIP" in request.param:  # its tokenizer is a file of the hub
            patch.setattr(openclip, "tokenizer_of", lambda source: (reduced.siglip_tokenize, 1))
        yield _openclip_kind(request.param, folder)


@pytest.fixture
def of_library(kind):
    """The kinds that a library has a model of."""
    return kind if kind.library else pytest.skip("no library has a model of it")


def test_without_prompts_features_are_the_library_s(of_library):
    close(of_library.backbone.encode_image(of_library.images), of_library.library_images(of_library.images))
    close(of_library.backbone.encode_text(of_library.tokens), of_library.library_text(of_library.tokens))
    close(of_library.backbone.logit_scale, of_library.library.logit_scale.exp())
    bias = getattr(of_library.library, "logit_bias", None)
    assert (of_library.backbone.logit_bias is None) == (bias is None)


@contextmanager
def _hooks(handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_text_context_and_prompts_against_the_library_s_model(of_library):
    """The same replacements, made by hooks inside the library's own forward pass on the full context."""
    text, start = getattr(of_library.library, "text", of_library.library), of_library.backbone.context_start
    slots = slice(start, start + n)
    prompts, context = of_library.text_prompts(n), draw(n, of_library.backbone.text_width, seed=5)

    def replace(vectors):
        def hook(module, args, output=None):
            x = (args[0] if output is None else output).clone()
            x[:, slots] = vectors
            return x if output is not None else (x, *args[1:])

        return hook

    handles = [text.token_embedding.register_forward_hook(replace(context))]
    for block, vectors in zip(text.transformer.resblocks, prompts, strict=False):
        if vectors is not None:
            handles.append(block.register_forward_pre_hook(replace(vectors)))
    with _hooks(handles):
        expected = of_library.library_text(of_library.tokens)
    end = of_library.backbone.end_of_text(of_library.tokens)
    embeddings = of_library.backbone.token_embedding(of_library.tokens)
    embeddings[:, slots] = context
    close(of_library.backbone.encode_embeddings(embeddings, end, prompts), expected)


def test_image_prompts_against_the_library_s_model(of_library):
    """The same tokens appended and replaced by hooks inside the library's own forward pass."""
    visual = of_library.library.visual
    trunk = getattr(visual, "trunk", visual)
    if of_library.backbone.vision_width is None or getattr(trunk, "rope", None) is not None:
        pytest.skip("no token slots, or a rotary table of fixed length (see test_clip_openclip)")
    blocks = trunk.blocks if trunk is not visual else visual.transformer.resblocks
    norm = trunk.norm_pre if trunk is not visual else visual.ln_pre
    first, second = of_library.image_prompts(n)

    def append(module, args):
        return (torch.cat([args[0], norm(first).expand(len(args[0]), -1, -1)], dim=1),)

    def replace(module, args):
        return (torch.cat([args[0][:, :-n], second.expand(len(args[0]), -1, -1)], dim=1),)

    handles = [
        blocks[0].register_forward_pre_hook(append),
        blocks[1].register_forward_pre_hook(replace),
        blocks[2].register_forward_hook(lambda module, args, output: output[:, :-n]),
    ]
    with _hooks(handles):
        expected = of_library.library_images(of_library.images)
    close(of_library.backbone.encode_image(of_library.images, [first, second]), expected)


def test_text_at_its_real_length_is_exact(kind):
    for prompts in ((), kind.text_prompts(n)):
        embeddings, end = kind.backbone.token_embedding(kind.tokens), kind.backbone.end_of_text(kind.tokens)
        assert int(end.max()) == kind.backbone.context_length - 1  # one sentence fills the context
        full = kind.backbone.encode_embeddings(embeddings, end, prompts)
        for rows in (slice(0, 1), slice(0, 3), slice(1, 2)):
            length = int(end[rows].max()) + 1
            for cut in (length, min(length + 3, kind.backbone.context_length)):
                close(kind.backbone.encode_embeddings(embeddings[rows, :cut], end[rows], prompts), full[rows])
            close(kind.backbone.encode_text(kind.tokens[rows], prompts), full[rows])


# kinds whose text tower is not causal, or has a mask of its own
WHOLE = {"reduced-CLIPA", "reduced-CoCa", "reduced-SigLIP", "reduced-MobileCLIP2"}


def test_what_sentences_begin_with_may_be_computed_once(kind):
    """The same features and gradients, to float32's rounding, as of whole sentences."""
    backbone = kind.backbone
    if kind.library:
        assert backbone.text.packable == (kind.name not in WHOLE)
    whole = replace(backbone.text, tokenwise=False)
    tokens = backbone.tokenize(["a photo of a cat.", "a photo of a guinea pig and its friends", "a photo of an ox"])
    layout = backbone.layout(tokens)
    assert layout.shared >= backbone.context_start + n
    with torch.enable_grad():
        for inserted in (False, True) if backbone.text.bind is None else (False,):
            prompts = [None if p is None else p.requires_grad_() for p in kind.text_prompts(n)]
            embeddings = backbone.token_embedding(tokens[:, : layout.length]).detach().requires_grad_()
            results = []
            for tower in (backbone.text, whole):
                t = towers.encode_text(tower, embeddings, layout, prompts, inserted)
                gradients = torch.autograd.grad((t * draw(*t.shape, seed=3)).sum(), [embeddings, *prompts[1:]])
                results.append((t, gradients[0].sum(dim=0), *gradients[1:]))
            for ours, theirs in zip(*results, strict=True):
                assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max().clamp(min=1)


def test_batch_composition_does_not_change_features(kind):
    image, text = kind.image_prompts(n), kind.text_prompts(n)
    alone = torch.cat([kind.backbone.encode_image(x[None], image) for x in kind.images])
    close(kind.backbone.encode_image(kind.images, image), alone)
    alone = torch.cat([kind.backbone.encode_text(row[None], text) for row in kind.tokens])
    close(kind.backbone.encode_text(kind.tokens, text), alone)


def test_tokens_that_enter_at_a_later_block(kind):
    """Image prompts that begin at block 1, and tokens inserted into sentences, even one that fills the context."""
    backbone, text = kind.backbone, kind.text_prompts(n)
    if image := kind.image_prompts(n):
        late = [None, *image]
        alone = torch.cat([backbone.encode_image(x[None], late) for x in kind.images])
        close(backbone.encode_image(kind.images, late), alone)
        assert not torch.allclose(alone, backbone.encode_image(kind.images), atol=1e-3)
    if backbone.text.bind is not None:
        with pytest.raises(ValueError, match="no tokens can be inserted"):
            backbone.encode_text(kind.tokens, text, insert=True)
        return
    alone = torch.cat([backbone.encode_text(row[None], text, insert=True) for row in kind.tokens])
    close(backbone.encode_text(kind.tokens, text, insert=True), alone)
    for other in (backbone.encode_text(kind.tokens), backbone.encode_text(kind.tokens, text)):
        assert not torch.allclose(alone, other, atol=1e-3)


def test_features_read_from_image_prompts(kind):
    """Beside the features, or refused where the tower has no normalisation of single tokens."""
    image = [None, *kind.image_prompts(n)]

    def read(tokens):
        return tokens.mean(dim=1)[:, : kind.backbone.embed_dim]

    if kind.backbone.image.output_norm is None:
        with pytest.raises(ValueError, match=r"cannot be read from prompts|no token slots"):
            kind.backbone.encode_image(kind.images, image, read=read)
        return
    both = kind.backbone.encode_image(kind.images, image, read=read)
    close(both[:, 0], kind.backbone.encode_image(kind.images, image))
    assert both.shape == (len(kind.images), 2, kind.backbone.embed_dim)


def test_prompts_shared_or_per_sample(kind):
    image, text = kind.image_prompts(n), kind.text_prompts(n)
    per_image, per_text = kind.image_prompts(len(kind.images), n), kind.text_prompts(len(kind.tokens), n)
    together = kind.backbone.encode_image(kind.images, per_image)
    for i, x in enumerate(kind.images):
        close(together[i], kind.backbone.encode_image(x[None], [p[i] for p in per_image])[0])
    together = kind.backbone.encode_text(kind.tokens, per_text)
    for i, row in enumerate(kind.tokens):
        own = [None if p is None else p[i] for p in per_text]
        close(together[i], kind.backbone.encode_text(row[None], own)[0])
    expanded = [p.expand(len(kind.images), -1, -1) for p in image]
    close(kind.backbone.encode_image(kind.images, image), kind.backbone.encode_image(kind.images, expanded))
    expanded = [None if p is None else p.expand(len(kind.tokens), -1, -1) for p in text]
    close(kind.backbone.encode_text(kind.tokens, text), kind.backbone.encode_text(kind.tokens, expanded))


READS_ONE = {  # kinds whose last image block computes the class token alone
    *(name for name in OPENAI if "ViT" in name), "reduced-ViT", "reduced-ViT-quickgelu",
}  # fmt: skip


def test_the_last_block_may_compute_only_what_is_read_out(kind):
    """The same features, to float32's rounding, as with all tokens in the last block."""
    backbone = kind.backbone
    image, text = replace(backbone.image, last=None), _all_tokens(backbone.text)
    if kind.library:
        assert (backbone.image.last is not None) == (kind.name in READS_ONE)
    assert text is not backbone.text
    pairs = [(towers.encode_image(tower, kind.images, kind.image_prompts(n)) for tower in (backbone.image, image))]
    end = backbone.end_of_text(kind.tokens)
    for rows in (slice(0, 2), slice(0, 4)):  # short sentences, and one that fills the context
        tokens = backbone.token_embedding(kind.tokens[rows, : int(end[rows].max()) + 1])
        both = (towers.encode_text(t, tokens, end[rows], kind.text_prompts(n)) for t in (backbone.text, text))
        pairs.append(both)
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max().clamp(min=1)


def _all_tokens(tower):
    """The text tower without what reads one token; CoCa's last block under its mask, where that is bound."""
    if tower.bind is None:
        return replace(tower, last=None)

    def bind(x, end):
        *blocks, _ = tower.bind(x, end)
        return (*blocks, partial(tower.blocks[-1].args[1], attn_mask=blocks[0].keywords["attn_mask"]))

    return replace(tower, bind=bind)


def test_every_prompt_receives_gradient_and_no_weight_does(kind):
    with torch.enable_grad():
        image = [p.requires_grad_() for p in kind.image_prompts(n)]
        text = [p if p is None else p.requires_grad_() for p in kind.text_prompts(n)]
        z, t = kind.backbone.encode_image(kind.images, image), kind.backbone.encode_text(kind.tokens[:3], text)
        (z.square().mean() + t.square().mean()).backward()
    for prompt in [*image, *text[1:]]:
        assert (prompt.grad.abs().sum(dim=-1) > 0).all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in kind.backbone.parameters())


def test_prompts_leave_no_trace(kind):
    def state():
        model = kind.backbone.model
        numbers = {
            f"{name}.{key}": value
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, (int, float, str, tuple))
        }
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return numbers, {key: value.clone() for key, value in tensors.items()}

    numbers, tensors = state()
    features = kind.backbone.encode_image(kind.images), kind.backbone.encode_text(kind.tokens)
    kind.backbone.encode_image(kind.images, kind.image_prompts(n))
    kind.backbone.encode_text(kind.tokens, kind.text_prompts(n))
    after_numbers, after_tensors = state()
    assert numbers == after_numbers
    assert tensors.keys() == after_tensors.keys()
    assert all(torch.equal(after_tensors[key], value) for key, value in tensors.items())
    assert torch.equal(kind.backbone.encode_image(kind.images), features[0])
    assert torch.equal(kind.backbone.encode_text(kind.tokens), features[1])


def test_towers_compute_with_other_weights_while_their_own_stay(kind):
    """As a model that has these weights itself; each weight of a tower gets its gradient; an exception leaves none."""
    backbone, other = kind.backbone, kind.load()
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    values = {
        name: value + 0.05 * value.std(correction=0) * torch.randn(value.shape)
        for name, value in before.items()
        if name in dict(backbone.model.named_parameters()) and tower_of(name)
    }
    other.model.load_state_dict({**before, **values})
    learned = {name: value.clone().requires_grad_() for name, value in values.items()}
    view = backbone.with_weights(lambda: learned)
    assert backbone.plain_images
    assert not view.plain_images
    with torch.enable_grad():
        z, t = view.encode_image(kind.images), view.encode_text(kind.tokens)
        (z.square().mean() + t.square().mean()).backward()
    close(z, other.encode_image(kind.images))
    close(t, other.encode_text(kind.tokens))
    assert [name for name, value in learned.items() if value.grad is None] == []
    with pytest.raises(IndexError):
        view.token_embedding(torch.full((1, 3), 10**6))
    after = backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in backbone.parameters())


def test_two_halves_are_the_whole(kind):
    """Tokens below a block, and features from these; also with learned weights above."""
    backbone, image = kind.backbone, kind.backbone.vision_layers // 2
    if not image:
        with pytest.raises(ValueError, match="cannot be divided"):
            backbone.split(image, 1)
        return
    values = {name: 1.01 * value for name, value in backbone.model.named_parameters() if tower_of(name)}
    view = backbone.with_weights(lambda: values)
    for whole in (backbone, view):
        lower, upper = whole.split(image, 1)
        x = lower.run_image(lower.image, kind.images, ())
        close(upper.encode_image(x), whole.encode_image(kind.images))
        end = whole.end_of_text(kind.tokens)
        tokens = lower.run_text(lower.text, whole.token_embedding(kind.tokens), end, ())
        close(upper.encode_embeddings(tokens, end), whole.encode_text(kind.tokens))


def test_original_weights(kind):
    """What the file holds, also where the backbone is in half precision."""
    names = [name for name, _ in kind.backbone.model.named_parameters()]
    half = Precision("bf16", CPU).prepare(kind.load())
    half.to_half_precision(half.model)
    for name, value in half.original_weights(names).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, kind.backbone.model.get_parameter(name))


def test_depth_and_slots_of_image_prompts(kind):
    if kind.backbone.vision_width is None:
        with pytest.raises(ValueError, match="no token slots"):
            kind.backbone.encode_image(kind.images, [draw(n, 64, seed=0)])
        return
    prompts = [draw(n, kind.backbone.vision_width, seed=i) for i in range(3)]
    features = [kind.backbone.encode_image(kind.images, prompts[:depth]) for depth in range(4)]
    for i in range(4):
        for j in range(i):
            assert (features[i] - features[j]).abs().max() > 1e-3
    swapped = [p.flip(0) for p in prompts]  # prompts have no position: their order says nothing
    close(kind.backbone.encode_image(kind.images, swapped), features[3])


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
def test_precisions_agree(kind, mode):
    """Cosine with the float32 features: above 0.999 in bfloat16 autocast, above 0.9999 with half weights."""
    image, text = kind.image_prompts(n), kind.text_prompts(n)
    z, t = kind.backbone.encode_image(kind.images, image), kind.backbone.encode_text(kind.tokens, text)
    other = kind.load()
    if mode == "fp16":
        other.to_half_precision(other.model)
        least = 0.9999
        assert other.logit_scale.dtype == torch.float32
    else:
        Precision("bf16", CPU).prepare(other)
        least = 0.999
    with Precision(mode if mode == "bf16" else "fp32", CPU).autocast():
        z_other, t_other = other.encode_image(kind.images, image), other.encode_text(kind.tokens, text)
    assert torch.cosine_similarity(z_other.float(), z, dim=-1).min() > least
    assert torch.cosine_similarity(t_other.float(), t, dim=-1).min() > least


def test_sizes(kind):
    backbone = kind.backbone
    assert backbone.encode_image(kind.images).shape == (3, backbone.embed_dim)
    assert backbone.encode_text(kind.tokens).shape == (4, backbone.embed_dim) == (4, backbone.image.output_dim)
    assert backbone.token_embedding(kind.tokens).shape == (*kind.tokens.shape, backbone.text_width)
    assert kind.tokens.shape[1] == backbone.context_length
    layers = 3 if kind.library else max(1, backbone.vision_layers)
    assert backbone.vision_layers == (0 if backbone.vision_width is None else layers)
    assert backbone.text_layers == 3 or not kind.library
    assert len(backbone.pixel_mean) == len(backbone.pixel_std) == 3
    assert int(backbone.end_of_text(kind.tokens)[1]) == backbone.context_start + 1  # the sentence "x" is one token


def test_truncated_file_and_another_architecture(of_library, tmp_path):
    name = "ViT-B/16" if of_library.name in OPENAI else of_library.name
    for sizes in ({**VIT, "transformer_width": 128}, {**RESNET, "embed_dim": 16}):  # no of_library has these
        other = tmp_path / "openai.pt"
        torch.save(random_state(sizes), other)
        with pytest.raises(ValueError, match=rf"^{other}.*(this is not ViT-B/16|the weights of {name})"):
            load_backbone(name, str(other))
    other = tmp_path / "other.pt"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, other)
    with pytest.raises(ValueError, match=str(other)):
        load_backbone(name, str(other))
    for suffix in (".pt", ".safetensors"):
        cut = tmp_path / f"cut{suffix}"
        reduced.write_training_checkpoint(of_library.library, cut)
        cut.write_bytes(cut.read_bytes()[:5000])
        with pytest.raises(ValueError, match=str(cut)):
            load_backbone(name, str(cut))
