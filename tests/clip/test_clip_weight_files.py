"""The reader of weights files: formats, wrappers, layouts, what it refuses, and that nothing in a file is run."""

import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile

import numpy as np
import open_clip
import openclip_models as reduced
import pytest
import torch
from clip_models import RESNET, VIT, random_state, write_torchscript
from safetensors.torch import save_file
from torch import nn

from clip.backbone import weights_digest
from clip.loading import load_backbone
from clip.weight_files import SIZE_ENTRIES, read_state_dict, read_weights


@pytest.fixture(scope="module")
def state():
    """A small CLIP without its large token table's rows, of which the layouts need not all."""
    return random_state({**VIT, "vocab_size": 50})


def same(read, expected):
    assert read.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(read[key], value), key
        assert read[key].dtype == value.dtype, key


# TorchScript as data


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6).half()[:, 1:3].t())
        self.register_buffer("steps", torch.arange(4))
        self.register_buffer("passing", torch.ones(2, dtype=torch.bool), persistent=False)
        self.note = torch.zeros(3)  # neither parameter nor buffer
        self.names, self.table, self.factor = ["a", "b"], {"x": 1}, 3.5

    def forward(self, x):
        return x * self.factor


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.again = Block(), Block()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Conv2d(1, 2, 3)))
        self.tied = self.layers[0].weight
        self.empty = nn.Parameter(torch.empty(0, 3, dtype=torch.bfloat16))

    def forward(self, x):
        return self.again(self.block(x))


def _jit(call, *args):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")  # deprecated
        return call(*args)


def _script(module, path):
    _jit(lambda: torch.jit.save(torch.jit.script(module), str(path)))


def test_torchscript_gives_what_torch_itself_loads(tmp_path):
    path = tmp_path / "network.pt"
    _script(Network(), path)
    same(read_state_dict(path), dict(_jit(torch.jit.load, str(path)).state_dict()))


@pytest.mark.parametrize("sizes", [VIT, RESNET])
def test_openai_archives_give_what_torch_itself_loads(sizes, tmp_path):
    write_torchscript(random_state(sizes), tmp_path / "clip.pt")
    loaded = dict(_jit(torch.jit.load, str(tmp_path / "clip.pt")).state_dict())
    same(read_state_dict(tmp_path / "clip.pt"), loaded)
    torch.save(loaded, tmp_path / "plain.pt")
    backbones = [load_backbone(str(tmp_path / name)) for name in ("clip.pt", "plain.pt")]
    assert backbones[0].digest == backbones[1].digest == weights_digest(backbones[0].model)


def _rewritten(source, target, change):
    """A copy of a zip archive with some members changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            new.writestr(info, change(info.filename, old.read(info)))


class Writer(nn.Module):
    """TorchScript whose code writes a file as soon as it is loaded."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x):
        torch.save(x, self.path)
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
        self.weight, self.path, self.training = state
        torch.save(self.weight, self.path)


def test_code_of_an_archive_is_not_run(tmp_path):
    victim = tmp_path / "victim"
    _script(Writer(str(victim)), tmp_path / "payload.pt")
    _jit(torch.jit.load, str(tmp_path / "payload.pt"))
    assert victim.is_file()  # this is what the archive does to whom loads it with PyTorch
    victim.unlink()
    with pytest.raises(ValueError, match=r"payload\.pt is damaged or no weights file: it holds something else"):
        load_backbone(str(tmp_path / "payload.pt"))
    with pytest.raises(ValueError, match="payload"):
        load_backbone("ViT-B/16", str(tmp_path / "payload.pt"))
    assert not victim.exists()


# pickles that would run something


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo run > {self.path}",)


def _legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _tar(content, path):
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(content)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _archive_with_payload(content, path):
    """A TorchScript archive whose pickle is replaced."""
    write_torchscript(random_state({**VIT, "vocab_size": 50}), path.with_suffix(".source"))
    _rewritten(
        path.with_suffix(".source"),
        path,
        lambda name, data: pickle.dumps(content, protocol=2) if name.endswith("/data.pkl") else data,
    )


def _numpy(content, path):
    with open(path, "wb") as file:
        np.savez(file, **{"params/t": np.array([content], dtype=object)})


PICKLES = {
    "zip.pt": torch.save,
    "legacy.pt": _legacy,
    "early.tar": _tar,
    "plain.pkl": lambda content, path: path.write_bytes(pickle.dumps(content)),
    "script.pt": _archive_with_payload,
    "big_vision.npz": _numpy,
    "weights.safetensors": lambda content, path: path.write_bytes(pickle.dumps(content)),
}


@pytest.mark.parametrize("file", PICKLES)
@pytest.mark.parametrize("place", ["alone", "value", "wrapped"])
def test_a_pickle_s_calls_are_not_made(file, place, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / file
    payload = Payload(victim)
    PICKLES[file](
        {"alone": payload, "value": {"visual.proj": payload}, "wrapped": {"state_dict": payload}}[place], path
    )
    reduced.register(tmp_path)
    for name in ("ViT-B/16", "reduced-SigLIP", str(path)):
        with pytest.raises(ValueError, match=file) as said:
            load_backbone(name, "" if name == str(path) else str(path))
        assert len(str(said.value).splitlines()) == 1
    assert not victim.exists()


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "torch.jit.load", "torch.load", "torch._utils.print", "clip.torchscript._call"],
)
def test_an_archive_gets_no_function_by_its_name(name, tmp_path):
    module, _, function = name.rpartition(".")
    code = f"c{module}\n{function}\n(S'x'\ntR.".encode()
    write_torchscript(random_state({**VIT, "vocab_size": 50}), tmp_path / "source")
    _rewritten(tmp_path / "source", tmp_path / "a.pt", lambda n, data: code if n.endswith("/data.pkl") else data)
    with pytest.raises(ValueError, match="something else than tensors"):
        read_state_dict(tmp_path / "a.pt")


def test_functions_that_an_archive_may_call_are_not_changed_by_it(tmp_path):
    """A pickle can set attributes of what it is given: defaults of a function, say, which other files would meet."""
    build = b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\nNstb."
    slots = b"ctorch._utils\n_rebuild_tensor_v2\n}S'_function'\nI1\nsb."
    for code in (build, slots, b"c__torch__\nA\n(N}S'__setstate__'\nNstb."):
        write_torchscript(random_state({**VIT, "vocab_size": 50}), tmp_path / "source")
        _rewritten(
            tmp_path / "source", tmp_path / "a.pt", lambda n, d, code=code: code if n.endswith("/data.pkl") else d
        )
        with pytest.raises(ValueError, match=r"a\.pt"):
            read_state_dict(tmp_path / "a.pt")
    assert read_state_dict(tmp_path / "source")["logit_scale"] == 3


def test_archives_do_not_refer_to_themselves_without_end(tmp_path):
    """A module that is its own child, and one whose children share children."""
    head = b"c__torch__\nM\n)\x81q\x01"
    loop = head + b"}(X\x01\x00\x00\x00ah\x01ub."
    code = b"class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n"
    write_torchscript(random_state({**VIT, "vocab_size": 50}), tmp_path / "source")
    change = {"/data.pkl": loop, "/__torch__.py": code}
    _rewritten(
        tmp_path / "source",
        tmp_path / "a.pt",
        lambda n, data: next((new for end, new in change.items() if n.endswith(end)), data),
    )
    with pytest.raises(ValueError, match=r"a\.pt"):
        read_state_dict(tmp_path / "a.pt")


# wrappers and prefixes


def _save(tree, path):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in _flattened(tree)}, path)
    else:
        torch.save(tree, path)


def _flattened(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, torch.Tensor):
            yield prefix + key, value


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "model_state_dict", "state_dict.model", "model.module"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_wrappers_and_prefixes(suffix, wrapper, prefix, state, tmp_path):
    tree = {f"{prefix}{key}": value for key, value in state.items()}
    for name in reversed(wrapper.split(".") if wrapper else []):
        tree = {name: tree, "epoch": 3, "optimizer": {"lr": torch.ones(())}}
    _save(tree, tmp_path / f"weights{suffix}")
    same(read_state_dict(tmp_path / f"weights{suffix}"), state)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("names", [("model", "state_dict"), ("model", "model_ema"), ("module", "model_state_dict")])
def test_of_several_sets_of_weights_none_is_guessed(suffix, names, state, tmp_path):
    path = tmp_path / f"weights{suffix}"
    trees = {name: {key: value * scale for key, value in state.items()} for scale, name in enumerate(names, 1)}
    if suffix == ".pt" and "model_ema" in names:  # of what is wrapped, only known names are weights
        trees = {f"{name}.{key}": value for name, tree in trees.items() for key, value in tree.items()}
    _save(trees, path)
    with pytest.raises(ValueError, match="keep one of them"):
        read_state_dict(path)
    _save({"model": {"name": "ViT"}, "state_dict": state}, tmp_path / "one.pt")
    same(read_state_dict(tmp_path / "one.pt"), state)


def test_open_clip_s_models_take_the_same_wrappers(tmp_path):
    reduced.register(tmp_path)
    model = reduced.random_model("reduced-EVA02")
    for name in ("state_dict", "model", "model_state_dict"):
        tree = {name: {f"module.{key}": value for key, value in model.state_dict().items()}, "epoch": 3}
        for suffix in (".pt", ".safetensors"):
            path = tmp_path / f"{name}{suffix}"
            _save(tree, path)
            assert load_backbone("reduced-EVA02", str(path)).digest == weights_digest(model)


def test_files_are_told_by_their_content(state, tmp_path):
    save_file(state, tmp_path / "really_safetensors.bin")
    torch.save(state, tmp_path / "really_a_zip.safetensors")
    _legacy(state, tmp_path / "legacy.bin")
    for name in ("really_safetensors.bin", "really_a_zip.safetensors", "legacy.bin"):
        same(read_state_dict(tmp_path / name), state)


# transformers


@pytest.fixture(scope="module")
def transformers_model():
    transformers = pytest.importorskip("transformers")
    tower = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "projection_dim": 32}
    config = transformers.CLIPConfig(
        text_config={**tower, "num_hidden_layers": 2, "vocab_size": 49408, "eos_token_id": 49407},
        vision_config={**tower, "num_hidden_layers": 3, "image_size": 32, "patch_size": 16},
        projection_dim=32,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn(value.shape))
    return model


def _folder(model, folder, form):
    model.save_pretrained(folder)
    if form == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
        state = model.state_dict()
        positions = {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")}
        torch.save({**state, **positions}, folder / form)  # as older versions wrote it
    return folder


def _check(backbone, model):
    images = torch.randn(2, 3, 32, 32)
    tokens = backbone.tokenize(["a photo of a cat", "x"])
    with torch.no_grad():
        written = model.text_projection(model.text_model(input_ids=tokens)[1])
        shown = model.visual_projection(model.vision_model(pixel_values=images)[1])
        torch.testing.assert_close(backbone.encode_image(images), shown, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(backbone.encode_text(tokens), written, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(backbone.logit_scale, model.logit_scale.exp())


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_transformers_layout(form, transformers_model, tmp_path):
    folder = _folder(transformers_model, tmp_path / "clip", form)
    _check(load_backbone(str(folder)), transformers_model)
    assert load_backbone(str(folder / form)).digest == load_backbone(str(folder)).digest
    (folder / "config.json").unlink()
    _check(load_backbone(str(folder / form)), transformers_model)


def test_transformers_layout_of_an_open_clip_model(transformers_model, tmp_path):
    """The same weights under the name of the same architecture; under that of another activation they are refused."""
    reduced.register(tmp_path)
    for name in ("reduced-ViT", "reduced-ViT-quickgelu"):
        config = reduced.CONFIGS[name]
        config = {**config, "vision_cfg": {**config["vision_cfg"], "head_width": 64}}
        text = {**config["text_cfg"], "heads": 1, "layers": 2}
        (tmp_path / f"{name}-hf.json").write_text(json.dumps({**config, "text_cfg": text}))
    open_clip.add_model_config(tmp_path)
    folder = _folder(transformers_model, tmp_path / "clip", "model.safetensors")
    _check(load_backbone("reduced-ViT-quickgelu-hf", str(folder)), transformers_model)
    with pytest.raises(ValueError, match="activation quick_gelu, but the backbone reduced-ViT-hf has gelu"):
        load_backbone("reduced-ViT-hf", str(folder))


@pytest.mark.parametrize(
    ("tower", "key", "value", "said"),
    [
        ("both", "hidden_act", "gelu", "activation gelu, but .* has quick_gelu"),
        ("both", "layer_norm_eps", 1e-6, "layer_norm_eps 1e-06, but .* has 1e-05"),
        ("vision", "num_attention_heads", 4, "image_heads 4, but .* has 1"),
        ("text", "num_attention_heads", 2, "text_heads 2, but .* has 1"),
        ("text", "hidden_act", "gelu", "hidden_act quick_gelu for images and gelu for text"),
    ],
)
def test_what_settings_beside_the_weights_say_is_compared(tower, key, value, said, transformers_model, tmp_path):
    folder = _folder(transformers_model, tmp_path / "clip", "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for name in ("vision", "text") if tower == "both" else (tower,):
        config[f"{name}_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        load_backbone(str(folder))


def test_openai_s_release_says_its_activation(tmp_path):
    """The three sizes that OpenAI's files hold beside the weights tell where these are from."""
    reduced.register(tmp_path)
    model = reduced.random_model("reduced-ViT")
    sizes = dict.fromkeys(SIZE_ENTRIES, torch.tensor(1))
    torch.save({**model.state_dict(), **sizes}, tmp_path / "released.pt")
    assert read_weights(tmp_path / "released.pt").facts == {"activation": "quick_gelu"}
    with pytest.raises(ValueError, match="activation quick_gelu, but the backbone reduced-ViT has gelu"):
        load_backbone("reduced-ViT", str(tmp_path / "released.pt"))
    assert load_backbone("reduced-ViT-quickgelu", str(tmp_path / "released.pt")).digest == weights_digest(model)


def test_a_file_that_does_not_say_its_activation_is_named(tmp_path, caplog, heard):
    state = random_state(VIT)
    torch.save(state, tmp_path / "plain.pt")
    write_torchscript(state, tmp_path / "released.pt")
    for name, warned in (("plain.pt", True), ("released.pt", False), ("tiny-ViT", False)):
        caplog.clear()
        load_backbone(name if name == "tiny-ViT" else str(tmp_path / name))
        assert ("does not say with which activation it was trained: QuickGELU is taken" in caplog.text) == warned


def test_open_clip_s_description_beside_the_weights_is_compared(tmp_path):
    state = random_state(VIT)
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    settings = tmp_path / "open_clip_config.json"
    settings.write_text('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}')
    with pytest.raises(ValueError, match=r"activation gelu, but .* has quick_gelu"):
        load_backbone(str(tmp_path / "open_clip_pytorch_model.bin"))
    settings.write_text('{"model_cfg": {"vision_cfg": {}, "quick_gelu": true}}')
    assert load_backbone(str(tmp_path / "open_clip_pytorch_model.bin")).embed_dim == 32


# what is refused


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["conv1.weight", "layer4.0.conv1.weight", "fc.bias"], "a ResNet classifier"),
        (["cls_token", "blocks.0.attn.qkv.weight"], "a DINO backbone or a ViT classifier"),
        (["teacher.backbone.x", "backbone.blocks.0.norm1.weight"], "a DINO backbone"),
        (["prompt_learner.ctx", "prompt_learner.token_prefix"], "a checkpoint of learned prompts"),
        (["logit_scale", "text.token_embedding.weight", "visual.trunk.blocks.0.x"], "open_clip checkpoint .* of timm"),
        (["vision_model.embeddings.class_embedding"], "the image half of transformers' CLIPModel"),
        (["vision_model.head.probe", "text_model.embeddings.x"], "transformers' SiglipModel"),
        (["base.lora_A.weight"], "an adapter"),
        (["visual.proj"], "the image half of a CLIP"),
        (["unheard.of"], "not the weights of an OpenAI CLIP"),
    ],
)
def test_other_state_dicts_are_said(keys, said, tmp_path):
    torch.save({key: torch.zeros(2, 2) for key in keys}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=rf"other\.pt.*{said}"):
        load_backbone("ViT-B/16", str(tmp_path / "other.pt"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08", "gzip"),
        (b'{"a": 1}', "JSON"),
        (b"\x93NUMPY", "NumPy"),
    ],
)
def test_other_files_are_said(content, said, tmp_path):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load_backbone("ViT-B/16", str(tmp_path / "weights.pt"))


def test_what_whole_weights_of_a_clip_look_like_is_not_said(state, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({**state, "head.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"not used: head\.weight$"):
        load_backbone(str(path))
    torch.save({"net": state, "epoch": 3}, path)
    with pytest.raises(ValueError, match="no state dict of tensors, but net, epoch"):
        load_backbone(str(path))


def test_weights_of_whole_numbers_are_refused_by_name(state, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({**state, "visual.proj": state["visual.proj"].to(torch.int8)}, path)
    with pytest.raises(ValueError, match=r"no floats: visual\.proj"):
        load_backbone(str(path))


def test_a_flipped_bit_is_seen(state, tmp_path):
    write_torchscript(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        data = bytearray((tmp_path / name).read_bytes())
        data[len(data) // 2] ^= 4
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            read_state_dict(tmp_path / name)


def test_archives_that_would_fill_the_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/0", "w") as file:
        for _ in range(1200):
            file.write(bytes(1 << 20))
    with pytest.raises(ValueError, match="would unpack to 1258291200 bytes"):
        read_state_dict(tmp_path / "bomb.pt")
    torch.save({"a": torch.zeros(()).expand(1 << 20, 1 << 20)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match="more than 64 GiB"):
        read_state_dict(tmp_path / "wide.pt")


def test_tensors_that_are_none_on_the_host_are_refused(tmp_path):
    with torch.device("meta"):
        torch.save({"a": torch.zeros(2)}, tmp_path / "meta.pt")
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "sparse.pt")
    for name in ("meta.pt", "sparse.pt"):
        with pytest.raises(ValueError, match="no state dict of tensors"):
            read_state_dict(tmp_path / name)


def test_no_file_is_handed_to_torch_jit(repo_root):
    rooms = ("clip", "dassl", "datasets", "trainers", "interpret_prompts", "lpclip", "results", "sweep", "synthetic")
    files = [path for room in rooms for path in (repo_root / room).rglob("*.py")] + list(repo_root.glob("*.py"))
    assert len(files) > 100
    assert not [path for path in files if "jit.load" in path.read_text(encoding="utf-8")]
