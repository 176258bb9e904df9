"""A method of a user that was written for the former names runs, and is told the present ones."""

import importlib
import subprocess
import sys

import pytest
import torch
from small_methods import BASE, small_vit

import trainers  # noqa: F401 - lets the former modules be found
from adaptation import former_names
from adaptation.method import CONTEXT_NAMES, IMAGE_PROMPT_NAMES, translated
from adaptation.prompts import prompt_name
from trainers.vpt import VPTMethod

OLD = """
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.backbone import Backbone
from clip.precision import full, whole
from dassl.engine import TRAINER_REGISTRY
from trainers.base import MethodTrainer
from trainers.method import Method
from trainers.prompts import spoken
from trainers.templates import template_of
from trainers.zsclip import ZeroshotMethod


class OldGainMethod(ZeroshotMethod):
    names = ((r"gain\\.(\\w+)", r"theirs.\\1"),)

    def __init__(self, backbone, classnames, template):
        super().__init__(backbone, [spoken(name) for name in classnames], [template])
        self.gain = nn.ParameterDict({"all": nn.Parameter(torch.ones(backbone.embed_dim))})
        self.penalty = 0.1

    def loss(self, images, labels):
        loss, summary = super().loss(images, labels)
        return loss + self.penalty * (self.gain["all"] - 1).square().mean(), summary

    def image_features(self, images: Tensor) -> Tensor:
        with whole(images):
            return self.once("gain", lambda: full(self.gain["all"])) * super().image_features(images)


@TRAINER_REGISTRY.register()
class OldGain(MethodTrainer):
    node = "OLDGAIN"
    registered = "old_gain"
    serves = "part"
    recipe = 3
    CONFIG = {"OLDGAIN": CfgNode({"PREC": "fp32"})}

    def build_method(self, backbone: Backbone, classnames: list) -> Method:
        return OldGainMethod(backbone, classnames, template_of(self.dm.dataset))
"""
RUN = """
import sys, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import train
    import old_gain
    status = train.main(sys.argv[1:])
    print(*(str(w.message) for w in said if "next release" in str(w.message)), sep="\\n")
    print(old_gain.OldGain.class_transfer(None), old_gain.OldGain.code_version)
sys.exit(status)
"""


def test_a_method_by_former_names_is_trained(tmp_path, repo_root, eurosat_root):
    (tmp_path / "old_gain.py").write_text(OLD)
    words = ["--root", str(eurosat_root), "--seed", "1", "--trainer", "OldGain", "--output-dir", str(tmp_path / "out")]
    words += ["--dataset-config-file", "configs/datasets/eurosat.yaml", "--backbone", "tiny-ViT"]
    words += ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0"]
    words += ["DATALOADER.TRAIN_X.BATCH_SIZE", "4"]
    environment = {"PYTHONPATH": f"{repo_root}:{tmp_path}", "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, *words]
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for former, now in {
        "trainers.base": "adaptation.trainer",
        "trainers.method": "adaptation.method",
        "trainers.prompts": "adaptation.prompts",
        "clip.precision.whole": "clip.precision.autocast_disabled",
        "OldGain.registered": "checkpoint_dir",
        "OldGain.serves": "the class method class_transfer(cfg)",
        "OldGainMethod.names": "the table checkpoint_names",
    }.items():
        assert f"{former} goes with the next release: write {now}" in done.stdout
    assert "subset 3" in done.stdout
    checkpoint = torch.load(tmp_path / "out" / "old_gain" / "model.pth.tar-1", weights_only=True)
    assert list(checkpoint["state_dict"]) == ["theirs.all"]
    assert not torch.equal(checkpoint["state_dict"]["theirs.all"], torch.ones(128))


@pytest.mark.parametrize("former", former_names.MODULES)
def test_former_modules(former):
    sys.modules.pop(former, None)
    with pytest.warns(DeprecationWarning, match=f"{former} goes with the next release"):
        module = importlib.import_module(former)
    now = importlib.import_module(former_names.MODULES[former])
    own = {name for name in vars(now) if not name.startswith("_") and not name.endswith("_NAMES")}
    assert all(getattr(module, name) is getattr(now, name) for name in own)
    if former == "trainers.prompts":
        assert module.spoken is prompt_name


def test_tables_in_their_former_shape_say_the_same():
    backbone = small_vit()
    method = VPTMethod(backbone, BASE, n=2, depth=3)
    for name, _ in method.named_parameters():
        found = [
            former_names.re.sub(pattern, official, name)
            for pattern, official in former_names.patterns({**IMAGE_PROMPT_NAMES, **CONTEXT_NAMES})
            if former_names.re.fullmatch(pattern, name)
        ]
        assert found[0] == translated(name, IMAGE_PROMPT_NAMES) == method.official_name(name)
