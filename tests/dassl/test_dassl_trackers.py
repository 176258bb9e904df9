"""Trackers: a CSV file, and Weights & Biases and MLflow against stand-ins with the surface of the real packages.

The stand-ins have the functions that `dassl.engine.trackers` calls, with the arguments of the packages' own.
"""

import csv
import os
import types

import pytest

import train
from dassl.engine import trackers


class WandbRun:
    """`wandb.Run`: what was logged, and whether it was finished."""

    def __init__(self, **options):
        self.options, self.logged, self.metrics, self.finished = options, [], [], False

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, data, step=None, commit=None):
        assert not self.finished
        self.logged.append(data)

    def finish(self, exit_code=None):
        self.finished = True


class MlflowClient:
    """`mlflow.tracking.MlflowClient` of one store."""

    stores: dict = {}

    def __init__(self, tracking_uri=None, registry_uri=None):
        self.store = self.stores.setdefault(tracking_uri, {"experiments": {}, "runs": []})

    def get_experiment_by_name(self, name):
        known = self.store["experiments"].get(name)
        return known and types.SimpleNamespace(experiment_id=known)

    def create_experiment(self, name):
        return self.store["experiments"].setdefault(name, str(len(self.store["experiments"])))

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        self.store["runs"].append({"name": run_name, "params": {}, "metrics": [], "over": False})
        info = types.SimpleNamespace(run_id=str(len(self.store["runs"]) - 1))
        return types.SimpleNamespace(info=info)

    def log_param(self, run_id, key, value):
        self.store["runs"][int(run_id)]["params"][key] = value

    def log_metric(self, run_id, key, value, timestamp=None, step=None):
        self.store["runs"][int(run_id)]["metrics"].append((key, value, step))

    def set_terminated(self, run_id, status=None, end_time=None):
        self.store["runs"][int(run_id)]["over"] = True


@pytest.fixture
def packages(monkeypatch):
    """The stand-ins; gives the runs of Weights & Biases and the stores of MLflow."""
    runs: list[WandbRun] = []

    def init(**options):
        runs.append(WandbRun(**options))
        return runs[-1]

    MlflowClient.stores = {}
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    fakes = {
        "wandb": types.SimpleNamespace(init=init),
        "mlflow.tracking": types.SimpleNamespace(MlflowClient=MlflowClient),
    }
    monkeypatch.setattr(trackers, "_package", lambda module, extra: fakes[module])
    return runs, MlflowClient.stores


@pytest.fixture
def coop(drawn_root, tmp_path, capsys):
    """Train CoOp for two epochs; gives exit status and what was said on standard error."""

    def run(*opts: str, seeds=("--seed", "1")) -> tuple[int, str]:
        line = [
            "--trainer",
            "CoOp",
            "--config-file",
            "tiny_vit_ep50_ctxv1",
            "--dataset-config-file",
            "drawn_easy",
            *seeds,
        ]
        line += ["--root", str(drawn_root), "--output-dir", str(tmp_path / "out"), "DATASET.NUM_SHOTS", "2"]
        status = train.main([*line, "OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "20", *opts])
        return status, capsys.readouterr().err

    return run


def test_nothing_is_tracked_unless_asked_for(coop, tmp_path):
    assert coop()[0] == 0
    assert not (tmp_path / "out/scalars.csv").exists()
    assert (tmp_path / "out/tensorboard").is_dir()


def test_all_trackers_get_the_numbers_of_the_run(coop, tmp_path, packages):
    runs, stores = packages
    assert coop("TRAIN.TRACKERS", "('csv', 'wandb', 'mlflow')") == (0, "")
    rows = list(csv.DictReader((tmp_path / "out/scalars.csv").read_text().splitlines()))
    losses = [(row["step"], float(row["value"])) for row in rows if row["tag"] == "train/loss"]
    assert [step for step, _ in losses] == ["0", "1", "2", "3"]
    assert [row["step"] for row in rows if row["tag"] == "test/accuracy"] == ["1"]
    (run,) = runs
    assert run.finished
    assert run.options["dir"] == str(tmp_path / "out")
    assert run.options["config"]["OPTIM.MAX_EPOCH"] == 2
    assert ("*", "step") in run.metrics
    logged = [(str(entry["step"]), entry["train/loss"]) for entry in run.logged if "train/loss" in entry]
    assert logged == losses
    ((address, store),) = stores.items()
    assert address == f"sqlite:///{tmp_path / 'out'}/mlflow.db"
    (entry,) = store["runs"]
    assert entry["over"]
    assert entry["params"]["TRAINER.NAME"] == "CoOp"
    assert [(str(step), value) for key, value, step in entry["metrics"] if key == "train/loss"] == losses


def test_seeds_of_one_process_are_runs_of_their_own(coop, packages, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere")
    monkeypatch.setenv("WANDB_PROJECT", "thesis")
    runs, stores = packages
    assert coop("TRAIN.TRACKERS", "['wandb', 'mlflow']", seeds=("--seeds", "1-2"))[0] == 0
    assert [os.path.basename(run.options["name"]) for run in runs] == ["seed1", "seed2"]
    assert {run.options["project"] for run in runs} == {"thesis"}
    assert len(stores["http://somewhere"]["runs"]) == 2
    assert len(stores["http://somewhere"]["experiments"]) == 1
    assert all(run.finished for run in runs)


def test_a_resumed_run_appends(tmp_path):
    for value in (1.0, 2.0):
        (tracker,) = trackers.make_trackers(["csv"], str(tmp_path), "title", {})
        tracker.add_scalar("train/loss", value, 3)
        tracker.add_scalar("note", value)
        tracker.close()
    text = (tmp_path / "scalars.csv").read_text()
    assert text == "tag,step,value\ntrain/loss,3,1.0\nnote,,1.0\ntrain/loss,3,2.0\nnote,,2.0\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("('wandbb',)", "wandb"), ("'csv'", "TRAIN.TRACKERS"), ("('mlflow',)", "python -m pip install mlflow")],
)
def test_mistakes_leave_nothing(coop, tmp_path, monkeypatch, value, expected):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(trackers.importlib, "import_module", missing)
    status, said = coop("TRAIN.TRACKERS", value)
    assert status == 2
    assert expected in said
    assert not (tmp_path / "out").exists()
