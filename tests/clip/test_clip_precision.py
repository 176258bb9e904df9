"""The methods in every precision on every kind of backbone: one step, evaluation and a checkpoint, against float32.

float16 is computed in earnest, although runs on a CPU replace it by faster formats.
"""

from functools import lru_cache

import openclip_models as reduced
import pytest
import torch
from clip_models import RESNET, VIT, random_state
from parity import make_trainer, trainer_config
from small_methods import TWO_OF_THREE

import trainers  # noqa: F401  (registers the methods)
from clip import openclip, precision
from clip.backbone import Backbone
from clip.clip import tokenize
from clip.loading import openai_backbone
from clip.precision import CPU, Precision

CLASSES = ["tabby cat", "sushi", "golden_retriever"]
KINDS = ["OpenAI ViT", "OpenAI ResNet", *reduced.CONFIGS]
VISUAL, SLOTLESS = ("VPT", "IVLP", "MaPLe", "APEX"), ("OpenAI ResNet", "reduced-ResNet", "reduced-ConvNeXt")
PAIRS = [(kind, method) for kind in KINDS for method in TWO_OF_THREE if kind not in SLOTLESS or method not in VISUAL]
# precision -> how far cosines may be off, and how much the direction of a gradient (1 - its cosine with float32's)
TOLERANCES = {"bf16": (2e-2, 1e-2), "fp16": (4e-3, 1e-3), "amp": (4e-3, 1e-3)}
WEIGHTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "amp": torch.float16}
SCALE = 256.0  # of the loss: small enough for these models' first step


def _backbone(name: str) -> Backbone:
    if name.startswith("OpenAI"):
        return openai_backbone(name, random_state(RESNET if "ResNet" in name else VIT))
    read = (reduced.siglip_tokenize, 1) if "SigLIP" in name else (tokenize, None)
    return openclip.backbone_of(name, reduced.random_model(name), reduced.CONFIGS[name]["embed_dim"], *read, {})


@lru_cache(maxsize=1)
def _in_each_precision(name: str) -> dict[str, Backbone]:
    """The same weights in each precision."""
    return {mode: Precision(mode, CPU).prepare(_backbone(name)) for mode in ("fp32", *TOLERANCES)}


def _trainer(backbone, method, mode, folder):
    optim = {"NAME": "sgd", "LR": 0.01, "MAX_EPOCH": 1}
    cfg = trainer_config(method, optim, {"PREC": mode, **TWO_OF_THREE[method]}, folder)
    size, generator = backbone.image_size, torch.Generator().manual_seed(0)
    batch = {"img": torch.randn(3, 3, size, size, generator=generator), "label": torch.arange(3)}
    trainer = make_trainer(cfg, backbone, CLASSES, [batch], precision=mode)
    if trainer.precision.scaler.is_enabled():
        trainer.precision.scaler = torch.amp.GradScaler(CPU.type, init_scale=SCALE)
    return trainer


@torch.no_grad()
def _cosines(trainer):
    trainer.set_model_mode("eval")
    return trainer.model_inference(trainer.train_loader_x[0]["img"]) / trainer.backbone.logit_scale.float()


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_methods_in_every_precision(name, method, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_ON_CPU", {})
    backbones = _in_each_precision(name)
    runs = {mode: _trainer(backbone, method, mode, tmp_path / mode) for mode, backbone in backbones.items()}
    before = {mode: _cosines(trainer) for mode, trainer in runs.items()}
    for trainer in runs.values():
        if trainer.get_model_names():
            trainer.train()
    whole = runs["fp32"]
    expected = _cosines(whole)
    for mode, (cosine, direction) in TOLERANCES.items():
        trainer, after = runs[mode], _cosines(runs[mode])
        assert next(trainer.backbone.model.visual.parameters()).dtype in (WEIGHTS[mode], torch.float32)
        assert WEIGHTS[mode] in {p.dtype for p in trainer.backbone.model.visual.parameters()}
        for ours, theirs in ((before[mode], before["fp32"]), (after, expected)):
            assert ours.dtype == torch.float32
            assert (ours - theirs).abs().max() < cosine, mode
        for name, gradient in whole.grad0.items():
            agreement = torch.cosine_similarity(trainer.grad0[name].flatten(), gradient.flatten(), dim=0)
            assert agreement > 1 - direction, (mode, name)
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
        again = _trainer(backbones[mode], method, mode, tmp_path / "again")
        again.load_model(str(tmp_path / mode))
        assert torch.equal(_cosines(again), after)
    assert torch.equal(expected, before["fp32"]) == (not whole.grad0)
