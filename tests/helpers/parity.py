"""Rebuilding golden cases from their manifest: weights, configuration, trainers without data sets, tolerances."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

import trainers  # noqa: F401  (registers the methods)
from clip.backbone import Backbone
from clip.loading import openai_backbone
from clip.precision import Precision
from dassl.config import declare_trainer_keys, get_cfg_default
from dassl.engine import TRAINER_REGISTRY

DISTANCES = ("diff_nn", "diff_avg", "alpha", "cosine_trained_vs_test")


class Case:
    """One case of a golden set: its specification, its arrays, and the largest deviation seen in each group."""

    def __init__(self, folder: Path, name: str):
        manifest = json.loads((folder / "manifest.json").read_text())
        self.name = name
        self.entry = manifest["cases"][name]
        self.spec = next(case for case in manifest["spec"]["cases"] if case["name"] == name)
        self.arrays = dict(np.load(folder / self.entry["file"]))
        self.sensitivity = self.entry["sensitivity_to_1e-6_relative_image_scale"]
        self.compared: set[str] = set()
        self.worst: dict[str, tuple[float, str]] = {}

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of the random CLIP of the case."""
        state = {}
        for item in self.entry["weights"]["entries"]:
            draw = np.random.RandomState(item["seed"]).standard_normal(int(np.prod(item["shape"])))
            value = (item["mean"] + item["std"] * draw).astype(np.float32).reshape(item["shape"])
            state[item["key"]] = torch.from_numpy(value)
        return state

    def backbone(self) -> Backbone:
        """The random CLIP of the case."""
        return openai_backbone(self.name, self.state_dict())

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def batches(self) -> list[dict]:
        """The training batches in order."""
        count = sum(key.startswith("train_img/") for key in self.arrays)
        return [{"img": self.tensor(f"train_img/{k}"), "label": self.tensor(f"train_label/{k}")} for k in range(count)]

    def tolerance(self, key: str) -> float:
        reference = np.abs(self.arrays[key]).max()
        after_training = key.endswith("/logits") and ("eval_final" in key or "eval_perturbed" in key)
        sensitivity = self.sensitivity.get(key, {}).get("max_abs", 0.0)
        absolute = 1e-6 if key.rsplit("/", 1)[-1] in DISTANCES else 0.0
        return max(10 * sensitivity, (1e-3 if after_training else 1e-4) * float(reference), absolute)

    def compare(self, key: str, value) -> None:
        """Assert that an array agrees with the stored one."""
        ours = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        golden = self.arrays[key]
        self.compared.add(key)
        ours = ours.reshape(golden.shape)
        if golden.dtype.kind in "iuU":
            assert (ours == golden).all(), f"{self.name}: {key} differs"
            return
        deviation, tolerance = float(np.abs(ours - golden).max()), self.tolerance(key)
        group = "/".join(part for part in key.split("/")[:2] if "." not in part)
        share = deviation / tolerance if tolerance else float(deviation > 0)
        if share >= self.worst.get(group, (-1.0, ""))[0]:
            self.worst[group] = (share, f"{deviation:.2e} of {tolerance:.2e} allowed, in {key}")
        assert deviation <= tolerance, f"{self.name}: {key} deviates by {deviation:.3e}, allowed are {tolerance:.3e}"

    def report(self) -> None:
        """Print the largest deviation of each group, as a share of what is allowed."""
        print(f"\n{self.name}: {len(self.compared)} arrays compared")
        for group, (share, text) in sorted(self.worst.items()):
            print(f"  {group:45s} {share:6.3f}  {text}")


def trainer_config(name: str, optim: dict, keys: dict, output_dir: Path, dataset: str = "Golden"):
    """A configuration from the effective settings that a manifest lists."""
    cfg = get_cfg_default()
    declare_trainer_keys(cfg)
    cfg.TRAINER.NAME, cfg.DATASET.NAME, cfg.OUTPUT_DIR, cfg.SEED = name, dataset, str(output_dir), 1
    cfg.MODEL.BACKBONE.NAME = "golden"
    cfg.TEST.NO_TEST = True
    for key, value in optim.items():
        cfg.OPTIM[key] = tuple(value) if isinstance(value, list) else value
    node = cfg.TRAINER[TRAINER_REGISTRY.get(name).config_node]
    for key, value in keys.items():
        node[key] = value
    return cfg


def make_trainer(
    cfg, backbone: Backbone, classnames: list[str], batches: list[dict], template: str = "", precision: str = "fp32"
):
    """The registered trainer over given batches in their order, recording each step's trajectory."""
    cls = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)

    class Recorded(cls):
        def build_data_loader(self):
            self.backbone = backbone
            self.precision = Precision(precision, self.device)
            self.dm = SimpleNamespace(
                dataset=SimpleNamespace(classnames=list(classnames), template=template, train_x=[], test=[])
            )
            self.train_loader_x, self.train_loader_u, self.val_loader, self.test_loader = batches, None, None, []
            self.num_classes, self.num_source_domains = len(classnames), 0
            self.lab2cname = dict(enumerate(classnames))
            self.rows, self.grad0 = [], {}

        def forward_backward(self, batch):
            lr = self.get_current_lr()
            summary = super().forward_backward(batch)
            params = {self.model.official_name(n): p for n, p in self.model.named_parameters()}
            grads = {n: p.grad for n, p in params.items() if p.grad is not None}
            if not self.rows:
                self.grad0 = {n: g.clone() for n, g in grads.items()}
            self.rows.append(
                {
                    "loss": summary["loss"].item(),
                    "lr": lr,
                    "grad_norm": {n: float(g.double().norm()) for n, g in grads.items()},
                    "param_norm": {n: float(p.detach().double().norm()) for n, p in params.items()},
                }
            )
            return summary

    return Recorded(cfg)


def compare_trajectory(case: Case, trainer, prefix: str = "") -> None:
    """Compare losses, learning rates, norms, first gradients and final values."""
    names = [str(name) for name in case.arrays[f"{prefix}traj/names"]]
    case.compared.add(f"{prefix}traj/names")
    for key in ("loss", "lr"):
        case.compare(f"{prefix}traj/{key}", [row[key] for row in trainer.rows])
    for key, absent in (("grad_norm", -1.0), ("param_norm", None)):
        case.compare(f"{prefix}traj/{key}", [[row[key].get(name, absent) for name in names] for row in trainer.rows])
    for name, gradient in trainer.grad0.items():
        case.compare(f"{prefix}traj/grad0/{name}", gradient)
    for name, value in trainer.model.state_dict().items():
        if f"{prefix}final/{name}" in case.arrays:
            case.compare(f"{prefix}final/{name}", value)


def set_learned(method, values: dict[str, Tensor]) -> None:
    """Overwrite some of a method's learned values, given under their official names."""
    method.load_state_dict({**method.state_dict(), **values})
