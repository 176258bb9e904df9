"""Images are read as the backbone asks: the INPUT keys are filled from it, and the tensors are the library's own."""

import json

import numpy as np
import openclip_models as reduced
import pytest
import torch
from clip_models import VIT, random_state
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import predict
import train
from adaptation.trainer import fill_input, fill_known_input, frozen_backbone
from clip import clip, openclip
from clip.backbone import Backbone
from clip.loading import load_backbone, openai_backbone
from clip.model import ARCHITECTURES, CLIP
from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform

SHAPES = [(50, 31), (31, 50), (32, 32), (20, 9), (200, 33)]  # width, height
SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
PREPROCESS = {
    "none": {},
    "SigLIP": SIGLIP,
    "CLIPA": {"interpolation": "bilinear", "resize_mode": "squash"},
    "MobileCLIP": {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear", "resize_mode": "shortest"},
    "padded": {"interpolation": "bicubic", "resize_mode": "longest", "fill_color": 127},
    "random": {"interpolation": "random", "resize_mode": "longest"},
}


def _image(width, height):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _configuration(**keys):
    cfg = get_cfg_default()
    for key, value in keys.items():
        cfg.INPUT[key] = value
    return cfg


@pytest.mark.parametrize("described", PREPROCESS)
def test_test_images_are_the_library_s(described):
    preprocess = PREPROCESS[described]
    model = reduced.random_model("reduced-ViT")
    backbone = openclip.backbone_of("x", model, 32, clip.tokenize, None, preprocess)
    ours = build_transform(fill_input(_configuration(), backbone), is_train=False)
    theirs = image_transform_v2(PreprocessCfg(size=32, **preprocess), is_train=False)
    for shape in SHAPES:
        assert torch.equal(ours(_image(*shape)), theirs(_image(*shape))), shape


def test_openai_s_test_images():
    backbone = openai_backbone("small", random_state(VIT))
    ours = build_transform(fill_input(_configuration(), backbone), is_train=False)
    for shape in SHAPES:
        assert torch.equal(ours(_image(*shape)), clip.preprocess(32)(_image(*shape)))


def test_keys_at_their_default_are_filled():
    model = reduced.random_model("reduced-ViT")
    backbone = openclip.backbone_of("x", model, 32, clip.tokenize, None, {**SIGLIP, "fill_color": 9})
    filled = fill_input(_configuration(), backbone).INPUT
    assert filled.SIZE == (32, 32)
    assert filled.PIXEL_MEAN == filled.PIXEL_STD == [0.5, 0.5, 0.5]
    assert (filled.INTERPOLATION, filled.RESIZE_MODE, filled.FILL_COLOR) == ("bicubic", "squash", 9)
    assert filled.TRANSFORMS == ("normalize",)
    chosen = _configuration(TRANSFORMS=("random_flip", "normalize"), PIXEL_MEAN=[0.5, 0.5, 0.50001], SIZE=[32, 32])
    assert fill_input(chosen, backbone).INPUT.TRANSFORMS == ("random_flip", "normalize")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("SIZE", (64, 64), r"\(32, 32\)"),
        ("SIZE", (32, 64), r"\(32, 32\)"),
        ("PIXEL_MEAN", [0.1, 0.2, 0.3], r"\[0.5, 0.5, 0.5\]"),
        ("PIXEL_STD", [0.1], r"\[0.5, 0.5, 0.5\]"),
        ("INTERPOLATION", "nearest", "bicubic"),
        ("RESIZE_MODE", "longest", "squash"),
        ("FILL_COLOR", 255, "0"),
    ],
)
def test_a_value_that_disagrees_is_refused_with_both(key, value, wanted):
    backbone = openclip.backbone_of("x", reduced.random_model("reduced-ViT"), 32, clip.tokenize, None, SIGLIP)
    said = str(value).replace("(", r"\(").replace(")", r"\)").replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ValueError, match=rf"INPUT\.{key} is {said}, but the backbone x takes {wanted}"):
        fill_input(_configuration(**{key: value}), backbone)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_known_name_says_what_the_loaded_backbone_says(name):
    with torch.device("meta"):
        model = CLIP(**ARCHITECTURES[name])
    backbone = Backbone(name, model, model.visual.tower(), model.text_tower(), clip.tokenize)
    cfg = _configuration()
    cfg.MODEL.BACKBONE.NAME = name
    wanted = fill_input(cfg, backbone).INPUT
    fill_known_input(cfg, given=())
    assert dict(cfg.INPUT) == {**wanted, "TRANSFORMS": ()}
    assert backbone.input_settings().items() <= cfg.INPUT.items()


def test_given_keys_and_unknown_names_stay_as_they_are():
    cfg = _configuration(SIZE=(64, 64), PIXEL_MEAN=[0.485, 0.456, 0.406])
    cfg.MODEL.BACKBONE.NAME = "hf-hub:somebody/some-model"
    before = cfg.clone()
    fill_known_input(cfg, given=())
    assert cfg == before
    cfg.MODEL.BACKBONE.NAME = "RN50x4"
    fill_known_input(cfg, given=("INPUT.SIZE", "INPUT.PIXEL_MEAN"))
    assert (cfg.INPUT.SIZE, cfg.INPUT.PIXEL_MEAN) == ((64, 64), [0.485, 0.456, 0.406])
    assert (cfg.INPUT.INTERPOLATION, cfg.INPUT.PIXEL_STD) == ("bicubic", [0.26862954, 0.26130258, 0.27577711])


@pytest.fixture
def siglip(tmp_path, monkeypatch):
    """The name of a reduced SigLIP in a folder, and the library's model."""
    library = reduced.random_model("reduced-SigLIP")
    reduced.write_safetensors(library, tmp_path / "open_clip_model.safetensors")
    settings = {"model_cfg": reduced.CONFIGS["reduced-SigLIP"], "preprocess_cfg": SIGLIP}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(openclip, "tokenizer_of", lambda source: (reduced.siglip_tokenize, 1))
    frozen_backbone.cache_clear()
    yield f"local-dir:{tmp_path}", library
    frozen_backbone.cache_clear()


@torch.no_grad()
def test_evaluation_of_siglip_is_the_library_s(siglip, eurosat_root, tmp_path, repo_root):
    """The probabilities of a zero-shot run, for images that are not square, are those of the library's own steps."""
    name, library = siglip
    argv = ["--root", str(eurosat_root), "--trainer", "ZeroshotCLIP", "--output-dir", str(tmp_path / "run")]
    argv += ["--dataset-config-file", str(repo_root / "configs/datasets/eurosat.yaml"), "--backbone", name]
    assert train.main([*argv, "DATALOADER.NUM_WORKERS", "0"]) == 0
    paths = [tmp_path / f"{i}.png" for i in range(len(SHAPES))]
    for path, shape in zip(paths, SHAPES, strict=True):
        _image(*shape).save(path)
    predictor = predict.Predictor(str(tmp_path / "run"), opts=["MODEL.BACKBONE.NAME", name])
    ours = torch.from_numpy(predictor([str(path) for path in paths]))

    read = image_transform_v2(PreprocessCfg(size=32, **SIGLIP), is_train=False)
    z = library.encode_image(torch.stack([read(Image.open(path)) for path in paths]), normalize=True)
    sentences = [f"a centered satellite photo of {name}." for name in predictor.classnames]
    t = library.encode_text(reduced.siglip_tokenize(sentences, 16), normalize=True)
    theirs = torch.softmax(library.logit_scale.exp() * z @ t.T + library.logit_bias, dim=-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert theirs.std() > 0.01  # they differ from image to image


def test_the_linear_probe_reads_images_so_too(siglip, eurosat_root, tmp_path, repo_root):
    from lpclip import __main__ as probe

    name, _ = siglip
    file = tmp_path / "plain.yaml"
    file.write_text("DATALOADER:\n  NUM_WORKERS: 0\n")
    argv = ["--root", str(eurosat_root), "--output-dir", str(tmp_path / "probe"), "--config-file", str(file)]
    argv += ["--dataset-config-file", str(repo_root / "configs/datasets/eurosat.yaml"), "--backbone", name]
    args = probe.build_parser().parse_args([*argv, "--shots", "1", "--runs", "1"])
    probe.run(args)
    with np.load(tmp_path / "probe" / "features.npz") as arrays:
        settings = json.loads(str(arrays["description"]))
    assert settings["backbone"] == [name, load_backbone(name).identity()]
    assert settings["input"]["RESIZE_MODE"] == "squash"
    assert settings["input"]["PIXEL_MEAN"] == [0.5, 0.5, 0.5]
