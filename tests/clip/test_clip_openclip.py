"""open_clip backbones: what a name leads to, where files are looked for, and the two towers that differ most."""

import ast
import json

import huggingface_hub
import open_clip
import openclip_models as reduced
import pytest
import torch

from clip import hub, openclip
from clip.clip import ContextLengthError, tokenize
from clip.hub import resolve
from clip.loading import load_backbone
from clip.weights import DownloadError


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory):
    reduced.register(tmp_path_factory.mktemp("configs"))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(b"")
    return path


def _cached(cache, repository, files):
    """A folder laid out as the hub's cache is."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    for name, write in files.items():
        write(snapshot / name)
    return snapshot


# names


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'ViT-B/61'; did you mean 'ViT-B/16'\?.*RN50x64.*hf-hub"):
        load_backbone("ViT-B/61")
    with pytest.raises(ValueError, match=r"did you mean 'EVA02-B-16'\?"):
        load_backbone("EVA02-B16")
    with pytest.raises(ValueError, match=r"did you mean ViT-B-16:laion2b_s34b_b88k\?"):
        load_backbone("ViT-B-16:laion2b_s34b_b8k")
    with pytest.raises(ValueError, match=r"did you mean ViT-B-16:laion2b_s34b_b88k\?"):
        load_backbone("ViT-B-16:laion2b")
    with pytest.raises(ValueError, match=r"several weights of ViT-B-16: write one of ViT-B-16:openai, "):
        load_backbone("ViT-B-16")
    with pytest.raises(ValueError, match="no weights of reduced-ViT"):
        load_backbone("reduced-ViT")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_backbone("EVA02-B-16", "absent.pt")


def test_bare_names_of_the_paper(tmp_path):
    repositories = {
        "EVA02-B-16": "timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k",
        "coca_ViT-B-32": "laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
    }
    for name, repository in repositories.items():
        snapshot = _cached(tmp_path, repository, {"open_clip_model.safetensors": lambda path: path.write_bytes(b"")})
        assert resolve(name, str(tmp_path)).weights == snapshot / "open_clip_model.safetensors"


def test_image_constants_and_activation_follow_the_weights(file):
    siglip = resolve("ViT-B-16-SigLIP", str(file))
    assert siglip.preprocess["mean"] == (0.5, 0.5, 0.5)
    assert siglip.preprocess["resize_mode"] == "squash"
    assert resolve("ViT-B-16:dfn2b", str(file)).config["quick_gelu"]
    assert not resolve("ViT-B-16:laion2b_s34b_b88k", str(file)).config.get("quick_gelu")
    assert resolve("ViT-B/16:laion2b_s34b_b88k", str(file)).weights == file
    with pytest.raises(ValueError, match="different image constants"):
        resolve("ViT-H-14-quickgelu", str(file))


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14-336", "RN50x4"])
def test_a_bare_name_does_not_lose_the_activation(name, file):
    """Neither the file nor the name says that its weights were trained with QuickGELU."""
    sentence = rf"{name} computes GELU, .* write {name}-quickgelu for QuickGELU, .* {name}:openai"
    with pytest.raises(ValueError, match=sentence):
        resolve(name, str(file))
    assert resolve(f"{name}-quickgelu", str(file)).config["quick_gelu"]
    assert resolve(f"{name}:openai", str(file)).config["quick_gelu"]


def test_models_that_are_refused(file):
    with pytest.raises(ValueError, match="roberta-base is a Hugging Face model"):
        load_backbone("roberta-ViT-B-32", str(file))
    with pytest.raises(ValueError, match="roberta-base is a Hugging Face model"):  # nothing is fetched for that
        load_backbone("roberta-ViT-B-32:laion2b_s12b_b32k")
    model = reduced.random_model("reduced-ViT")
    model.visual.image_size = (32, 64)
    with pytest.raises(ValueError, match="32x64"):
        openclip.backbone_of("wide", model, 32, tokenize, None, {})
    model.text_pool_type = "none"
    with pytest.raises(ValueError, match="'none'"):
        openclip.text_tower(model, 32, tokenize, None)


def test_missing_tokenizer_package(file, monkeypatch):
    monkeypatch.setattr(openclip, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install transformers"):
        load_backbone("ViT-B-16-SigLIP", str(file))


def test_only_who_asks_for_open_clip_imports_it(repo_root):
    for path in (repo_root / "clip").glob("*.py"):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in top for alias in node.names} | {getattr(node, "module", "") for node in top}
        heavy = {"open_clip", "timm", "openclip", "hub", "clip.openclip", "clip.hub"} & names
        assert not heavy or path.stem in ("openclip", "hub"), (path, heavy)


# files


def _write_settings(path, name="reduced-EVA02", **text):
    config = json.loads(json.dumps(reduced.CONFIGS[name]))
    config["text_cfg"].update(text)
    constants = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
    path.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": constants}))


def _check_reduced_eva(backbone):
    library, images = reduced.random_model("reduced-EVA02"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(images), library.encode_image(images), rtol=1e-5, atol=1e-5)
    assert (backbone.pixel_mean, backbone.pixel_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (backbone.interpolation, backbone.resize_mode) == ("bilinear", "squash")


def test_repository_in_the_cache_needs_no_connection(tmp_path, offline):
    model = reduced.random_model("reduced-EVA02")
    files = {
        "open_clip_config.json": _write_settings,
        "open_clip_model.safetensors": lambda path: reduced.write_safetensors(model, path),
    }
    _cached(tmp_path, "someone/reduced-eva", files)
    _check_reduced_eva(load_backbone("hf-hub:someone/reduced-eva", str(tmp_path)))


def test_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no open_clip_config\.json"):
        load_backbone(f"local-dir:{tmp_path}")
    _write_settings(tmp_path / "open_clip_config.json")
    with pytest.raises(FileNotFoundError, match=r"neither open_clip_model\.safetensors nor"):
        load_backbone(f"local-dir:{tmp_path}")
    reduced.write_training_checkpoint(reduced.random_model("reduced-EVA02"), tmp_path / "open_clip_pytorch_model.bin")
    _check_reduced_eva(load_backbone(f"local-dir:{tmp_path}"))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no entry model_cfg"):
        load_backbone(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"open_clip_config.json is damaged or no JSON"):
        load_backbone(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vision_cfg": {"timm_model_name": "hf-hub:someone/model"}}, "timm_model_name is 'hf-hub:someone/model'"),
        ({"vision_cfg": {"timm_model_name": "local-dir:/tmp"}}, "timm_model_name is 'local-dir:/tmp'"),
        ({"vision_cfg": {"timm_model_name": 3}}, "timm_model_name is 3"),
        ({"vision_cfg": []}, "no entry model_cfg with vision_cfg and text_cfg"),
        (
            {"vision_cfg": {"width": "wide", "layers": 2, "patch_size": 8, "image_size": 32}},
            "no model of these settings",
        ),
        ({"invented": 1}, "no model of these settings"),
    ],
)
def test_settings_of_a_folder_name_no_other_place_and_are_a_model_s(tmp_path, change, said):
    reduced.write_safetensors(reduced.random_model("reduced-ViT"), tmp_path / "open_clip_model.safetensors")
    described = {"model_cfg": {**reduced.CONFIGS["reduced-ViT"], **change}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=said):
        load_backbone(f"local-dir:{tmp_path}")


def test_offline_says_what_to_put_where(tmp_path, offline):
    address = "https://huggingface.co/timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k"
    sentence = rf"fetch open_clip_model.safetensors of {address} and name that file as the path of the backbone"
    with pytest.raises(DownloadError, match=sentence):
        load_backbone("EVA02-B-16", str(tmp_path))
    sentence = r"fetch open_clip_config.json and .* https://huggingface.co/a/b into one folder.*local-dir:<folder>"
    with pytest.raises(DownloadError, match=sentence):
        load_backbone("hf-hub:a/b", str(tmp_path))


def test_global_random_state_is_left_alone(tmp_path):
    reduced.write_safetensors(reduced.random_model("reduced-ViT"), tmp_path / "vit.safetensors")
    before = torch.get_rng_state()
    load_backbone("reduced-ViT", str(tmp_path / "vit.safetensors"))
    assert torch.equal(torch.get_rng_state(), before)


# towers


@torch.no_grad()
@pytest.mark.parametrize("name", ["reduced-EVA02", "reduced-PE"])
def test_eva_prompts_take_no_rotation(name):
    """Prompts behind the patches equal prompts among the tokens that the library itself does not rotate."""
    model, images = reduced.random_model(name), torch.randn(2, 3, 32, 32)
    backbone = openclip.backbone_of(name, model, 32, tokenize, None, {})
    prompts = [torch.randn(2, 64) for _ in range(2)]
    ours = backbone.encode_image(images, prompts)
    trunk = model.visual.trunk
    x, rope = trunk._pos_embed(trunk.patch_embed(images))
    slots = [p.expand(2, -1, -1) for p in prompts]
    x = trunk.norm_pre(torch.cat([x[:, :1], slots[0], x[:, 1:]], dim=1))
    for i, block in enumerate(trunk.blocks):
        block.attn.num_prefix_tokens = 3
        if i == 1:
            x = torch.cat([x[:, :1], slots[1], x[:, 3:]], dim=1)
        x = block(x, rope=rope)
    x = torch.cat([x[:, :1], x[:, 3:]], dim=1)
    theirs = model.visual.head(trunk.forward_head(trunk.norm(x)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_coca_prompts_are_appended():
    model, images = reduced.random_model("reduced-CoCa"), torch.randn(2, 3, 32, 32)
    backbone = openclip.backbone_of("CoCa", model, 64, tokenize, None, {})
    visual, prompts = model.visual, [torch.randn(2, 64) for _ in range(2)]
    x = visual._embeds(images)
    own = x.shape[1]
    x = torch.cat([x, visual.ln_pre(prompts[0]).expand(2, -1, -1)], dim=1)
    for i, block in enumerate(visual.transformer.resblocks):
        if i == 1:
            x = torch.cat([x[:, :own], prompts[1].expand(2, -1, -1)], dim=1)
        x = block(x)
    pooled, _ = visual._pool(x[:, :own])
    expected = pooled @ visual.proj
    torch.testing.assert_close(backbone.encode_image(images, prompts), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_coca_with_the_corrected_mask():
    model = reduced.random_model("reduced-CoCa")
    model.text.correct_cls_mask = True
    backbone = openclip.backbone_of("CoCa", model, 64, tokenize, None, {})
    tokens = backbone.tokenize(["a cat", "a photo of a dog, a pet", "word " * 18])
    expected = model.encode_text(tokens, normalize=False)
    for rows in (slice(0, 3), slice(0, 1), slice(0, 2)):
        torch.testing.assert_close(backbone.encode_text(tokens[rows]), expected[rows], rtol=1e-5, atol=1e-5)


def test_coca_refuses_what_its_mask_takes_for_padding():
    backbone = openclip.backbone_of("CoCa", reduced.random_model("reduced-CoCa"), 64, tokenize, None, {})
    backbone.tokenize(["hello!", "a ! b", "word " * 18])
    assert 0 in tokenize('wow !"$ she said')[0, :4]
    with pytest.raises(ValueError, match="CoCa's padding"):
        backbone.tokenize(["a cat", 'wow !"$ she said'])


# tokenizers of the transformers package


def _save_tokenizer(folder, start):
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = ["<pad>", "</s>", "<unk>", "<s>", "a", "photo", "of", "cat", "dog"]
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>" if start else "$A </s>", special_tokens=[("<s>", 3), ("</s>", 1)]
    )
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>" if start else "</s>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.save_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize("start", [False, True])
def test_tokenizer_files_of_a_folder(tmp_path, start):
    _save_tokenizer(tmp_path, start)
    pool = {"pool_type": "eos", "eos_id": 1, "no_causal_mask": False} if start else {}
    _write_settings(tmp_path / "open_clip_config.json", "reduced-SigLIP", hf_tokenizer_name="someone/words", **pool)
    model = reduced.random_model("reduced-SigLIP")
    model.text.pool_type = pool.get("pool_type", "last")
    if start:
        model.text.eos_id = 1
        model.text.attn_mask = model.text.build_causal_mask()
    reduced.write_safetensors(model, tmp_path / "open_clip_model.safetensors")
    backbone = load_backbone(f"local-dir:{tmp_path}")
    tokens = backbone.tokenize(["a photo of a cat", "dog"])
    assert backbone.context_start == start
    assert backbone.end_of_text(tokens).tolist() == [5 + start, 1 + start]
    torch.testing.assert_close(
        backbone.encode_text(tokens), model.encode_text(tokens, normalize=False), rtol=1e-5, atol=1e-5
    )
    backbone.tokenize(["dog " * (15 - start)])
    with pytest.raises(ContextLengthError, match="17 tokens long, but the context holds 16"):
        backbone.tokenize(["dog " * (16 - start)])


def test_every_weights_name_of_the_library_is_on_the_hub():
    """`resolve` reads `hf_hub` of each: none is to be had by address alone."""
    for model, tag in open_clip.list_pretrained():
        assert "/" in hub.get_pretrained_cfg(model, tag)["hf_hub"], (model, tag)
