"""Sweeps on SLURM: how runs become arrays, what a job does, and a real SLURM where its packages are installed."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from results.layout import RunDirectory
from sweep import cli, slurm
from sweep.plan import Run
from sweep.worker import Message

PLACE = RunDirectory("base", "dtd", "APEX", "c", 16, 1)


def _run(name: str, needs: str = "") -> Run:
    return Run(PLACE, (), name, needs)


def test_element_i_of_the_second_array_follows_element_i_of_the_first():
    runs = [_run("a"), _run("a1", "a"), _run("a2", "a"), _run("b"), _run("b1", "b"), _run("c"), _run("d1", "d")]
    a, a1, a2, b, b1, c, d1 = packs = [(run,) for run in runs]
    assert slurm.arrays(packs) == [([(a,), (b,)], [(a1, a2), (b1,)]), ([(c,), (d1,)], [])]
    together = (*a, *b)
    assert slurm.arrays([together, a1, a2, b1, c]) == [([(together,)], [(a1, a2, b1)]), ([(c,)], [])]


def test_arrays_stay_below_the_limit(monkeypatch):
    monkeypatch.setattr(slurm, "LARGEST_ARRAY", 2)
    runs = [(run,) for i in range(3) for run in (_run(f"{i}"), _run(f"{i}t", f"{i}"))]
    assert [(len(a), len(b)) for a, b in slurm.arrays(runs)] == [(2, 2), (1, 1)]


def test_parameters():
    options = slurm.Options("logs", "gpu", 30, gpus=1, cpus=4, memory_gb=8, at_a_time=5, more={"mail-user": "x"})
    wanted = options.parameters()
    assert wanted["slurm_partition"] == "gpu"
    assert (wanted["timeout_min"], wanted["gpus_per_node"], wanted["cpus_per_task"], wanted["mem_gb"]) == (30, 1, 4, 8)
    assert wanted["slurm_mail_user"] == "x"
    assert "gpus_per_node" not in slurm.Options("logs").parameters()


class Cluster:
    """Takes what submitit's executor takes."""

    def __init__(self):
        self.parameters, self.submitted, self.jobs = {}, [], []

    def update_parameters(self, **parameters):
        self.parameters |= parameters

    @contextlib.contextmanager
    def batch(self):
        self.tasks, jobs = [], self.jobs
        jobs.clear()
        yield
        first = 10 * (len(self.submitted) + 1)
        self.submitted.append((self.parameters["slurm_dependency"], self.tasks))
        for index, job in enumerate(jobs):
            job.job_id = f"{first}_{index}" if len(jobs) > 1 else str(first)

    def submit(self, task):
        assert callable(task.checkpoint), "or submitit does not put it back into the queue at a time-out"
        self.tasks.append(task)
        self.jobs.append(SimpleNamespace())
        return self.jobs[-1]


def test_dependencies():
    cluster = Cluster()
    runs = [_run("a"), _run("a1", "a"), _run("b"), _run("b1", "b"), _run("c")]
    jobs = slurm.submit([(run,) for run in runs], slurm.Options("logs"), cluster)
    assert [dependency for dependency, _ in cluster.submitted] == [None, "aftercorr:10", None]
    follows = {group[0].output_dir: after and after.job_id for _, group, after in jobs}
    assert follows == {"a": None, "b": None, "a1": "10_0", "b1": "10_1", "c": None}
    single = Cluster()
    slurm.submit([(run,) for run in runs[:2]], slurm.Options("logs"), single)
    assert single.submitted[1][0] == "afterok:10"


@pytest.fixture
def carried_out(monkeypatch):
    """The packs that tasks carry out; runs called `bad...` fail."""
    packs = []

    def execute_pack(pack, tell):
        packs.append([run.output_dir for run in pack])
        for index, run in enumerate(pack):
            tell(Message("progress", 0.5, index=index))
            bad = run.output_dir.startswith("bad")
            tell(Message("failed", reason="ValueError: no", index=index) if bad else Message("done", index=index))

    monkeypatch.setattr(slurm, "execute_pack", execute_pack)
    return packs


def test_a_task_goes_on_after_a_failure_and_does_not_repeat_itself(carried_out):
    task = slurm.Task(((_run("bad"),), (_run("b"),)), 1)
    with pytest.raises(RuntimeError, match="bad: ValueError: no"):
        task()
    assert carried_out == [["bad"], ["b"]]
    task()
    assert carried_out == [["bad"], ["b"]], "put back into the queue, it does not repeat what is over"


def test_what_follows_a_pack_is_started_unless_all_of_it_failed(carried_out):
    task = slurm.Task(((_run("bad"), _run("b")),), 1)
    task.over.append("b")
    with pytest.raises(RuntimeError, match="bad"):
        slurm.Task(((_run("bad1"), _run("bad2")),), 1)()
    slurm.Task(((_run("bad"), _run("b")),), 1)()
    task()
    assert carried_out == [["bad1", "bad2"], ["bad", "b"], ["bad"]]


def test_a_job_that_left_the_queue_without_a_word_is_over(tmp_path, monkeypatch):
    """Two jobs never say that they are done: one is in the queue until the other was given up."""
    squeue, queue = tmp_path / "squeue", tmp_path / "queue"
    squeue.write_text(f"#!/bin/sh\ncat {queue}\n")
    squeue.chmod(0o755)
    queue.write_text("7_1\n8\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "finished", lambda run: False)
    paths = SimpleNamespace(stderr="the log")
    jobs = [SimpleNamespace(job_id=name, done=lambda: False, paths=paths) for name in ("7_0", "7_1")]
    runs = [_run(str(tmp_path / "a")), _run(str(tmp_path / "b"))]
    entries = [(job, (run,), None) for job, run in zip(jobs, runs, strict=True)]
    monkeypatch.setattr(slurm, "submit", lambda packs, options: entries)
    told = []

    def tell(run, message):
        told.append(run)
        queue.write_text("")

    outcome = slurm.work([(run,) for run in runs], slurm.Options("logs"), tell)
    assert told == runs
    assert set(outcome.failed.values()) == {"its job ended (see the log)"}


def test_without_slurm_it_says_so(tmp_path, capsys, repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["base2new", "--launcher", "slurm", "--trainers", "CoOp", "--datasets", "drawn_thermal", "--seeds", "1"]
    assert cli.main([*words, "--root", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "--launcher slurm" in capsys.readouterr().err


def _missing() -> str:
    """Why there can be no SLURM here, or ""."""
    if os.geteuid() != 0:
        return "a SLURM of its own needs root"
    programs = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    if programs:
        return f"{', '.join(programs)} not installed (apt-get install slurm-wlm munge)"
    return "" if importlib.util.find_spec("submitit") else "submitit is not installed"


@pytest.mark.skipif(bool(_missing()), reason=_missing() or "-")
def test_a_real_slurm(tmp_path, repo_root):
    line = [
        "scripts/dev/slurm_local.sh",
        sys.executable,
        "tests/helpers/slurm_check.py",
        *map(str, (tmp_path / "data", tmp_path)),
    ]
    paths = os.pathsep.join([str(repo_root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(line, cwd=repo_root, capture_output=True, text=True, timeout=900, env=environment)
    if done.returncode == 77:
        pytest.skip(f"no SLURM could be started: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["preempted"] == {"starts": 2, "resumed": 1, "tested": True, "epochs": 6}
    assert answers["failed"] == {"status": 1, "queue": ""}
    assert re.search(r"failed: \S+seed2: (FileExistsError|NotADirectoryError): ", done.stderr), done.stderr
    assert "not tried" in done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("drawn_thermal"))
    assert row.split()[1:3] == ["CoOp", "1"]
