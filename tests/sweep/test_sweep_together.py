"""Eight sweeps over the same runs, each in an order of its own, on one output: each run once, all of them succeed."""

import json
import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_stub import fork_workers

import train
from protocols.base2new import plan as base2new
from sweep import pool, worker
from sweep.plan import SweepConfig
from sweep.state import requested

SWEEPS = 8


def nested(config) -> dict:
    """`{"A.B": 1}` as `{"A": {"B": 1}}`."""
    tree: dict = {}
    for key, value in config.items():
        *nodes, last = key.split(".")
        place = tree
        for node in nodes:
            place = place.setdefault(node, {})
        place[last] = value
    return tree


def finish(args) -> None:
    """What stands in the place of a run: takes a moment, leaves a line in the journal and a result."""
    folder = Path(args.output_dir)
    with Path(args.root, "journal").open("a") as file:
        file.write(f"{folder}\n")
    time.sleep(0.2)
    argv = json.loads((folder / "sweep.json").read_text())["argv"]
    metrics = {"trainer": "CoOp", "dataset": "Digits", "seed": args.seed, "accuracy": 50.0}
    metrics |= {"created": "2026-01-01T00:00:00+00:00", "config": nested(requested(argv))}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def life(pipe, log: str, threads: int) -> None:
    """A worker that does all that real ones do for a run, but for the training itself."""
    pipe.send(worker.Message("ready"))
    while (pack := pipe.recv()) is not None:
        worker.execute_pack(pack, pipe.send)


def one_sweep(runs, order: int, folder: Path, answers) -> None:
    """Carry out the runs, in an order of its own where none needs another."""
    shuffled = random.Random(order).sample(runs, len(runs))
    done = pool.Pool([pool.Slot("", 1)], str(folder / f"logs{order}"), lambda run, message: None, life)
    outcome = done.work([(run,) for run in shuffled])
    answers.put((sorted(run.output_dir for run in outcome.done), list(outcome.failed.values())))


def test_each_run_is_carried_out_once(tmp_path, monkeypatch, repo_root):
    monkeypatch.chdir(repo_root)
    runs = base2new(SweepConfig(str(tmp_path), str(tmp_path / "out"), 1, (1, 2)), ["CoOp"], ["digits"])
    assert len(runs) == 4
    fork_workers(monkeypatch)
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(pool, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(pool, "LISTEN_SECONDS", 0.2)
    monkeypatch.setattr(train, "run", finish)
    answers = context.Queue()
    sweeps = [context.Process(target=one_sweep, args=(runs, order, tmp_path, answers)) for order in range(SWEEPS)]
    for sweep in sweeps:
        sweep.start()
    found = [answers.get(timeout=120) for _ in sweeps]
    for sweep in sweeps:
        sweep.join(60)
    assert [sweep.exitcode for sweep in sweeps] == [0] * SWEEPS
    every = sorted(run.output_dir for run in runs)
    assert found == [(every, [])] * SWEEPS
    assert sorted((tmp_path / "journal").read_text().split()) == every


def test_real_sweeps(tmp_path, repo_root, request):
    """Eight launchers with their workers on carried data, for `--long`."""
    if not request.config.getoption("--long"):
        pytest.skip("takes minutes: --long")
    trainers, sets = ["ZeroshotCLIP", "CoOp"], ["drawn_thermal", "digits"]
    sweeps = []
    for order in range(SWEEPS):
        draw = random.Random(order)
        words = ["base2new", "--trainers", *draw.sample(trainers, 2), "--datasets", *draw.sample(sets, 2)]
        words += ["--seeds", "1-3", "--shots", "2", "--jobs", "1", "--root", str(tmp_path / "data")]
        line = [sys.executable, "-m", "sweep", *words, "--output", str(tmp_path / "out"), "OPTIM.MAX_EPOCH", "2"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        sweeps.append(subprocess.Popen(line, cwd=repo_root, **streams))
    said = [sweep.communicate(timeout=3000)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0] * SWEEPS, "\n".join(said)
    results = list((tmp_path / "out").rglob("metrics.json"))
    assert len(results) == 2 * (3 * 2 + 2)
    for path in results:
        begun = [log for log in path.parent.glob("log.txt*") if "** Arguments **" in log.read_text()]
        assert len(begun) == 1, f"{path.parent} was carried out {len(begun)} times"
    assert not list((tmp_path / "out").rglob("failed.json"))
