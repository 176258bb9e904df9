"""Defaults, merges and the errors that answer mistakes."""

import ast
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


# Types of values, None above all


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "OPTIM:\n  NAME: sgd\n  LR: 0.1\nTEST:\n  SPLIT: val\nOPTIM:\n  MAX_EPOCH: 3\n",
            "OPTIM stands twice, in lines 1 and 6",
        ),
        ("OPTIM:\n  LR: 0.1\n  LR: 0.2\n", "LR stands twice, in lines 2 and 3"),
        ("OPTIM: {LR: 0.1, MAX_EPOCH: 2}\n'OPTIM':\n  LR: 0.2\n", "OPTIM stands twice, in lines 1 and 2"),
        ("OPTIM: {LR: 0.1, LR: 0.2}\n", "LR stands twice"),
    ],
)
def test_a_key_that_stands_twice_in_a_file_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"some\.yaml.*{message}"):
        merge_file(get_cfg_default(), _yaml(tmp_path, text))


def test_merge_keys_of_yaml_may_be_overridden(tmp_path):
    cfg = get_cfg_default()
    text = "DATALOADER:\n  TRAIN_X: &x\n    BATCH_SIZE: 4\n    N_INS: 2\n  TRAIN_U:\n    <<: *x\n    BATCH_SIZE: 8\n"
    merge_file(cfg, _yaml(tmp_path, text))
    assert (cfg.DATALOADER.TRAIN_U.BATCH_SIZE, cfg.DATALOADER.TRAIN_U.N_INS) == (8, 2)


def _with_trainer(monkeypatch):
    """The defaults with the keys of a trainer that declares one of each kind."""
    nodes = {
        "MINE": CfgNode(
            {"CTX_INIT": "a photo of a", "WORDS": "", "N": 4, "R": 0.5, "FLAG": True, "KEYS": ("q",), "L": []}
        )
    }
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Mine", type("Mine", (), {"CONFIG": nodes}))
    cfg = get_cfg_default()
    declare_trainer_keys(cfg)
    return cfg


def _set(cfg, key, text, form, folder):
    """Set a key as an option, as a YAML value or as a quoted YAML value."""
    if form == "option":
        merge_opts(cfg, [key, text])
        return
    *nodes, leaf = key.split(".")
    lines = [f"{'  ' * depth}{node}:" for depth, node in enumerate(nodes)]
    quoted = f'"{text}"' if form == "quoted" else text
    merge_file(cfg, _yaml(folder, "\n".join([*lines, f"{'  ' * len(nodes)}{leaf}: {quoted}"]) + "\n"))


FORMS = ["option", "plain", "quoted"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("key", "empty"),
    [
        ("MINE.CTX_INIT", ""), ("MINE.WORDS", ""), ("MINE.L", []),
    ],
)  # fmt: skip
def test_none_is_nothing_where_there_may_be_nothing(monkeypatch, tmp_path, form, key, empty):
    cfg = _with_trainer(monkeypatch)
    _set(cfg, f"TRAINER.{key}", "None", form, tmp_path)
    assert cfg.TRAINER.MINE[key.split(".")[1]] == empty
    _set(cfg, "INPUT.TRANSFORMS", "None", form, tmp_path)
    assert cfg.INPUT.TRANSFORMS == ()


@pytest.mark.parametrize("form", [*FORMS, "null", "~"])
@pytest.mark.parametrize(
    "key",
    ["TRAINER.MINE.N", "TRAINER.MINE.R", "TRAINER.MINE.FLAG", "TRAINER.MINE.KEYS", "OPTIM.NAME", "OPTIM.LR", "USE_CUDA",
     "DATASET.NUM_SHOTS", "INPUT.SIZE", "INPUT.PIXEL_MEAN", "DATASET.SUBSAMPLE_CLASSES"],
)  # fmt: skip
def test_none_is_refused_by_key_and_value_where_it_has_no_meaning(monkeypatch, tmp_path, form, key):
    cfg = _with_trainer(monkeypatch)
    text, form = (form, "plain") if form in ("null", "~") else ("None", form)
    with pytest.raises(ValueError, match=rf"{key} is None, which has no meaning there"):
        _set(cfg, key, text, form, tmp_path)


def test_none_is_left_to_foreign_trainers(monkeypatch):
    cfg = _admitted(monkeypatch)
    cfg.TRAINER.THEIRS = CfgNode({"CTX_INIT": False})
    merge_opts(cfg, ["TRAINER.THEIRS.CTX_INIT", "None"])
    assert cfg.TRAINER.THEIRS.CTX_INIT is None


VALUES = [  # what the command line gives, and what it means for a default of each type; not named: refused
    ("1e-3", {"R": 0.001}), ("-2", {"N": -2, "R": -2.0}), ("0", {"N": 0, "R": 0.0}), ("2.0", {"R": 2.0}),
    ("1_000", {"N": 1000, "R": 1000.0}), ("0x10", {"N": 16, "R": 16.0}), ("1", {"N": 1, "R": 1.0}), ("nan", {}),
    ("True", {"FLAG": True}), ("False", {"FLAG": False}), ("true", {}), ("", {"WORDS": ""}), ("q", {}),
    ("['q', 'v']", {"KEYS": ("q", "v"), "L": ["q", "v"]}), ("('q',)", {"KEYS": ("q",), "L": ["q"]}),
    ("()", {"KEYS": (), "L": []}), ("'None'", {"WORDS": "None"}), ("\"it's\"", {"WORDS": "it's"}),
    ("it's", {}), ("'a' b", {}), ("a: b", {}), ("{'a': 1}", {}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "meaning"), VALUES)
def test_each_value_for_a_default_of_each_type(monkeypatch, text, meaning):
    for key in ("N", "R", "FLAG", "KEYS", "L", "WORDS"):
        cfg = _with_trainer(monkeypatch)
        if key in meaning or key == "WORDS":
            merge_opts(cfg, [f"TRAINER.MINE.{key}", text])
            expected = meaning.get(key, text)  # text is text, as it stands
            assert (cfg.TRAINER.MINE[key], type(cfg.TRAINER.MINE[key])) == (expected, type(expected))
        else:
            with pytest.raises(ValueError, match=rf"TRAINER\.MINE\.{key}"):
                merge_opts(cfg, [f"TRAINER.MINE.{key}", text])


def test_numbers_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"OPTIM\.LR is NaN"):
        merge_file(get_cfg_default(), _yaml(tmp_path, "OPTIM:\n  LR: .nan\n"))


@given(st.text(max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_text_is_taken_as_it_stands_or_as_the_literal_that_it_is(text):
    cfg = get_cfg_default()
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        literal = text
    merge_opts(cfg, ["DATASET.NAME", text])
    assert (literal if isinstance(literal, str) else "" if literal is None else text) == cfg.DATASET.NAME


FINITE = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(-(10**9), 10**9)  # beyond 2^53 a float does not hold them


@given(st.one_of(WHOLE, FINITE, st.booleans(), st.lists(WHOLE), st.none()))
@settings(max_examples=100, deadline=None)
def test_a_value_comes_back_or_is_refused_by_its_key(value):
    wanted = {"OPTIM.LR": (int, float), "OPTIM.MAX_EPOCH": (int,), "USE_CUDA": (bool,), "OPTIM.STEPSIZE": (list,)}
    for key, kinds in wanted.items():
        cfg = get_cfg_default()
        if type(value) in kinds:
            merge_opts(cfg, [key, repr(value)])
            node = cfg.OPTIM if key.startswith("OPTIM") else cfg
            assert node[key.split(".")[-1]] == (tuple(value) if isinstance(value, list) else value)
        else:
            with pytest.raises(ValueError, match=key.replace(".", r"\.")):
                merge_opts(cfg, [key, repr(value)])
