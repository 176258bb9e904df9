"""Split files: what is written comes back, and nothing but a split file is taken for one."""

import json
import pickle
import random

import pytest
from dataset_trees import TREES, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets import caches
from datasets.splits import (
    Item,
    Split,
    check_labels,
    half_labels,
    portions,
    read_split_file,
    split_groups,
    split_trainval,
    subsample_split,
    write_split_file,
)

same_folder = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@st.composite
def splits(draw) -> Split:
    """A valid split: every class has a training image."""
    names = draw(st.lists(text, min_size=1, max_size=5))
    rows = st.lists(st.tuples(text, st.integers(0, len(names) - 1)), max_size=12)
    lists = [[Item(path, label, names[label]) for path, label in draw(rows)] for _ in range(3)]
    lists[0] += [Item(draw(text), label, name) for label, name in enumerate(names)]
    return Split(*lists, origin=draw(st.one_of(st.just(""), text)))


@same_folder
@given(split=splits())
def test_written_splits_come_back(tmp_path, split):
    path = str(tmp_path / "split.json")
    write_split_file(split, path)
    assert read_split_file(path) == split
    assert read_split_file(path).digest() == split.digest()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=12,
)
row_like = st.lists(st.one_of(st.integers(-2, 3), st.text(max_size=4), st.none()), max_size=4)
part_like = st.one_of(json_values, st.lists(row_like, max_size=4))


@same_folder
@given(content=st.one_of(json_values, st.fixed_dictionaries({"train": part_like, "val": part_like, "test": part_like})))
def test_any_json_is_a_valid_split_or_a_value_error_naming_the_file(tmp_path, content):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    try:
        split = read_split_file(str(path))
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
    else:
        check_labels(split, "here")


@same_folder
@given(content=st.binary(max_size=60))
def test_any_bytes_are_a_value_error_naming_the_file(tmp_path, content):
    path = tmp_path / "split.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"split.json"):
        read_split_file(str(path))


@same_folder
@given(data=st.data(), protocol=st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_damaged_pickles_are_read_or_value_errors_naming_the_file(tmp_path, data, protocol):
    datum = Datum.__new__(Datum)
    datum.__dict__.update(_impath="data/images/a.jpg", _label=0, _domain=0, _classname="a")
    content = bytearray(pickle.dumps({"train": [datum], "val": []}, protocol=protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "draw.pkl").write_bytes(content)
    try:
        read = caches.read_pickle(str(tmp_path / "draw.pkl"), "images")
    except ValueError as error:
        assert "draw.pkl" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert all(isinstance(item, Item) for items in read.values() for item in items)


@pytest.mark.parametrize("text", ["[" * 100000, '{"train": [], "val": []}', '{"train": [], "val": [], "test": []}'])
def test_deep_incomplete_and_empty_files(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"split.json"):
        read_split_file(str(path))


@given(split=splits(), subsample=st.sampled_from(["base", "new"]))
def test_halves_partition_the_classes(split, subsample):
    labels = {item.label for item in split.train}
    if subsample == "new" and len(labels) == 1:
        with pytest.raises(ValueError, match="only 1 class"):
            subsample_split(split, subsample)
        return
    half = subsample_split(split, subsample)
    kept = half_labels(labels, subsample)
    assert sorted(kept.values()) == list(range(len(kept)))
    for name, part in split.parts().items():
        expected = [(item.impath, kept[item.label], item.classname) for item in part if item.label in kept]
        assert half.parts()[name] == expected
    check_labels(half, "the half")


@given(count=st.integers(2, 500), p_train=st.floats(0, 1), p_val=st.floats(0, 1))
def test_portions_leave_train_and_test_something(count, p_train, p_val):
    n_train, n_val = portions(count, p_train, p_val, "x")
    assert n_train >= 1
    assert n_val >= 0
    assert n_train + n_val < count


@given(count=st.integers(4, 3000))
def test_portions_are_the_official_ones(count):
    assert portions(count, 0.5, 0.2, "x") == (round(count * 0.5), round(count * 0.2))


@given(sizes=st.lists(st.integers(2, 12), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_splitting_loses_and_repeats_nothing(sizes, seed):
    groups = [[Item(f"{label}/{n}", label, str(label)) for n in range(size)] for label, size in enumerate(sizes)]
    split = split_groups(groups, rng=random.Random(seed))
    assert sorted(split.items()) == sorted(item for group in groups for item in group)
    everything = [item for group in groups for item in group]
    train, val = split_trainval(everything, rng=random.Random(seed))
    assert sorted(train + val) == sorted(everything)
    assert split_trainval(everything) == split_trainval(everything)


def test_train_list_split_is_what_the_seeded_official_shuffle_gives():
    items = [Item(f"{label}/{n}", label, str(label)) for n in range(10) for label in (1, 0)]
    train, val = split_trainval(items)
    rng = random.Random(1)
    expected_val, expected_train = [], []
    for label in (1, 0):
        order = list(range(10))
        rng.shuffle(order)
        expected_val += [Item(f"{label}/{n}", label, str(label)) for n in order[:2]]
        expected_train += [Item(f"{label}/{n}", label, str(label)) for n in order[2:]]
    assert (train, val) == (expected_train, expected_val)


def test_helpers_that_files_of_others_call(tmp_path):
    """The statics of OxfordPets and DescribableTextures, on Datums with full paths."""
    TREES["DescribableTextures"](tmp_path)
    pets, textures = DATASET_REGISTRY.get("OxfordPets"), DATASET_REGISTRY.get("DescribableTextures")
    image_dir = str(tmp_path / "dtd/images")
    train, val, test = textures.read_and_split_data(image_dir, ignored=["blotchy"], new_cnames={"banded": "stripes"})
    assert [len(part) for part in (train, val, test)] == [10, 4, 6]
    assert {datum.classname for datum in train} == {"stripes", "zigzagged"}
    path = str(tmp_path / "split.json")
    pets.save_split(train, val, test, path, image_dir)
    read = pets.read_split(path, image_dir)
    for written, back in zip((train, val, test), read, strict=True):
        assert [(d.impath, d.label, d.classname) for d in written] == [(d.impath, d.label, d.classname) for d in back]
    fewer, more = pets.split_trainval(train, p_val=0.4)
    assert (len(fewer), len(more)) == (6, 4)
    new_train, new_test = pets.subsample_classes(train, test, subsample="new")
    assert {(datum.label, datum.classname) for datum in new_train + new_test} == {(0, "zigzagged")}
    assert list(pets.subsample_classes(train, test)) == [train, test]
    assert load("DescribableTextures", tmp_path).num_classes == 3
