"""The benchmark runs, the plain configuration computes what the default one does, and the tables are written."""

import json
import subprocess
import sys

import pytest
import torch

from adaptation.stacking import RunGroup, single_run_loss, stacked_losses
from benchmarks import speed, timing
from benchmarks.parts import Bench, class_names, operations, separate, stacked
from clip.precision import CPU
from dassl.utils.digests import read_array


def test_plain_and_default_compute_the_same_at_different_cost():
    bench = Bench("tiny", CPU, batch=4)
    plain, default = (bench.run(kind, "fp32", classes=5) for kind in ("plain", "default"))
    assert torch.equal(plain.images, default.images)
    losses = []
    for run in (plain, default):
        loss, _ = run.model.loss(run.images, run.labels)
        losses.append((loss, *torch.autograd.grad(loss, [p for p in run.model.parameters() if p.requires_grad])))
    for one, other in zip(*losses, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
    logits = [run.model.eval()(run.images) for run in (plain, default)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    costs = [(operations(run.step), operations(run.evaluate)) for run in (plain, default)]
    assert all(slow > 1.5 * fast for slow, fast in zip(*costs, strict=True))


def test_stacked_steps_are_separate_steps():
    bench = Bench("tiny", CPU, batch=2)
    alone, together = ([bench.run("default", "fp32", 3, seed) for seed in range(2)] for _ in range(2))
    for run in alone:
        single_run_loss(run.request)
    stacked_losses([run.request for run in together], RunGroup.of(together))
    for one, other in zip(alone, together, strict=True):
        for x, y in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert (x.grad - y.grad).abs().max() <= 1e-4 * x.grad.abs().max()
    before = [p.clone() for p in together[1].model.parameters()]
    stacked(together, 1)()
    separate(alone)()
    assert all(not torch.equal(p, q) for p, q in zip(before, together[1].model.parameters(), strict=True))


def test_quick_run_writes_its_tables(tmp_path, capsys):
    words = ["--quick", "--batch", "2", "--eval-batch", "4", "--precision", "fp32", "--output-dir", str(tmp_path)]
    assert speed.main([*words, "--parts", "seeds", "whole", "memory"]) == 0
    assert speed.main([*words, "--parts", "train", "eval"]) == 0
    parts = json.loads((tmp_path / "speed.json").read_text())["parts"]
    assert list(parts) == ["train", "eval", "seeds", "whole", "memory"]
    assert parts["train"]["machine"]["threads"] == torch.get_num_threads() == 1
    assert parts["train"]["matrix rate, FLOP/s"]["fp32"] > 0
    (row,) = parts["train"]["rows"]
    assert row["ratio fp32"] == pytest.approx(row["plain fp32, s"] / row["default fp32, s"])
    assert [row["seeds"] for row in parts["seeds"]["rows"]] == [1, 2]
    (row,) = parts["whole"]["rows"]
    assert row["steps of each"] == 24 * 16 * 15 // 2
    assert row["ratio"] == pytest.approx(row["plain fp32, s per seed"] / row["default fp32, s per seed"])
    text, said = (tmp_path / "speed.md").read_text(), capsys.readouterr().out
    for title in ("### Training step", "### Several seeds"):
        assert title in text
        assert title in said
    assert "python -m benchmarks.speed --quick" in text


def test_evaluations_on_new_classes(tmp_path):
    bench = Bench("tiny", CPU, batch=2)
    plain, default = (bench.run(kind, "fp32", 6, batch=4) for kind in ("plain", "default"))
    new = [run.on_new_classes() for run in (plain, default)]
    assert not set(new[0].model.classnames) & set(plain.model.classnames)
    torch.testing.assert_close(*(run.model(run.images) for run in new), rtol=1e-4, atol=1e-4)
    assert torch.equal(new[0].model.trained_tokens, plain.model.tokens)
    again = new[1].with_cached_features(tmp_path / "x.features")
    assert read_array(tmp_path / "x.features").shape == (4, 128)
    with torch.no_grad():
        kept, computed = (run.model.eval()(run.images) for run in (again, new[1]))
    assert torch.equal(kept, computed)
    assert operations(again.evaluate) < 0.8 * operations(new[1].evaluate)
    assert operations(new[1].evaluate) > 1.3 * operations(default.evaluate)  # the frozen image tower is needed
    one, three = (operations(lambda n=n: default.evaluate(n)) for n in (1, 3))
    assert one < three < 3 * one  # the sentences are encoded once


def test_class_names():
    assert len(set(class_names(1000))) == 1000
    assert len({*class_names(24), *class_names(24, new=True)}) == 48


def test_clocks_and_commands():
    seconds = timing.alternate({"a": lambda: sum(range(10000)), "b": lambda: None}, 2, CPU)
    assert [len(each) for each in seconds.values()] == [2, 2]
    peak = timing.peak_memory(lambda: torch.ones(2**24).sum(), CPU)
    assert peak is None or 2**25 < peak < 2**28
    speaks = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
    assert timing.first_line(speaks, "^ready") < 30
    assert timing.seconds_of([sys.executable, "-c", ""]) > 0
    with pytest.raises(RuntimeError, match="ended with status 3"):
        timing.first_line([sys.executable, "-c", "raise SystemExit(3)"], "ready")
    with pytest.raises(subprocess.CalledProcessError):
        timing.seconds_of([sys.executable, "-c", "raise SystemExit(3)"])
