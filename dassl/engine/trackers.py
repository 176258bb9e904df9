"""Where the numbers of a run go beside TensorBoard: a CSV file, Weights & Biases, MLflow. Each is a small writer.

``TRAIN.TRACKERS`` names them; none is on by default. Weights & Biases and MLflow are packages of their own (the extras
``wandb`` and ``mlflow``), imported when a run asks for them, and take their own environment variables:
``WANDB_MODE=offline`` writes into the folder of the run and sends nothing, as MLflow does without
``MLFLOW_TRACKING_URI``.
"""

import csv
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dassl.utils import check_availability


class Tracker(Protocol):
    """What a writer of numbers has; PyTorch's ``SummaryWriter`` has it too."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a number under a name such as ``train/loss``, for a step or an epoch."""

    def close(self) -> None:
        """End: whatever was written is kept."""


class CSVTracker:
    """Writes ``scalars.csv`` into the folder of a run: a row of tag, step and value for each number; a resumed run
    appends."""

    def __init__(self, folder: str, name: str, settings: Mapping[str, Any]) -> None:
        path = Path(folder) / "scalars.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        empty = not path.is_file() or not path.stat().st_size
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - lives as long as the writer
        self._rows = csv.writer(self._file)
        if empty:
            self._rows.writerow(["tag", "step", "value"])

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a row."""
        self._rows.writerow([tag, "" if global_step is None else global_step, repr(float(scalar_value))])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandbTracker:
    """Writes to Weights & Biases: project ``$WANDB_PROJECT``, else ``dassl``; a run for each run, with its settings."""

    def __init__(self, folder: str, name: str, settings: Mapping[str, Any]) -> None:
        wandb = _package(PACKAGES["wandb"], "wandb")
        os.makedirs(folder, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", "dassl")
        self._run = wandb.init(project=project, name=name, dir=folder, config=dict(settings), reinit="create_new")
        self._run.define_metric("*", step_metric="step")  # steps of training and epochs of tests are counted apart

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Log a number."""
        step = {} if global_step is None else {"step": global_step}
        self._run.log({tag: float(scalar_value), **step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflowTracker:
    """Writes to MLflow: ``$MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the folder of the run; experiment
    ``$MLFLOW_EXPERIMENT_NAME``, else ``dassl``. Several runs of one process do not meet: each has a client."""

    def __init__(self, folder: str, name: str, settings: Mapping[str, Any]) -> None:
        tracking = _package(PACKAGES["mlflow"], "mlflow")
        os.makedirs(folder, exist_ok=True)
        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{os.path.abspath(folder)}/mlflow.db"
        self._client = tracking.MlflowClient(tracking_uri=address)
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "dassl")
        found = self._client.get_experiment_by_name(title)
        experiment = found.experiment_id if found else self._client.create_experiment(title)
        self._run = self._client.create_run(experiment, run_name=name).info.run_id
        for key, value in settings.items():
            self._client.log_param(self._run, key, str(value)[:500])  # of a parameter it keeps no more

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Log a number."""
        self._client.log_metric(self._run, tag, float(scalar_value), step=global_step or 0)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run)


TRACKERS: dict[str, Callable[[str, str, Mapping[str, Any]], Tracker]] = {
    "csv": CSVTracker,
    "wandb": WandbTracker,
    "mlflow": MLflowTracker,
}
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow.tracking"}


def _package(module: str, extra: str) -> Any:
    """Import a package that only a tracker needs; ValueError, which says how to install it, without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"TRAIN.TRACKERS has {extra}, but {error}: python -m pip install {extra} (or the extra {extra})"
        ) from error


def require_known(names: Any) -> None:
    """Raise a ValueError for a tracker that there is not, or one whose package is missing."""
    for name in names:
        check_availability(name, list(TRACKERS), "tracker in TRAIN.TRACKERS")
        if name in PACKAGES:
            _package(PACKAGES[name], name)


def make_trackers(names: Any, folder: str, title: str, settings: Mapping[str, Any]) -> list[Tracker]:
    """Return the writers that ``TRAIN.TRACKERS`` names.

    Args:
        names: among ``TRACKERS``.
        folder: of the run.
        title: what the run is called there.
        settings: its configuration by dotted keys.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
    """
    require_known(names)
    return [TRACKERS[name](folder, title, settings) for name in names]
