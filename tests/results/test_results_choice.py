"""The choice of a method: intervals by hand, equals, the cheapest of them."""

import math

import numpy as np
import pytest
from scipy import stats

from results.choice import answer, choose, cross_validated


def test_the_interval_is_corrected_for_shared_images():
    values = [80.0, 84.0, 78.0, 90.0, 82.0, 86.0, 81.0, 83.0]
    found = cross_validated(values, folds=4)
    variance = np.var(values, ddof=1)
    wanted = stats.t.ppf(0.975, df=7) * math.sqrt(variance * (1 / 8 + 1 / 3))
    assert (found.mean, found.sd, found.n) == (pytest.approx(83.0), pytest.approx(math.sqrt(variance)), 8)
    assert found.ci95 == pytest.approx(wanted)


def test_equals_are_those_whose_difference_may_be_nothing():
    accuracies = {"A": [80, 82, 84, 86], "B": [79, 83, 83, 86], "C": [60, 62, 64, 66]}
    found = choose(accuracies, {"A": 60.0, "B": 12.0, "C": 1.0}, folds=4)
    assert (found.best, found.equals, found.cheapest) == ("A", ("B",), "B")
    assert found.differences["C"].mean == pytest.approx(20)
    said = answer(found, {name: cross_validated(own, 4) for name, own in accuracies.items()}, {"A": 60.0, "B": 12.0})
    assert "A 83.00 +- " in said
    assert said.endswith("no difference; the cheaper is B (A 60.0 s, B 12.0 s a training)")


def test_one_that_is_better_than_all():
    accuracies = {"A": [80, 82, 84, 86], "C": [60, 62, 64, 66]}
    found = choose(accuracies, {"A": 60.0, "C": 1.0}, folds=4)
    assert (found.best, found.equals, found.cheapest) == ("A", (), "A")
    each = {name: cross_validated(own, 4) for name, own in accuracies.items()}
    assert "better than every other" in answer(found, each, {"A": 60.0, "C": 1.0})


def test_of_methods_with_the_same_mean_the_cheaper_is_the_best():
    assert choose({"A": [80, 82], "B": [82, 80]}, {"A": 2.0, "B": 1.0}, folds=2).best == "B"


def test_methods_have_to_have_the_same_folds():
    with pytest.raises(ValueError, match="the same folds"):
        choose({"A": [80, 82], "B": [82]}, {"A": 2.0, "B": 1.0}, folds=2)
