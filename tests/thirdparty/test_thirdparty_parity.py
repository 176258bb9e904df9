"""Trainers in the style of other repositories, over `build_model`, agree with the golden vectors of the official ones.

Prompts inside the towers and prompts as arguments of plain towers are thereby the same computation: the project's own
methods agree with the same vectors.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from parity import Case, compare_trajectory
from thirdparty_code import FILES, drop_in

from clip import clip
from dassl.config import admit_foreign_keys, get_cfg_default
from dassl.engine import TRAINER_REGISTRY

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load`")

TRAINERS = {
    "CoOp": ("LearnedContext", "LEARNEDCONTEXT"),
    "CoCoOp": ("ConditionalContext", "LEARNEDCONTEXT"),
    "IVLP": ("BothTowers", "BOTHTOWERS"),
    "LP": ("BothTowers", "BOTHTOWERS"),
    "VPT": ("ImageTower", "IMAGETOWER"),
    "MaPLe": ("CoupledTowers", "COUPLEDTOWERS"),
}


def config(case, name, folder):
    """The effective settings of the manifest, as third-party code reads them."""
    entry, (trainer, node) = case.entry["baselines"][name], TRAINERS[name]
    cfg = get_cfg_default()
    admit_foreign_keys(cfg, trainer)
    cfg.merge_from_list(["TRAINER.NAME", trainer, "OUTPUT_DIR", str(folder), "MODEL.BACKBONE.NAME", "golden"])
    cfg.INPUT.SIZE = (case.spec["arch"]["image_size"],) * 2
    cfg.TEST.NO_TEST, cfg.USE_CUDA = True, False
    for key, value in entry["optim"].items():
        cfg.OPTIM[key] = tuple(value) if isinstance(value, list) else value
    cfg.TRAINER.setdefault(node, type(cfg)()).update(entry["trainer_cfg"])
    return cfg


def recorded(case, cfg, classnames, batches):
    """The trainer over given batches in their order, recording each step."""

    class Recorded(TRAINER_REGISTRY.get(cfg.TRAINER.NAME)):
        def build_data_loader(self):
            self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=list(classnames), train_x=[], test=[]))
            self.train_loader_x, self.train_loader_u, self.val_loader, self.test_loader = batches, None, None, []
            self.num_classes, self.num_source_domains = len(classnames), 0
            self.lab2cname = dict(enumerate(classnames))
            self.rows, self.grad0 = [], {}

        def forward_backward(self, batch):
            lr = self.get_current_lr()
            summary = super().forward_backward(batch)
            learned = {n: p for n, p in self.model.named_parameters() if p.grad is not None}
            if not self.rows:
                self.grad0 = {n: p.grad.clone() for n, p in learned.items()}
            grads = {n: float(p.grad.double().norm()) for n, p in learned.items()}
            norms = {n: float(p.detach().double().norm()) for n, p in self.model.named_parameters()}
            self.rows.append({"loss": summary["loss"], "lr": lr, "grad_norm": grads, "param_norm": norms})
            return summary

    return Recorded(cfg)


def check(case, name, folder):
    images, prefix = case.tensor("test_img"), f"{name}/init/"
    cfg = config(case, name, folder)
    trainer = recorded(case, cfg, case.spec["base"], case.batches())
    init = {key.removeprefix(prefix): case.tensor(key) for key in case.arrays if key.startswith(prefix)}
    assert init.keys() <= dict(trainer.model.named_parameters()).keys()
    trainer.model.load_state_dict(init, strict=False)
    case.compared |= {prefix + key for key in init}
    if f"{name}/tokenized_base" in case.arrays:
        case.compare(f"{name}/tokenized_base", trainer.model.tokenized_prompts)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        case.compare(f"{name}/eval_init_base/logits", trainer.model(images))
    trainer.train()
    compare_trajectory(case, trainer, f"{name}/")
    new = recorded(case, cfg, case.spec["new"], case.batches())
    new.load_model(str(folder), epoch=cfg.OPTIM.MAX_EPOCH)
    for subset, evaluated in (("base", trainer), ("new", new)):
        evaluated.set_model_mode("eval")
        with torch.no_grad():
            case.compare(f"{name}/eval_final_{subset}/logits", evaluated.model(images))
    case.report()
    left = [key for key in case.arrays if key.startswith(f"{name}/") and key not in case.compared]
    assert not left, f"held but not compared: {left}"


@pytest.mark.parametrize("name", TRAINERS)
def test_thirdparty_baseline(parity_dir, tmp_path, monkeypatch, name):
    drop_in(monkeypatch, FILES, "learned_context", "prompted_towers")
    # the golden runs kept everything in float32, as trainers with PREC fp32 do after building in half precision
    monkeypatch.setattr(clip, "convert_weights", lambda model: None)
    manifest = json.loads((parity_dir / "manifest.json").read_text())
    cases = [case["name"] for case in manifest["spec"]["cases"] if case["kind"] == "baselines"]
    assert cases
    for case in (Case(parity_dir, name) for name in cases):
        weights = tmp_path / f"{case.name}.pt"
        torch.save(case.state_dict(), weights)
        monkeypatch.setitem(clip._MODELS, "golden", str(weights))
        check(case, name, tmp_path / case.name)
