"""Defaults, merges and the errors that answer mistakes."""

import sys
from types import SimpleNamespace

import pytest
from yacs.config import CfgNode

from dassl.config import (
    admit_foreign_keys,
    clean_cfg,
    declare_trainer_keys,
    get_cfg_default,
    merge_file,
    merge_opts,
)
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.record import config_hash


def test_defaults_are_a_copy_of_a_yacs_tree():
    cfg = get_cfg_default()
    assert isinstance(cfg, CfgNode)
    assert not cfg.is_frozen()
    cfg.OPTIM.LR = 1.0
    cfg.TRAINER.MINE = CfgNode({"N_CTX": 4})
    assert get_cfg_default().OPTIM.LR == 0.0003
    assert "MINE" not in get_cfg_default().TRAINER
    assert (cfg.DATASET.SUBSAMPLE_CLASSES, cfg.INPUT.SIZE, cfg.SEED) == ("all", (224, 224), -1)


def test_clean_cfg_keeps_one_trainer():
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 16})
    cfg.TRAINER.MAPLE = CfgNode({"N_CTX": 2})
    clean_cfg(cfg, "CoOp")
    assert sorted(cfg.TRAINER) == ["COOP", "NAME"]


def test_trainers_declare_their_keys(monkeypatch):
    nodes = {"MINE": CfgNode({"N_CTX": 4, "PREC": "fp16"})}
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Mine", type("Mine", (), {"CONFIG": nodes}))
    cfg = get_cfg_default()
    cfg.TRAINER.MINE = CfgNode({"N_CTX": 9})
    declare_trainer_keys(cfg)
    declare_trainer_keys(cfg)
    assert cfg.TRAINER.MINE == {"N_CTX": 9, "PREC": "fp16"}
    merge_opts(cfg, ["TRAINER.MINE.PREC", "fp32"])
    assert nodes["MINE"].PREC == "fp16"


def test_whole_numbers_are_floats_and_names_too(tmp_path):
    cfg = get_cfg_default()
    merge_opts(cfg, ["OPTIM.LR", "1", "OUTPUT_DIR", "123", "DATASET.ROOT", "'a b'", "DATASET.NAME", "True"])
    assert (cfg.OPTIM.LR, type(cfg.OPTIM.LR)) == (1.0, float)
    assert (cfg.OUTPUT_DIR, cfg.DATASET.ROOT, cfg.DATASET.NAME) == ("123", "a b", "True")
    merge_file(cfg, _yaml(tmp_path, "OPTIM:\n  LR: 2\n"))
    assert (cfg.OPTIM.LR, type(cfg.OPTIM.LR)) == (2.0, float)
    with pytest.raises(ValueError, match=r"OPTIM.MAX_EPOCH: Type mismatch"):
        merge_opts(cfg, ["OPTIM.MAX_EPOCH", "1.5"])
    with pytest.raises(ValueError, match="--eval-only stands among the KEY VALUE pairs"):
        merge_opts(cfg, ["--eval-only"])


def test_other_trainers_leave_the_configuration_hash_alone(monkeypatch):
    """Their nodes and keys come and go without making a finished run another one; its own do not."""
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Base", type("Base", (), {"CONFIG": {"BASE": CfgNode({"W": 1.0})}}))
    base = TRAINER_REGISTRY.get("Base")
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Own", type("Own", (base,), {"CONFIG": {"OWN": CfgNode({"A": 1})}}))
    cfg = get_cfg_default()
    declare_trainer_keys(cfg)
    cfg.TRAINER.NAME = "Own"
    before = config_hash(cfg)
    other = type("Other", (), {"CONFIG": {"OTHER": CfgNode({"B": 1})}})
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Other", other)
    declare_trainer_keys(cfg)
    merge_opts(cfg, ["TRAINER.OTHER.B", "2", "TRAIN.PRINT_FREQ", "7"])
    assert config_hash(cfg) == before
    for key, value in (("TRAINER.OWN.A", "2"), ("TRAINER.BASE.W", "2"), ("OPTIM.LR", "1")):
        changed = cfg.clone()
        merge_opts(changed, [key, value])
        assert config_hash(changed) != before


def _yaml(folder, text):
    path = folder / "some.yaml"
    path.write_text(text)
    return path


def test_merge_file_follows_yacs(tmp_path):
    cfg = get_cfg_default()
    text = 'INPUT:\n  SIZE: (32, 48)\n  TRANSFORMS: ["normalize"]\nOPTIM:\n  WARMUP_CONS_LR: 1e-4\n  STEPSIZE: [3]\n'
    merge_file(cfg, _yaml(tmp_path, text))
    assert cfg.INPUT.SIZE == (32, 48)
    assert cfg.INPUT.TRANSFORMS == ("normalize",)
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-4
    assert cfg.OPTIM.STEPSIZE == (3,)
    merge_file(cfg, str(_yaml(tmp_path, "")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM:\n  LRR: 0.1\n", r'some\.yaml: unknown configuration key "OPTIM.LRR": do you mean \[.*OPTIM\.LR'),
        ("OPTIMM:\n  LR: 0.1\n", r'some\.yaml: unknown configuration key "OPTIMM.LR"'),
        ("OPTIM:\n  LR: high\n", r"some\.yaml: .*OPTIM\.LR"),
        ("OPTIM: 3\n", r"(?s)some\.yaml: .*config key: OPTIM"),
        ("SEED:\n  A: 3\n", r"some\.yaml: .*SEED"),
        ("OPTIM: [\n", r"some\.yaml is no configuration file"),
        ("just words\n", r"some\.yaml is no configuration file"),
    ],
)
def test_merge_file_names_the_mistake(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        merge_file(get_cfg_default(), _yaml(tmp_path, text))


def test_merge_file_names_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        merge_file(get_cfg_default(), tmp_path / "none.yaml")


def test_merge_opts():
    cfg = get_cfg_default()
    merge_opts(cfg, ["OPTIM.MAX_EPOCH", "7", "DATASET.SUBSAMPLE_CLASSES", "new", "OPTIM.LR", "0.5"])
    assert (cfg.OPTIM.MAX_EPOCH, cfg.DATASET.SUBSAMPLE_CLASSES, cfg.OPTIM.LR) == (7, "new", 0.5)
    merge_opts(cfg, [])
    with pytest.raises(ValueError, match=r'"OPTIM.MAX_EPOCHS": do you mean \[.OPTIM\.MAX_EPOCH'):
        merge_opts(cfg, ["OPTIM.MAX_EPOCHS", "7"])
    with pytest.raises(ValueError, match=r"OPTIM\.LR: .*float"):
        merge_opts(cfg, ["OPTIM.LR", "fast"])
    with pytest.raises(ValueError, match="has no partner"):
        merge_opts(cfg, ["OPTIM.LR"])


def test_frozen_configuration_takes_items():
    cfg = get_cfg_default()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.OPTIM.LR = 1.0
    cfg.OPTIM["LR"] = 1.0
    assert cfg.OPTIM.LR == 1.0


class _Foreign:
    """A trainer class as code written for Dassl has it: it declares nothing."""


def _admitted(monkeypatch, module=None):
    if module is not None:
        monkeypatch.setitem(sys.modules, "foreign", module)
        monkeypatch.setattr(_Foreign, "__module__", "foreign")
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Foreign", _Foreign)
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 16, "CTX_INIT": ""})
    admit_foreign_keys(cfg, "Foreign")
    return cfg


def test_keys_of_a_trainer_that_declares_nothing(monkeypatch, tmp_path, capsys):
    cfg = _admitted(monkeypatch)
    text = "TRAINER:\n  MINE: {N_CTX: 4, LR: 1e-4, WORDS: a photo of a}\nLOSS: {T: 1}\nOPTIM: {LR_EXP: 2.0, LR: 0.5}\n"
    with pytest.raises(ValueError, match=r"OPTIM\.LR"):  # known keys keep their type
        merge_file(cfg, _yaml(tmp_path, text.replace("LR: 0.5", "LR: x")))
    capsys.readouterr()
    cfg = _admitted(monkeypatch)
    merge_file(cfg, _yaml(tmp_path, text))
    assert cfg.TRAINER.MINE == {"N_CTX": 4, "LR": 1e-4, "WORDS": "a photo of a"}
    assert (cfg.LOSS.T, cfg.OPTIM.LR_EXP, cfg.OPTIM.LR) == (1, 2.0, 0.5)
    assert "no default for TRAINER.MINE.N_CTX, TRAINER.MINE.LR, " in capsys.readouterr().out
    merge_opts(cfg, ["TRAINER.COOP.CTX_INIT", "True", "TRAINER.MINE.N_CTX", "8"])
    merge_opts(cfg, ["TRAINER.NEW.PREC", "fp32", "DEVICE", "0"])
    assert (cfg.TRAINER.COOP.CTX_INIT, cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.MINE.N_CTX) == (True, 16, 8)
    assert (cfg.TRAINER.NEW.PREC, cfg.DEVICE) == ("fp32", 0)
    with pytest.raises(ValueError, match=r"OPTIM\.LR\.X"):
        merge_opts(cfg, ["OPTIM.LR.X", "1"])
    merge_opts(cfg.clone(), ["TRAINER.NEWER.PREC", "fp32"])


def test_a_foreign_module_extends_the_configuration(monkeypatch):
    def extend_cfg(cfg):
        cfg.TRAINER.MINE = CfgNode({"N_CTX": 4})
        cfg.LOSS = CfgNode({"T": 1.0})

    cfg = _admitted(monkeypatch, SimpleNamespace(extend_cfg=extend_cfg))
    merge_opts(cfg, ["TRAINER.MINE.N_CTX", "8", "LOSS.T", "2.0"])
    assert (cfg.TRAINER.MINE.N_CTX, cfg.LOSS.T) == (8, 2.0)
    with pytest.raises(ValueError, match=r"do you mean \['TRAINER\.MINE\.N_CTX'"):
        merge_opts(cfg, ["TRAINER.MINE.N_CTXX", "8"])


def test_own_trainers_stay_strict(monkeypatch):
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Mine", type("Mine", (), {"CONFIG": {}}))
    cfg = get_cfg_default()
    admit_foreign_keys(cfg, "Mine")
    with pytest.raises(ValueError, match="unknown configuration key"):
        merge_opts(cfg, ["TRAINER.MINE.N_CTX", "8"])
    with pytest.raises(ValueError, match=r'unknown trainer "Mien": do you mean \[.*Mine'):
        admit_foreign_keys(cfg, "Mien")


def test_aliases_of_aliases_are_refused(tmp_path):
    """Forty lines that stand for 3^40 values."""
    lines = ["a: &a0 {x: 1}", *(f"b{i}: &a{i + 1} {{p: *a{i}, q: *a{i}, r: *a{i}}}" for i in range(40))]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"laughs\.yaml is no configuration file: it holds more than 100000 values"):
        merge_file(get_cfg_default(), str(tmp_path / "laughs.yaml"))
