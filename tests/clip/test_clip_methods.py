"""The methods on backbones of every kind: they train what they own, leave the backbone as it was, and evaluate."""

import json

import openclip_models as reduced
import pytest
import torch
from clip_models import RESNET, VIT, random_state
from parity import make_trainer, trainer_config
from small_methods import TWO_OF_THREE

import train
import trainers  # noqa: F401  (registers the methods)
from adaptation.prompts import image_prompts
from benchmarks import backbone_memory
from clip import openclip
from clip.backbone import Backbone
from clip.clip import tokenize
from clip.loading import openai_backbone
from trainers.coop import CoOpMethod

BASE, NEW = ["tabby cat", "sushi", "golden_retriever"], ["apple pie", "bull mastiff"]
METHODS = {**TWO_OF_THREE, "ZeroshotCLIP2": {}}
VISUAL = ("VPT", "IVLP", "MaPLe", "APEX")
SLOTLESS = ("OpenAI ResNet", "reduced-ConvNeXt")
KINDS = ["OpenAI ViT", *SLOTLESS, *(f"reduced-{kind}" for kind in ("ViT", "EVA02", "CoCa", "SigLIP", "PE", "CLIPA"))]


@pytest.fixture(scope="module", params=KINDS)
def backbone(request) -> Backbone:
    name = request.param
    if name.startswith("OpenAI"):
        return openai_backbone(name, random_state(RESNET if "ResNet" in name else VIT))
    read = (reduced.siglip_tokenize, 1) if "SigLIP" in name else (tokenize, None)
    return openclip.backbone_of(name, reduced.random_model(name), reduced.CONFIGS[name]["embed_dim"], *read, {})


def _batches(backbone, count=2):
    size, generator = backbone.image_size, torch.Generator().manual_seed(0)
    return [{"img": torch.randn(3, 3, size, size, generator=generator), "label": torch.arange(3)} for _ in range(count)]


def _trainer(backbone, method, folder, classnames=BASE):
    optim = {"NAME": "sgd", "LR": 0.01, "MAX_EPOCH": 1}
    cfg = trainer_config(method, optim, {"PREC": "fp32", **METHODS[method]}, folder)
    return make_trainer(cfg, backbone, classnames, _batches(backbone))


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_and_evaluate(backbone, method, tmp_path):
    if backbone.name in SLOTLESS and method in VISUAL:
        with pytest.raises(ValueError, match="no token slots for visual prompts"):
            _trainer(backbone, method, tmp_path)
        return
    frozen = {key: value.clone() for key, value in backbone.state_dict().items()}
    trainer = _trainer(backbone, method, tmp_path)
    learned = {name: value.clone() for name, value in trainer.model.named_parameters()}
    if learned:
        trainer.train()
    for name, value in trainer.model.named_parameters():
        assert (trainer.grad0[trainer.model.official_name(name)] != 0).any(), f"no gradient reaches {name}"
        assert not torch.equal(value, learned[name]), f"{name} was not trained"
    assert all(torch.equal(backbone.state_dict()[key], value) for key, value in frozen.items())
    blocks = {name.split(".")[-1] for name in learned if "prompts.tokens" in name}
    assert blocks <= {"0", "1"}, "blocks beyond the depth have no prompts"

    new = _trainer(backbone, method, tmp_path / "new", NEW)
    new.load_model(str(tmp_path) if learned else "", epoch=1)
    new.set_model_mode("eval")
    with torch.no_grad():
        logits = new.model(_batches(backbone)[0]["img"])
    assert logits.shape == (3, len(NEW))
    assert torch.isfinite(logits).all()
    if backbone.logit_bias is not None:
        assert logits.max() < backbone.logit_scale + backbone.logit_bias + 1e-4


@torch.no_grad()
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_context_of_words_reads_as_the_sentence(backbone, position):
    """A context that holds the embeddings of its words gives the features of the sentence with these words."""
    method = CoOpMethod(backbone, BASE, init="a photo of", position=position)
    sentences = {
        "end": [f"a photo of {name}." for name in BASE],
        "middle": [f"a {name} photo of." for name in BASE],
        "front": [f"{name} a photo of." for name in BASE],
    }[position]
    tokens = backbone.tokenize([sentence.replace("_", " ") for sentence in sentences])
    torch.testing.assert_close(method.text_features(), backbone.encode_text(tokens), rtol=1e-5, atol=1e-5)


def test_depth_is_cut_to_the_tower(backbone):
    if backbone.vision_width is None:
        return
    assert sorted(image_prompts(backbone, 12, 2).tokens) == ["0", "1", "2"]


def test_the_memory_table_is_what_its_script_computes(repo_root):
    table = (repo_root / "docs" / "BACKBONES.md").read_text().splitlines()
    for name in ("ViT-B-32", "coca_ViT-B-32"):
        assert backbone_memory.row(name) in table, "run python -m benchmarks.backbone_memory and renew the table"


@pytest.mark.parametrize(("config", "name"), [("eva_clip", "reduced-EVA02"), ("coca", "reduced-CoCa")])
def test_the_paper_s_configurations(config, name, eurosat_root, tmp_path, repo_root):
    """train.py with the configurations of EVA and CoCa, at reduced sizes: evaluation repeats what training reported."""
    reduced.register(tmp_path)
    reduced.write_safetensors(reduced.random_model(name), tmp_path / "model.safetensors")
    file = repo_root / "configs/trainers/APEX" / f"{config}.yaml"

    def run(out, *args):
        argv = ["--root", str(eurosat_root), "--seed", "1", "--trainer", "APEX", "--backbone", name, *args]
        argv += ["--dataset-config-file", str(repo_root / "configs/datasets/eurosat.yaml"), "--config-file", str(file)]
        argv += ["--output-dir", str(tmp_path / out), "MODEL.BACKBONE.PATH", str(tmp_path / "model.safetensors")]
        argv += ["DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"]
        assert train.main([*argv, "DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base"]) == 0
        return json.loads((tmp_path / out / "metrics.json").read_text())

    trained, again = run("run"), run("again", "--eval-only", "--model-dir", str(tmp_path / "run"))
    assert trained["backbone"] == name
    assert again["accuracy"] == trained["accuracy"]
    assert all(torch.isfinite(torch.tensor(epoch["loss"])) for epoch in trained["history"])
