"""In what two runs differ: one place says it, with a reason for everything that it ignores."""

import re
from pathlib import Path

import pytest

from dassl.config import get_cfg_default
from dassl.engine import comparison
from dassl.engine.comparison import (
    FILLED,
    NO_EFFECT,
    OF_A_DATA_SET,
    OF_A_SEED,
    differences,
    flatten,
    run_settings,
    to_dict,
)

LISTS = [name for name in vars(comparison) if name == "NO_EFFECT" or name.startswith("OF_")]


@pytest.mark.parametrize("name", LISTS)
def test_what_is_ignored_has_a_reason_and_exists(name):
    known = flatten(to_dict(get_cfg_default()))
    for key, reason in getattr(comparison, name).items():
        assert reason
        assert not reason[0].isupper()
        if key.endswith("."):
            assert any(other.startswith(key) for other in known), key
        elif key.isupper() and not key.startswith("DATASET."):  # data sets declare some of theirs
            node = get_cfg_default()
            for part in key.split("."):
                assert part in node, key
                node = node[part]


def test_differences_name_key_and_values():
    old = {"OPTIM": {"LR": 0.1, "NAME": "sgd"}, "SEED": 1, "OUTPUT_DIR": "a", "TRAINER": {"OLD": {"X": 1}}}
    new = {"OPTIM": {"LR": 0.2, "NAME": "sgd"}, "SEED": 2, "OUTPUT_DIR": "b", "TRAINER": {"NEW": {"X": 2}}}
    assert [str(one) for one in differences(old, new)] == ["OPTIM.LR 0.1 -> 0.2", "SEED 1 -> 2"]
    assert [one.key for one in differences(old, new, OF_A_SEED)] == ["OPTIM.LR"]
    assert differences(old, new, ["OPTIM.", "SEED"]) == []


def test_what_a_backbone_fills_in_is_no_difference_on_one_side_alone():
    asked, resolved = {"INPUT": {"SIZE": [224, 224]}}, {"INPUT": {"SIZE": [32, 32]}}
    defaults = {key: [224, 224] for key in FILLED}
    assert differences(resolved, asked, defaults=defaults) == []
    assert len(differences(asked, resolved, defaults=defaults)) == 1


def test_settings_of_old_and_new_records():
    config = {"OPTIM": {"LR": 0.1}, "MODEL": {"BACKBONE": {"PATH": "a.pt"}}, "TEST": {"FINAL_MODEL": "last_step"}}
    old = {"config": config, "epoch": 3}
    assert run_settings(old)["MODEL.BACKBONE.PATH"] == "a.pt"
    new = run_settings({**old, "backbone_digest": "ab" * 32, "test_images_hash": "cd" * 32, "full_split_hash": None})
    assert new == {
        "OPTIM.LR": 0.1,
        "TEST.FINAL_MODEL": "last_step",
        "epoch": 3,
        "support": "balanced",
        "label noise": "none",
        "weights": "ab" * 6,
        "test images": "cd" * 6,
    }
    assert run_settings({"accuracy": 3.0}) == {}


def test_disagreements_say_who_has_which_value():
    runs = [(1, {"OPTIM.LR": 0.1, "DATASET.NAME": "A"}), (2, {"OPTIM.LR": 0.1, "DATASET.NAME": "B"}), (3, {})]
    assert comparison.disagreements(runs, OF_A_DATA_SET) == {}
    assert comparison.disagreements(runs, ()) == {"DATASET.NAME": {"A": [1], "B": [2]}}


def test_nobody_else_compares_configurations():
    """Ignored keys stand here alone: no other file of the engine, the sweeps and the results lists them."""
    root = Path(__file__).resolve().parents[2]
    pattern = re.compile(rf"\((?:\s*\"(?:{'|'.join(map(re.escape, NO_EFFECT))}|SEED|TEST\.NO_TEST)\",?){{2,}}")
    files = [path for room in ("dassl", "sweep", "results", "protocols") for path in (root / room).rglob("*.py")]
    assert not [path for path in files if path.name != "comparison.py" and pattern.search(path.read_text())]
