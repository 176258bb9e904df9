"""`predictions.npz`: what an evaluation keeps of each image, and when it keeps nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl_toys import CLASSES, PER_CLASS, ToyTrainer, ToyZeroShot, toy_config

from dassl.engine import build_trainer
from dassl.evaluation import Classification, collector, predictions
from dassl.evaluation.collector import PredictionCollector
from dassl.evaluation.predictions import Predictions, file_bytes, read_predictions, write_predictions
from dassl.utils.digests import DamagedError

N, C = 30, 70


def run(monkeypatch, folder: Path, trainer: str = "ToyTrainer", **keys) -> tuple[object, dict]:
    """A trained toy, and its metrics."""
    made = build_trainer(toy_config(monkeypatch, folder, trainer, **keys))
    made.train() if trainer == "ToyTrainer" else made.test()
    return made, json.loads((folder / "out" / "metrics.json").read_text())


def collected(scores: torch.Tensor, labels: torch.Tensor, size: int = 8, scale: float = 1.0) -> Predictions:
    """What is kept of scores (N, C) that come in batches."""
    names = [f"/data/{number}.jpg" for number in range(len(labels))]
    made = PredictionCollector(names, "/data", scale)
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        made.add(scores[rows], labels[rows], {"impath": names[rows]})
    return made.collected([f"class {number}" for number in range(scores.shape[1])])


@pytest.fixture
def scores() -> torch.Tensor:
    return 5 * torch.randn(N, C, generator=torch.Generator().manual_seed(0)) + 20


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(N) % C


def test_a_run_keeps_its_answers(tmp_path, monkeypatch):
    trainer, metrics = run(monkeypatch, tmp_path)
    answers = read_predictions(tmp_path / "out" / "predictions.npz", metrics["predictions"]["digest"])
    assert len(answers) == CLASSES * PER_CLASS
    assert answers.accuracy == metrics["accuracy"]
    assert list(answers.classnames) == [f"shade_{label}" for label in range(CLASSES)]
    assert answers.paths[PER_CLASS] == "toy/1_0.png"
    assert answers.logit_scale == 1
    images = torch.cat([batch["img"] for batch in trainer.test_loader])
    expected = trainer.model(images).detach().numpy()
    error = np.abs(answers.logits - expected)
    assert (error <= 5e-4 * (expected.max(axis=1, keepdims=True) - expected) + 1e-5).all()


def test_near_the_top_logits_keep_their_digits(scores, labels):
    """Half precision alone would round 20 to the next 0.016."""
    answers = collected(scores, labels)
    close = answers.relative_logits() > -1
    np.testing.assert_allclose(answers.logits[close], scores.numpy()[close], atol=3e-4)
    assert answers.top is None
    assert np.array_equal(answers.predicted, scores.argmax(1))


def test_rounding_does_not_change_the_answer():
    """Two logits that half precision cannot tell apart, and two that are equal."""
    scores = torch.tensor([[1.0, 1.0 + 1e-7, 0.0], [2.0, 2.0, 1.0], [0.0, 1.0, 1.0 + 2e-7]])
    answers = collected(scores, torch.tensor([1, 0, 2]))
    assert answers.predicted.tolist() == [1, 0, 2]
    assert answers.accuracy == 100.0


def test_the_largest_of_a_long_list(scores, labels, monkeypatch):
    """Above the limit: the kept classes and the true one keep their probabilities, the others share what is left."""
    full = collected(scores, labels, scale=10.0)
    monkeypatch.setattr(predictions, "FULL_LIMIT", N * C - 1)
    some = collected(scores, labels, scale=10.0)
    assert some.relative.shape == some.top.shape == (N, predictions.TOP)
    assert some.top.dtype == np.uint8
    assert np.array_equal(some.predicted, full.predicted)
    expected, got = (answers.log_probabilities() for answers in (full, some))
    kept = np.zeros((N, C), bool)
    np.put_along_axis(kept, some.top.astype(int), True, axis=1)
    kept[np.arange(N), labels] = True
    np.testing.assert_allclose(got[kept], expected[kept], atol=2e-3)
    np.testing.assert_allclose(np.exp(got).sum(axis=1), 1)
    left = np.where(kept, 0, np.exp(expected)).sum(axis=1)
    np.testing.assert_allclose(np.where(kept, 0, np.exp(got)).sum(axis=1), left, atol=1e-4)
    exact = torch.softmax(scores.double() / 10, dim=1).max(dim=1).values
    np.testing.assert_allclose(np.exp(-some.logsumexp_cosine), exact, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0, np.linspace(0.5, 3, N)])
def test_log_probabilities(scores, labels, temperature):
    expected = torch.log_softmax(scores.double() / torch.as_tensor(temperature).reshape(-1, 1), dim=1)
    np.testing.assert_allclose(collected(scores, labels).log_probabilities(temperature), expected, atol=0.05)


def test_selecting_images(scores, labels):
    answers = collected(scores, labels)
    some = answers.select(np.array([3, 5]))
    assert some.paths.tolist() == ["3.jpg", "5.jpg"]
    assert np.array_equal(some.logits, answers.logits[[3, 5]])
    assert len(answers.select(answers.correct)) == answers.correct.sum()


def test_the_device_keeps_a_bounded_amount(labels):
    """Of ImageNet's 50,000 images and 1,000 classes it would be 200 MB in float32."""
    made = PredictionCollector(range(50_000), "/data")
    kept = made._kept(torch.zeros(N, 1000), labels)
    assert sum(part.nbytes for part in kept.values()) / N * 50_000 < 20e6
    assert file_bytes(50_000, 1000) < 13e6
    assert file_bytes(19_850, 397) < 2 * predictions.FULL_LIMIT + 1e6


def test_a_file_takes_no_more_than_is_said(scores, labels, tmp_path, monkeypatch):
    for limit in (N * C, 0):
        monkeypatch.setattr(predictions, "FULL_LIMIT", limit)
        answers = collected(scores.repeat(40, 1) * torch.rand(40 * N, C), labels.repeat(40))
        write_predictions(tmp_path / "predictions.npz", answers)
        assert 0.5 < (tmp_path / "predictions.npz").stat().st_size / file_bytes(40 * N, C) <= 1


def test_paths_outside_the_root_are_whole(labels):
    made = PredictionCollector([], "/data/a")
    made.add(torch.eye(3), torch.arange(3), {"impath": ["/data/a/b/x.jpg", "/data/ab/x.jpg", "/data/a/../x.jpg"]})
    assert made.collected(["a", "b", "c"]).paths.tolist() == ["b/x.jpg", "/data/ab/x.jpg", "/data/x.jpg"]


# -- nothing is kept, nothing breaks -----------------------------------------------------------------------------------


class OwnScores(Classification):
    """Counts the second best answer."""

    def process(self, mo, gt):
        super().process(-mo, gt)


class OwnNumber(Classification):
    def evaluate(self):
        return {"mean_rank": 1.5}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"evaluator": OwnScores}, "the evaluator's accuracy is"),
        ({"evaluator": OwnNumber}, "the evaluator's accuracy is None"),
        ({"inference": lambda self, x: {"scores": x.mean(dim=(2, 3))}}, "the model returns no scores"),
        ({"inference": lambda self, x: x.argmax(1)}, "the model returns no scores"),
        ({"inference": lambda self, x: -torch.inf * torch.ones(len(x), 3)}, "numbers"),
        ({"batch": lambda self, batch: (batch.pop("impath"), SIMPLE(self, batch))[1]}, "do not say the paths"),
    ],
)
def test_what_is_no_prediction(tmp_path, monkeypatch, change, reason):
    class Lenient(change.get("evaluator", Classification)):
        def process(self, mo, gt):
            super().process(mo if isinstance(mo, torch.Tensor) and mo.ndim == 2 else torch.eye(3)[gt], gt)

    monkeypatch.setattr("dassl.engine.trainer.build_evaluator", Lenient)
    if "inference" in change:
        monkeypatch.setattr(ToyTrainer, "model_inference", change["inference"])
    if "batch" in change:
        monkeypatch.setattr(ToyTrainer, "parse_batch_test", change["batch"])
    trainer, metrics = run(monkeypatch, tmp_path)
    assert list(metrics["predictions"]) == ["not_kept"]
    assert reason in metrics["predictions"]["not_kept"]
    assert not (tmp_path / "out" / "predictions.npz").exists()
    assert trainer.last_result is not None


SIMPLE = ToyTrainer.parse_batch_test


def test_a_full_disk(tmp_path, monkeypatch):
    """What was there before is of another evaluation and goes."""
    trainer, _ = run(monkeypatch, tmp_path, "ToyZeroShot")
    assert (tmp_path / "out" / "predictions.npz").is_file()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(collector, "write_predictions", full)
    trainer.test()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "No space left" in metrics["predictions"]["not_kept"]
    assert not (tmp_path / "out" / "predictions.npz").exists()


def test_switched_off(tmp_path, monkeypatch):
    run(monkeypatch, tmp_path, "ToyZeroShot")
    _, metrics = run(monkeypatch, tmp_path, "ToyZeroShot", TEST__KEEP_PREDICTIONS=False)
    assert metrics["predictions"] == {"not_kept": "TEST.KEEP_PREDICTIONS is False"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metrics.json"]


def test_validation_images_too(tmp_path, monkeypatch):
    """Only where a test is asked for, and in a file of their own; without it an older one goes."""
    trainer, metrics = run(monkeypatch, tmp_path, TEST__KEEP_VAL_PREDICTIONS=True)
    assert set(metrics["predictions"]) == {"file", "digest", "val_file", "val_digest"}
    val = read_predictions(tmp_path / "out" / "predictions-val.npz", metrics["predictions"]["val_digest"])
    assert [f"{tmp_path}/{path}" for path in val.paths] == [item.impath for item in trainer.dm.dataset.val]
    assert val.accuracy == trainer.test("val")
    trainer.cfg.defrost()
    trainer.cfg.TEST.KEEP_VAL_PREDICTIONS = False
    trainer.history = []
    (tmp_path / "out" / "metrics.json").unlink()
    trainer.test()
    assert not (tmp_path / "out" / "predictions-val.npz").exists()


def test_a_second_output_is_no_hindrance(tmp_path, monkeypatch):
    _, metrics = run(monkeypatch, tmp_path, "ToyZeroShot")
    assert isinstance(
        ToyZeroShot.model_inference(build_trainer(toy_config(monkeypatch, tmp_path)), torch.eye(2)), tuple
    )
    answers = read_predictions(tmp_path / "out" / "predictions.npz")
    assert set(answers.predicted.tolist()) == {1}
    assert answers.accuracy == metrics["accuracy"]


# -- the pair ----------------------------------------------------------------------------------------------------------


def test_a_file_of_another_evaluation(scores, labels, tmp_path):
    path = tmp_path / "predictions.npz"
    digest = write_predictions(path, collected(scores, labels))
    assert len(read_predictions(path, digest)) == N
    write_predictions(path, collected(scores + torch.eye(N, C), labels))
    with pytest.raises(DamagedError, match=r"is of another evaluation than the metrics\.json beside it"):
        read_predictions(path, digest)


def test_one_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_predictions(tmp_path / "predictions.npz")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": np.full(N, C)}, f"labels are from {C} to {C}, but there are {C} classes"),
        ({"predicted": np.full(N, -1)}, "predicted are from -1"),
        ({"paths": np.arange(N)}, "paths has the shape .* and the type"),
        ({"largest": np.full(N, np.nan, np.float32)}, "largest is not finite"),
        ({"largest": np.zeros(N + 1, np.float32)}, "largest has the shape"),
        ({"relative": np.ones((N, C), np.float16)}, "relative has logits above the largest"),
        ({"relative": np.full((N, C), np.nan, np.float16)}, "or that are no numbers"),
        ({"logit_scale": -1.0}, "logit_scale is -1"),
        ({"top": np.zeros((N, C), np.uint8)}, "there are only top"),
        ({"text_features": np.zeros((C + 1, 2), np.float16)}, f"text_features has {C + 1} rows"),
        ({"classnames": np.array([], str)}, "0 classes"),
    ],
)
def test_arrays_that_are_of_no_evaluation(scores, labels, tmp_path, change, sentence):
    answers = Predictions(**{**vars(collected(scores, labels)), **change})
    write_predictions(tmp_path / "predictions.npz", answers)
    with pytest.raises(DamagedError, match=sentence):
        read_predictions(tmp_path / "predictions.npz")


def test_a_file_with_objects_or_other_names(tmp_path):
    path = tmp_path / "predictions.npz"
    for arrays in ({"labels": np.array([object()])}, {"other": np.zeros(3)}, {}):
        np.savez(path, **arrays)
        with pytest.raises(DamagedError, match="holds no predictions, or is damaged"):
            read_predictions(path)
