"""Two checkouts take turns, and compute the same where they are the same."""

import pytest

from benchmarks import versus


def test_a_checkout_against_itself():
    row = versus.row("CoOp", versus.ROOT, classes=3, rounds=1, size="tiny")
    first, second = row["losses of the first step"].split(" / ")
    assert first == second
    assert row["ratio"] == pytest.approx(row["before, s"] / row["now, s"])


def test_a_process_that_ends_is_said(tmp_path, capfd):
    stepper = versus.Stepper(tmp_path, ("no_such_module", "Method", 1, (), ()))
    with pytest.raises(RuntimeError, match="no step came from the process"):
        stepper.step()
    stepper.end()
    assert "Error" in capfd.readouterr().err
