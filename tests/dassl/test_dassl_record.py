"""What `metrics.json` lacks: a finished run is not lost to what could not be found out about it."""

import json

import numpy as np
import pytest
import torch
from dassl_toys import CLASSES, ToyTrainer, ToyZeroShot, toy_config

from dassl.engine import build_trainer, record
from dassl.evaluation import Classification


def evaluated(monkeypatch, folder):
    """Test a trainer that learns nothing; return it and what it wrote."""
    run = build_trainer(toy_config(monkeypatch, folder, "ToyZeroShot"))
    assert run.test() == pytest.approx(100 / CLASSES)
    return run, json.loads((folder / "out" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return evaluated(patch, tmp_path_factory.mktemp("whole"))


def test_nothing_is_lacking_by_itself(whole):
    assert "not_recorded" not in whole[1]


def test_every_field_may_fail(whole, tmp_path, monkeypatch, capsys):
    """Each in turn: it is left out and named with the reason, the others stay."""
    trainer, metrics = whole
    names = list(record._fields(trainer, "test"))
    assert {"device", "peak_memory_bytes", "versions", "commit", "split_hash", "per_class", "config"} <= set(names)
    real = record._fields
    for name in names:

        def failing(*args, broken=name):
            return real(*args) | {broken: lambda: 1 / 0}

        monkeypatch.setattr(record, "_fields", failing)
        made = record.make_record(trainer, "test", {"accuracy": 50.0}, 1.0)
        assert name not in made
        assert made["not_recorded"] == {name: "ZeroDivisionError: division by zero"}
        assert set(metrics) - set(made) == {name, "error_rate", "macro_f1", "predictions"}
        assert f"metrics.json lacks {name} (ZeroDivisionError: division by zero)" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", torch.device("cuda:1")], ids=str)
def test_a_device_that_is_not_there(tmp_path, monkeypatch, device):
    """A trainer that names a GPU and moves its tensors itself."""

    class Elsewhere(ToyTrainer):
        def build_model(self):
            super().build_model()
            self.device = device

        def _to_device(self, tensor):
            return tensor

    trainer = Elsewhere(toy_config(monkeypatch, tmp_path))
    trainer.train()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["accuracy"] == trainer.last_result
    assert list(metrics["not_recorded"]) == ["device"]
    assert metrics["peak_memory_bytes"].keys() == {"host"}


def test_data_that_are_not_where_they_were(tmp_path, monkeypatch):
    """A trainer whose loaders were made without a data manager, by which nothing of the data set is known."""
    trainer = build_trainer(toy_config(monkeypatch, tmp_path))
    del trainer.dm
    trainer.train()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    missing = {"num_train", "split_hash", "full_split_hash", "test_images_hash", "train_images_hash", "test_in_train"}
    missing |= {"draw_source", "wrong_labels", "shots_per_class"}
    assert set(metrics["not_recorded"]) == missing
    assert all("has no attribute 'dm'" in reason for reason in metrics["not_recorded"].values())
    assert metrics["accuracy"] == trainer.last_result


@pytest.mark.parametrize(
    ("extra", "field", "reason"),
    [
        (lambda self: {"alpha": 1 / 0}, "extra_metrics", "division by zero"),
        (lambda self: {"alpha": torch.ones(2)}, "extra_metrics", "Tensor is not JSON serializable"),
        (lambda self: {"seed": 3, "beta": 4}, "extra_metrics.seed", "the engine has a field of this name"),
        (lambda self: None, "extra_metrics", "TypeError"),
    ],
)
def test_extra_metrics_that_cannot_be_kept(tmp_path, monkeypatch, extra, field, reason):
    monkeypatch.setattr(ToyZeroShot, "extra_metrics", extra)
    _, metrics = evaluated(monkeypatch, tmp_path)
    assert list(metrics["not_recorded"]) == [field]
    assert reason in metrics["not_recorded"][field]
    assert (metrics["seed"], metrics.get("beta")) == (1, 4 if field == "extra_metrics.seed" else None)


def test_results_that_are_no_numbers(tmp_path, monkeypatch):
    real = Classification.evaluate
    monkeypatch.setattr(Classification, "evaluate", lambda self: real(self) | {"each": np.ones(3)})
    _, metrics = evaluated(monkeypatch, tmp_path)
    assert list(metrics["not_recorded"]) == ["each"]
    assert metrics["accuracy"] == pytest.approx(100 / CLASSES)


def test_an_evaluator_that_knows_no_classes(tmp_path, monkeypatch):
    class Bare:
        def __init__(self, cfg, lab2cname):
            self.right = self.seen = 0

        def reset(self):
            self.right = self.seen = 0

        def process(self, outputs, labels):
            scores = outputs[0]  # of the trainer's two
            self.right, self.seen = self.right + int((scores.argmax(1) == labels).sum()), self.seen + len(labels)

        def evaluate(self):
            return {"accuracy": 100 * self.right / self.seen}

    monkeypatch.setattr("dassl.engine.trainer.build_evaluator", Bare)
    _, metrics = evaluated(monkeypatch, tmp_path)
    assert list(metrics["not_recorded"]) == ["per_class"]
