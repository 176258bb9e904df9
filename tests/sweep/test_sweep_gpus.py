"""Which GPU each worker sees: `--gpus` and `--per-gpu` over stubs of GPUs, up to the environment of the workers."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from sweep_stub import fork_workers, live

from results.layout import RunDirectory
from sweep import cli
from sweep.plan import Run
from sweep.pool import Pool


@pytest.fixture
def slots(monkeypatch):
    """The places that arguments give where `count` GPUs can be seen, by these names if CUDA_VISIBLE_DEVICES is set."""

    def make(words: str, count: int, visible: str | None = None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return cli.make_slots(cli.build_parser().parse_args(["base2new", "--trainers", "CoOp", *words.split()]))

    return make


@pytest.mark.parametrize(
    ("words", "count", "visible", "expected"),
    [
        ("", 4, None, ["0", "1", "2", "3"]),
        ("--gpus 1,3", 4, None, ["1", "3"]),
        ("--gpus 1,3 --per-gpu 2", 4, None, ["1", "3", "1", "3"]),
        ("", 2, "5,7", ["5", "7"]),
        ("--gpus 1 --per-gpu 3", 2, "5,7", ["7", "7", "7"]),
        ("", 1, "GPU-8f4d", ["GPU-8f4d"]),
        ("--jobs 3", 4, None, ["", "", ""]),
        ("--jobs 2", 0, None, ["", ""]),
    ],
)
def test_places(slots, words, count, visible, expected):
    assert [slot.gpu for slot in slots(words, count, visible)] == expected


@pytest.mark.parametrize("words", ["--gpus 4", "--gpus 0,x", "--gpus 0,"])
def test_gpus_that_are_not_there_are_refused(slots, words):
    with pytest.raises(ValueError, match="there are 4 GPUs, counted from 0"):
        slots(words, 4)


def test_runs_spread_over_the_given_gpus(slots, tmp_path, monkeypatch):
    """Two at a time on each of two GPUs: four workers, and none of them sees the other GPUs."""
    fork_workers(monkeypatch)
    place, journal = RunDirectory("base", "dtd", "APEX", "c", 16, 1), tmp_path / "journal"
    runs = [Run(place, ("slow", str(journal)), str(tmp_path / str(i))) for i in range(8)]
    places = slots("--gpus 0,2 --per-gpu 2", 3, "4,5,6")
    outcome = Pool(places, str(tmp_path / "logs"), lambda run, message: None, live).work([(run,) for run in runs])
    assert set(outcome.done) == set(runs)
    seen = {tuple(line.split()[:2]) for line in Path(journal).read_text().splitlines()}
    assert len(seen) == 4, "a worker stays on its GPU"
    assert Counter(gpu for _, gpu in seen) == {"4": 2, "6": 2}
