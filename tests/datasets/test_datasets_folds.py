"""Folds of a support set: every image once, every class in each, the same for every method."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from datasets.folds import Fold, parse_fold, support_fold
from datasets.splits import Item, Split


def split_of(sizes) -> Split:
    train = [
        Item(f"c{label}/{n}.png", label, f"class {label}") for label, size in enumerate(sizes) for n in range(size)
    ]
    return Split(train, [Item("v.png", 0, "class 0")], [Item("t.png", 0, "class 0")])


@given(st.integers(2, 6), st.lists(st.integers(6, 17), min_size=1, max_size=7), st.integers(1, 5))
def test_folds_are_a_partition_with_every_class_in_each(count, sizes, repetition):
    split = split_of(sizes)
    folds = [support_fold(split, Fold(number, count, repetition)) for number in range(1, count + 1)]
    assert Counter(item for fold in folds for item in fold.test) == Counter(split.train)
    for fold in folds:
        assert sorted(fold.train + fold.test) == sorted(split.train)
        assert fold.val == split.val
        for label, size in enumerate(sizes):
            own = sum(item.label == label for item in fold.test)
            assert size // count <= own <= -(-size // count)


def test_the_rest_of_the_classes_is_spread_over_the_folds():
    folds = [support_fold(split_of([5, 5, 5, 5]), Fold(number, 4, 1)) for number in (1, 2, 3, 4)]
    assert [len(fold.test) for fold in folds] == [5, 5, 5, 5]


def test_repetitions_deal_anew_and_each_is_always_the_same():
    split = split_of([8, 8, 8])
    first, again, other = (support_fold(split, fold).test for fold in (Fold(1, 2, 1), Fold(1, 2, 1), Fold(1, 2, 2)))
    assert first == again
    assert first != other


@pytest.mark.parametrize("text", ["", "2", "2/4", "0/4@1", "5/4@1", "1/1@1", "1/4@0", "1/4@1 ", "a/b@c", "1/4@-1"])
def test_what_is_no_fold(text):
    with pytest.raises(ValueError, match=r"DATASET.FOLD .*write FOLD/FOLDS@REPETITION"):
        parse_fold(text)


def test_a_class_with_too_few_images():
    with pytest.raises(ValueError, match="class 'class 1' has 3 training images, too few for 4 folds"):
        support_fold(split_of([4, 3]), Fold(1, 4, 1))


def test_a_run_trains_outside_of_its_fold_and_is_tested_inside(tmp_path):
    cfg = get_cfg_default()
    cfg.merge_from_list(
        ["DATASET.NAME", "DrawnThermal", "DATASET.ROOT", str(tmp_path), "DATASET.NUM_SHOTS", 4, "SEED", 1]
    )
    whole = {item.impath for item in build_dataset(cfg).train_x}
    held = []
    for number in (1, 2):
        cfg.DATASET.FOLD = f"{number}/2@1"
        made = build_dataset(cfg)
        trained, tested = ({item.impath for item in part} for part in (made.train_x, made.test))
        assert (len(trained), len(tested)) == (40, 40)
        assert trained | tested == whole
        held.append(tested)
    assert not held[0] & held[1]
