"""Mistakes of somebody who writes a method: each is answered by a sentence that names file and line."""

import importlib.util
import re
import sys

import pytest

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.authoring import place_of

GOOD = '''"""A method."""
import torch
from torch import nn
from yacs.config import CfgNode
from adaptation.method import Method
from adaptation.trainer import MethodTrainer
from adaptation.templates import fill
from dassl.engine import TRAINER_REGISTRY


class GainMethod(Method):
    def __init__(self, backbone, classnames, start):
        super().__init__(backbone, classnames)
        self.gain = nn.Parameter(torch.full((backbone.embed_dim,), start))
        self.register_buffer("t", backbone.encode_text(backbone.tokenize(fill("a {}.", classnames))), persistent=False)

    def text_features(self):
        return self.t

    def image_features(self, images):
        return self.gain * self.backbone.encode_image(images)


@TRAINER_REGISTRY.register(force=True)
class Gain(MethodTrainer):
    CONFIG = {"GAIN": CfgNode({"START": 1.0, "PREC": "fp32"})}

    def build_method(self, backbone, classnames):
        return GainMethod(backbone, classnames, self.settings.START)
'''


@pytest.fixture
def gain(tmp_path, drawn_root, monkeypatch, capsys):
    """Train the method above with changes in its text; gives exit status and what was said."""
    monkeypatch.setattr(TRAINER_REGISTRY, "_objects", dict(TRAINER_REGISTRY._objects))

    def run(changes: dict[str, str], *opts: str) -> tuple[int, str]:
        text = GOOD
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        folder = tmp_path / "trainers"
        folder.mkdir(exist_ok=True)
        (folder / "gain.py").write_text(text)
        spec = importlib.util.spec_from_file_location("gain_of_a_test", folder / "gain.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "gain_of_a_test", module)
        spec.loader.exec_module(module)
        run.lines = text.splitlines()
        line = ["--trainer", "gain", "--dataset-config-file", "drawn_easy", "--root", str(drawn_root), "--seed", "1"]
        line += ["--backbone", "tiny-ViT", "--output-dir", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0"]
        line += ["DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "20"]
        status = train.main([*line, *opts])
        said = capsys.readouterr()
        return status, said.err + said.out

    return run


def _line_of(lines, beginning: str) -> int:
    return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(beginning))


def test_the_method_without_a_mistake_trains(gain):
    status, said = gain({})
    assert status == 0
    assert "no gradient" not in said


MISTAKES = {
    "no keys": ({'    CONFIG = {"GAIN": CfgNode({"START": 1.0, "PREC": "fp32"})}\n': ""}, "class Gain(",
                "Gain declares no keys"),
    "no precision": ({', "PREC": "fp32"': ""}, "class Gain(", 'CONFIG["GAIN"] of Gain has no PREC'),
    "no builder": ({"def build_method(": "def make_method("}, "class Gain(", "Gain has no build_method"),
    "no method": ({"        return GainMethod(backbone": "        GainMethod(backbone"}, "def build_method",
                  "build_method of Gain returns NoneType, not a Method"),
    "another key": ({"self.settings.START": "self.settings.STRAT"}, "return GainMethod", "no key STRAT"),
    "another node": ({"self.settings.START": "self.cfg.TRAINER.GIAN.START"}, "return GainMethod", "no key GIAN"),
    "no init of the method": ({"        super().__init__(backbone, classnames)\n": ""}, "self.gain = nn.Parameter",
                              "has to call super().__init__(backbone, classnames) first"),
    "no init of the module either": (
        {"        super().__init__(backbone, classnames)\n": "        nn.Module.__init__(self)\n"}, "def __init__",
        "GainMethod.__init__ does not call super().__init__(backbone, classnames)"),
    "no init of the trainer": (
        {"    def build_method(": "    def __init__(self, cfg):\n        self.mine = 1\n\n    def build_method("},
        "def __init__(self, cfg)", "Gain.__init__ does not call super().__init__(cfg)"),
    "a tensor": ({"nn.Parameter(torch.full((backbone.embed_dim,), start))": "torch.full((backbone.embed_dim,), start)"},
                 "class GainMethod(", "GainMethod has nothing to learn"),
    "a list": ({"        self.gain = ": "        self.more = [nn.Linear(2, 2)]\n        self.gain = "},
               "self.more = [", "self.more of GainMethod is a list with parameters that PyTorch does not see"),
    "a dictionary": ({"self.gain = nn.Parameter(": "self.gain = 1.0\n        self.all = dict(a=nn.Parameter(",
                      "start))\n": "start)))\n"}, "self.all = dict(", "self.all of GainMethod is a dict"),
    "image features": ({"return self.gain * self.backbone.encode_image(images)":
                        "return (self.gain * self.backbone.encode_image(images))[:, :8]"}, "def image_features",
                       "image_features returns (20, 8), but must return (B, E), here (20, 128)"),
    "text features": ({"return self.t\n": "return self.t.T\n"}, "def text_features",
                      "text_features returns (128, 20), but must return (C, E), here (20, 128)"),
    "text features missing": ({"    def text_features(self):\n        return self.t\n": "",
                               "    def image_features(self, images):\n"
                               "        return self.gain * self.backbone.encode_image(images)\n": ""},
                              "class GainMethod(", "GainMethod has no text_features(self)"),
    "loss of each image": ({"    def text_features": "    def extra_loss(self, images, z, t, logits):\n"
                            "        return logits.mean(dim=1)\n\n    def text_features"}, "def extra_loss",
                           "extra_loss makes a loss of shape (20,), but must make a scalar"),
    "loss alone": ({"    def text_features": "    def loss(self, images, labels):\n"
                    "        return self(images).mean()\n\n    def text_features"}, "def loss",
                   "loss returns Tensor, but must return the loss and a dictionary"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_file_and_line(gain, name):
    changes, beginning, expected = MISTAKES[name]
    status, said = gain(changes)
    assert status == 2, said
    assert expected in said
    assert re.search(rf"trainers/gain\.py, line {_line_of(gain.lines, beginning)}: ", said), said
    assert "Traceback" not in said


def test_a_parameter_without_a_gradient_is_named(gain):
    status, said = gain({"        self.gain = ": "        self.idle = nn.Linear(2, 2)\n        self.gain = "})
    assert status == 0
    line = _line_of(gain.lines, "self.idle")
    for name in ("idle.weight", "idle.bias"):
        assert f"trainers/gain.py, line {line}: {name} has received no gradient" in said


def test_another_failure_of_the_first_step_stays_what_it_is(gain):
    with pytest.raises(RuntimeError, match="my own"):
        gain({"        return self.t\n": '        raise RuntimeError("my own")\n'})


def test_places():
    assert place_of(train.main).endswith(f"train.py, line {train.main.__wrapped__.__code__.co_firstlineno + 1}")
    assert place_of(len) == "len"
