"""Agreement with the official code on golden vectors: the test of fidelity.

Reads everything (sizes, settings, names, seeds) from the manifest in `PARITY_DIR`; another set in the same format must
pass unchanged.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity import Case, compare_trajectory, make_trainer, set_learned, trainer_config

import datasets  # noqa: F401  (registers the data sets)
from dassl.data.datasets import DATASET_REGISTRY
from trainers.apex import MAX_WORDS
from trainers.zsclip import ensemble_features

INPUTS = ("train_img", "train_label", "test_img", "test_label")


def _names(parity_dir, kind):
    manifest = json.loads((parity_dir / "manifest.json").read_text())
    return [case["name"] for case in manifest["spec"]["cases"] if case["kind"] == kind]


def _perturbed(entry) -> dict:
    """The learned values that a case's perturbation recipe lists."""
    values = {}
    for item in entry["perturb"]:
        std = float(item["value"].split(",")[1].rstrip(")"))
        draw = np.random.RandomState(item["seed"]).standard_normal(item["shape"]) * std
        if item["value"].startswith("eye"):
            draw = draw + np.eye(item["shape"][0])
        values[item["name"]] = torch.from_numpy(draw.astype(np.float32))
    return values


@torch.no_grad()
def _apex_evaluation(method, images) -> dict:
    """Everything that the golden sets hold of one evaluation of APEX."""
    method.eval()
    transfer = {**method.distances(), **method.ensemble_weights()}
    trained, evaluated = (method.frozen_text_features(t) for t in (method.trained_tokens, method.tokens))
    return {
        "logits": method(images),
        "alpha": transfer["alpha"],
        "diff_nn": transfer["d_nn"],
        "diff_avg": transfer["d_avg"],
        "cosine_trained_vs_test": F.normalize(trained, dim=-1) @ F.normalize(evaluated, dim=-1).T,
        "zs_text_trained": trained,
        "zs_text_test": evaluated,
        "text_features_prompted": method.adapter_input(),
        "text_final_normed": F.normalize(method.text_features(), dim=-1),
        "image_frozen": method.frozen_image_features(images),
        "image_final_normed": F.normalize(method.image_features(images), dim=-1),
        "image_prompted": method.backbone.encode_image(images, method.image_prompts()),
    }


def _compare_evaluation(case, prefix, method):
    for key, value in _apex_evaluation(method, case.tensor("test_img")).items():
        if f"{prefix}/{key}" in case.arrays:
            case.compare(f"{prefix}/{key}", value)


def _check_apex(case, tmp_path):
    backbone, spec = case.backbone(), case.spec
    keys = {**case.entry["trainer_cfg"], "FROZEN_BRANCH": "official"}
    cfg = trainer_config("APEX", case.entry["cfg"], keys, tmp_path)
    trainer = make_trainer(cfg, backbone, spec["base"], case.batches())
    method = trainer.model
    started = {**method.state_dict()}
    init = {k.removeprefix("init/"): case.tensor(k) for k in case.arrays if k.startswith("init/")}
    words = keys["CTX_INIT"] and keys["N_CTX_TEXT"] <= MAX_WORDS
    certain = ["VPT_adapter_text_matrix", "VPT_adapter_text_bias", *(["prompt_learner.ctx"] if words else [])]
    for name in certain:  # the others are random
        case.compare(f"init/{name}", started[name])
    set_learned(method, init)
    case.compared |= {f"init/{name}" for name in init}
    case.compare("tokenized_base", method.tokens)
    method.train()
    case.compare("init_train_loss", [float(method.loss(b["img"], b["label"])[0].detach()) for b in case.batches()])
    _compare_evaluation(case, "eval_init_base", method)

    trainer.train()
    compare_trajectory(case, trainer)
    _compare_evaluation(case, "eval_final_base", method)

    for branch, suffix in (("official", ""), ("clip", "_cleanfrozen")):
        keys["FROZEN_BRANCH"] = branch
        cfg = trainer_config("APEX", case.entry["cfg"], keys, tmp_path / branch)
        new = make_trainer(cfg, backbone, spec["new"], case.batches())
        new.load_model(str(tmp_path), epoch=case.entry["epochs"])
        if branch == "official":
            case.compare("tokenized_new", new.model.tokens)
        _compare_evaluation(case, f"eval_final_new{suffix}", new.model)
        learned = new.model.state_dict()
        set_learned(new.model, {k: v for k, v in _perturbed(case.entry).items() if k in learned})
        _compare_evaluation(case, f"eval_perturbed_new{suffix}", new.model)
    left = [k for k in case.arrays if k not in case.compared and not k.startswith(INPUTS)]
    case.report()
    assert not left, f"held but not compared: {left}"


def test_apex(parity_dir, tmp_path):
    names = _names(parity_dir, "apex")
    assert names
    for name in names:
        _check_apex(Case(parity_dir, name), tmp_path / name)


def _baseline_cases(parity_dir):
    return [Case(parity_dir, name) for name in _names(parity_dir, "baselines")]


@pytest.mark.parametrize("name", ["ZeroshotCLIP", "ZeroshotCLIP2"])
def test_zero_shot(parity_dir, tmp_path, name):
    for case in _baseline_cases(parity_dir):
        backbone, dataset = case.backbone(), case.entry["dataset_name_for_templates"]
        template = DATASET_REGISTRY.get(dataset).template
        for subset in ("base", "new"):
            cfg = trainer_config(name, {}, {"PREC": "fp32"}, tmp_path, dataset)
            # building it twice must not change the ensemble
            trainer = [make_trainer(cfg, backbone, case.spec[subset], [], template) for _ in range(2)][-1]
            trainer.set_model_mode("eval")
            with torch.no_grad():
                case.compare(f"{name}/{subset}/logits", trainer.model_inference(case.tensor("test_img")))
            features = ensemble_features(backbone, trainer.templates(), case.spec[subset])
            case.compare(f"{name}/{subset}/text_features", features)
        case.report()
        assert not [k for k in case.arrays if k.startswith(f"{name}/") and k not in case.compared]


def _check_baseline(case, name, trainer_name, tmp_path):
    """A trained baseline: tokens, initial logits, the whole trajectory, logits on base and new classes."""
    backbone, entry = case.backbone(), case.entry["baselines"][name]
    images = case.tensor("test_img")
    cfg = trainer_config(trainer_name, entry["optim"], entry["trainer_cfg"], tmp_path)
    trainer = make_trainer(cfg, backbone, case.spec["base"], case.batches())
    init = {k.removeprefix(f"{name}/init/"): case.tensor(k) for k in case.arrays if k.startswith(f"{name}/init/")}
    started = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    cfg.SEED += 1
    for key, value in make_trainer(cfg, backbone, case.spec["base"], []).model.state_dict().items():
        if torch.equal(value, started[key]):  # does not start random
            case.compare(f"{name}/init/{key}", value)
    set_learned(trainer.model, init)
    case.compared |= {f"{name}/init/{k}" for k in init if k in started}
    if f"{name}/tokenized_base" in case.arrays:
        case.compare(f"{name}/tokenized_base", trainer.model.context.tokens)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        case.compare(f"{name}/eval_init_base/logits", trainer.model(images))
    trainer.train()
    compare_trajectory(case, trainer, f"{name}/")
    evaluated_on = [("base", trainer)]
    if f"{name}/eval_final_new/logits" in case.arrays:
        new = make_trainer(cfg, backbone, case.spec["new"], case.batches())
        new.load_model(str(tmp_path), epoch=entry["optim"]["MAX_EPOCH"])
        evaluated_on.append(("new", new))
    for subset, evaluated in evaluated_on:
        evaluated.set_model_mode("eval")
        with torch.no_grad():
            case.compare(f"{name}/eval_final_{subset}/logits", evaluated.model(images))
    case.report()
    left = [k for k in case.arrays if k.startswith(f"{name}/") and k not in case.compared]
    assert not left, f"held but not compared: {left}"


@pytest.mark.parametrize(
    ("name", "trainer_name"),
    [("CoOp", "CoOp"), ("CoCoOp", "CoCoOp"), ("VPT", "VPT"), ("IVLP", "IVLP"), ("LP", "IVLP"), ("MaPLe", "MaPLe")],
)
def test_baseline(parity_dir, tmp_path, name, trainer_name):
    cases = [case for case in _baseline_cases(parity_dir) if name in case.entry["baselines"]]
    if not cases:
        pytest.skip(f"this golden set holds no {name}")
    for case in cases:
        _check_baseline(case, name, trainer_name, tmp_path / case.name)
