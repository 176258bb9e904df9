"""docs/CONFIG.md is what the code says: every key with type, default, meaning and those that read it."""

import re

import pytest
from yacs.config import CfgNode

from commands import keys
from commands.key_meanings import FOREIGN, MEANINGS
from commands.settings import values
from commands.words import all_keys
from dassl.config import declared_cfg

ROWS = {
    cells[0].strip("`"): cells
    for line in keys.PAGE.read_text(encoding="utf-8").splitlines()
    if (cells := [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]) and cells[0].startswith("`")
}


def test_the_page_is_what_the_code_says():
    assert keys.main([]) == 0, "python -m commands.keys --write"


def test_every_key_is_there_with_its_type_and_default():
    found = values(declared_cfg())
    assert ROWS.keys() == found.keys() == set(all_keys())
    for key, value in found.items():
        assert ROWS[key][1] == type(value).__name__
        assert ROWS[key][2] == f"`{value!r}`"


def test_every_key_has_a_meaning_and_a_reader():
    for key, (_, _, _, meaning, readers) in ROWS.items():
        assert meaning, f"{key}: write what it means into commands/key_meanings.py"
        assert (readers == "-") == (meaning == FOREIGN), f"{key} is read by {readers}"


def test_no_meaning_is_of_a_key_that_is_gone():
    named = {keys.meaning(key) for key in ROWS}
    assert {text for text in MEANINGS.values() if text not in named} == set()


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("OPTIM.LR", "dassl/optim/optimizer.py"),
        ("INPUT.GB_K", "dassl/data/transforms/transforms.py"),
        ("INPUT.COLORJITTER_B", "dassl/data/transforms/transforms.py"),
        ("DATASET.FOLDER", "datasets/own_data.py"),
        ("DATASET.VAL_SHOTS", "datasets/fewshot.py"),
        ("TRAINER.APEX.BETA", "trainers/apex.py"),
        ("TRAINER.COOP.PREC", "adaptation/trainer.py"),
        ("TRAINER.BITFIT.ALPHA", "trainers/finetuning.py"),
    ],
)
def test_readers(key, file):
    assert f"`{file}`" in ROWS[key][4]


def test_readers_are_read_from_code():
    found = {"a.py": {"cfg.OPTIM.LR"}, "b.py": {"'LR"}, "c.py": {"keys.BETA"}, "d.py": {"cfg.OPTIM.LR_SCHEDULER"}}
    assert keys.readers("OPTIM.LR", found, ()) == ["a.py"]
    assert keys.readers("TRAINER.APEX.BETA", found, ["c.py"]) == ["c.py"]
    assert keys.readers("TRAINER.APEX.BETA", found, ["a.py"]) == []


def test_the_comment_beside_a_default_is_a_meaning_too(monkeypatch):
    monkeypatch.delitem(MEANINGS, "DATASET.NOISE_RATE")
    assert "| share of the training images with a wrong label" in keys.page()
    assert keys.comments("NO_SUCH_KEY", ["dassl/config/defaults.py"]) == ""


def test_a_key_without_a_meaning_is_shown_without_one(monkeypatch):
    from dassl.engine import TRAINER_REGISTRY

    kind = type("Mine", (), {"CONFIG": {"MINE": CfgNode({"STRANGE": 1})}})
    monkeypatch.setattr(TRAINER_REGISTRY, "_objects", {**TRAINER_REGISTRY._objects, "Mine": kind})
    assert "| `TRAINER.MINE.STRANGE` | int | `1` |  | - |" in keys.page()
