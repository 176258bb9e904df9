"""The drawn sets as data sets: drawn once, read by the ordinary loader, safe with several processes at once."""

import dataclasses
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import datasets  # noqa: F401 - registers what is in the folder
from dassl.config import declared_cfg
from dassl.data.datasets import DATASET_REGISTRY
from datasets import synthetic
from datasets.splits import read_split_file
from synthetic.sets import PARTS, SETS

NAMES = ("DrawnEasy", "DrawnThermal", "DrawnChalk", "DrawnClutter", "DrawnTextures", "DrawnPolystar", "Digits")


def config(root, **keys):
    cfg = declared_cfg()
    cfg.SEED = 1
    cfg.DATASET.ROOT = str(root)
    for key, value in keys.items():
        cfg.DATASET[key] = value
    return cfg


@pytest.fixture
def few(monkeypatch):
    """DrawnChalk with few pictures per class."""
    chosen = DATASET_REGISTRY.get("DrawnChalk")
    monkeypatch.setattr(chosen, "drawn", dataclasses.replace(SETS["chalk"], sizes=(4, 2, 3)))
    return chosen


def test_every_set_is_a_data_set_with_a_configuration(repo_root):
    of_sets = {DATASET_REGISTRY.get(name).drawn.name for name in NAMES}
    assert of_sets == set(SETS)
    for path in (repo_root / "configs/datasets").glob("d*.yaml"):
        if path.stem.startswith("drawn_") or path.stem == "digits":
            cfg = config("root")
            cfg.merge_from_file(str(path))
            assert DATASET_REGISTRY.get(cfg.DATASET.NAME).dataset_dir == path.stem


def test_files_hold_the_pictures_that_the_seed_gives(few, tmp_path):
    dataset = few(config(tmp_path))
    split = read_split_file(str(tmp_path / "drawn_chalk" / "split.json"))
    assert split.class_names() == list(SETS["chalk"].class_names) == dataset.classnames
    for part in PARTS:
        items = split.parts()[part]
        drawn = list(few.drawn.pictures(part, 1))
        assert [item.label for item in items] == [label for label, _ in drawn]
        for item, (_, picture) in list(zip(items, drawn, strict=True))[::7]:
            with Image.open(tmp_path / "drawn_chalk" / "images" / item.impath) as image:
                assert image.mode == "RGB"
                assert np.array_equal(np.asarray(image), picture)


def test_drawn_once_then_read(few, tmp_path, monkeypatch):
    first = few(config(tmp_path))
    monkeypatch.setattr(few, "_write", lambda *_: pytest.fail("drawn again"))
    second = few(config(tmp_path))
    assert [item.impath for item in first.test] == [item.impath for item in second.test]


def test_shots_and_halves(few, tmp_path):
    base, new = (few(config(tmp_path, NUM_SHOTS=2, SUBSAMPLE_CLASSES=half)) for half in ("base", "new"))
    names = list(few.drawn.class_names)
    assert (base.classnames, new.classnames) == (names[:10], names[10:])
    assert set(Counter(item.label for item in base.train_x).values()) == {2}
    assert set(Counter(item.label for item in new.test).values()) == {3}


def test_several_at_once_draw_one_set(few, tmp_path):
    with ThreadPoolExecutor(4) as workers:
        made = list(workers.map(lambda _: few(config(tmp_path)), range(4)))
    assert len({tuple(item.impath for item in dataset.train_x) for dataset in made}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["drawn_chalk"]


def test_an_interrupted_drawing_leaves_nothing(few, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(synthetic, "write_split_file", broken)
    with pytest.raises(OSError, match="disk full"):
        few(config(tmp_path))
    assert not list(tmp_path.iterdir())


def test_other_seed_lies_in_another_folder(few, tmp_path):
    few(config(tmp_path))
    other = few(config(tmp_path, DRAW_SEED=2))
    assert (tmp_path / "drawn_chalk_seed2" / "split.json").is_file()
    pictures = [tmp_path / folder / "images/ring/test_0000.png" for folder in ("drawn_chalk", "drawn_chalk_seed2")]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    assert "drawn_chalk_seed2" in other.test[0].impath


def test_a_negative_seed_is_refused(few, tmp_path):
    with pytest.raises(ValueError, match="DRAW_SEED is -1"):
        few(config(tmp_path, DRAW_SEED=-1))


def test_a_folder_of_another_recipe_is_refused(few, tmp_path):
    few(config(tmp_path))
    note = tmp_path / "drawn_chalk" / "drawn.json"
    note.write_text(json.dumps({"set": "chalk", "seed": 1, "version": 0}))
    with pytest.raises(ValueError, match="delete the folder"):
        few(config(tmp_path))
    note.unlink()
    with pytest.raises(ValueError, match="not drawn by this program"):
        few(config(tmp_path))


def test_real_digits_have_the_declared_counts(tmp_path):
    digits = DATASET_REGISTRY.get("Digits")
    dataset = digits(config(tmp_path))
    counts = digits.counts
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (counts.train, counts.val, counts.test)
    assert min(Counter(item.label for item in dataset.test).values()) >= 50
