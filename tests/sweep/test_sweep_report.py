"""Averages that a sweep writes beside its seeds."""

import errno

import pytest
from results_trees import APEX, write_run

from results.layout import RunDirectory
from sweep.plan import Run
from sweep.report import AVERAGES, write_averages


@pytest.mark.parametrize("with_f1", [True, False])
def test_averages_of_what_every_seed_has(tmp_path, with_f1):
    """Macro F1 is averaged where an evaluator gives it."""
    runs = []
    for seed, accuracy in ((1, 80.0), (2, 83.0)):
        place = RunDirectory("base", "dtd", "APEX", APEX, 16, seed)
        folder = write_run(tmp_path, place, accuracy, **({} if with_f1 or seed == 1 else {"macro_f1": None}))
        runs.append(Run(place, (), str(folder)))
    text, unwritten = write_averages(runs)
    assert not unwritten
    lines = text.splitlines()
    assert lines[0] == str(folder.parent)
    assert "Average Accuracy: 81.50%" in lines
    assert ("Average Macro F1: 80.50%" in lines) is with_f1
    assert ("macro f1" in text.lower()) is with_f1
    assert text.endswith("Average Macro F1: 80.50%\n" if with_f1 else "Average Accuracy: 81.50%\n")


def test_averages_that_cannot_be_written_are_said(tmp_path, monkeypatch):
    """On a full disk they are shown all the same."""
    place = RunDirectory("base", "dtd", "APEX", APEX, 16, 1)
    folder = write_run(tmp_path, place, 80.0)

    def full(path, mode="w"):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("sweep.report.atomic_write", full)
    text, (said,) = write_averages([Run(place, (), str(folder))])
    assert "Average Accuracy: 80.00%" in text
    assert "No space left on device" in said
    assert str(folder.parent / AVERAGES) in said
