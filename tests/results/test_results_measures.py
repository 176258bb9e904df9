"""Each measure of stored answers against scikit-learn, or against ten rows by hand."""

import numpy as np
import pytest
from answers import make_answers
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from dassl.evaluation import predictions
from dassl.evaluation.predictions import Predictions
from results import measures
from results.measures import MEASURES, ImageScores, image_scores


@pytest.fixture(scope="module")
def answers() -> Predictions:
    return make_answers(500, 7)


@pytest.fixture(scope="module")
def probabilities(answers) -> np.ndarray:
    return softmax(answers.relative.astype(np.float64), axis=1)


@pytest.fixture(scope="module")
def scores(answers) -> ImageScores:
    return image_scores(answers)


# ten images: confidence and whether the answer is right
TEN = ImageScores(
    confidence=np.array([0.95, 0.93, 0.90, 0.72, 0.70, 0.55, 0.52, 0.40, 0.38, 0.33]),
    correct=np.array([1, 1, 0, 1, 0, 1, 0, 0, 1, 0], np.float64),
    nll=np.zeros(10),
    brier=np.zeros(10),
)


def test_log_loss(answers, probabilities):
    assert MEASURES["nll"].compute(image_scores(answers)) == pytest.approx(log_loss(answers.labels, probabilities))


def test_brier(answers, probabilities, scores):
    expected = brier_score_loss(answers.labels, probabilities, scale_by_half=False)
    assert MEASURES["brier"].compute(scores) == pytest.approx(100 * expected)


def test_auroc(answers, probabilities, scores):
    expected = 100 * roc_auc_score(answers.correct, probabilities.max(axis=1))
    assert MEASURES["auroc"].compute(scores) == pytest.approx(expected)


def test_auroc_with_equal_values():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(2, 7, 40).astype(float), rng.integers(0, 5, 60).astype(float)
    truth = np.repeat([1, 0], [40, 60])
    expected = 100 * roc_auc_score(truth, np.concatenate([positive, negative]))
    assert measures.auroc(positive, negative) == pytest.approx(expected)
    assert measures.auroc(positive, np.array([])) is None


def test_reliability_is_that_of_scikit_learn(answers, probabilities, scores):
    """Accuracy and confidence of each bin that has images."""
    accuracy, confidence = calibration_curve(answers.correct, probabilities.max(axis=1), n_bins=measures.BINS)
    bins = measures.equal_width_bins(scores)
    there = bins.count > 0
    np.testing.assert_allclose(bins.correct[there] / bins.count[there], accuracy)
    np.testing.assert_allclose(bins.confidence[there] / bins.count[there], confidence)
    weights = bins.count[there] / 500
    assert MEASURES["ece"].compute(scores) == pytest.approx(100 * (weights * np.abs(accuracy - confidence)).sum())
    assert MEASURES["mce"].compute(scores) == pytest.approx(100 * np.abs(accuracy - confidence).max())


def test_ten_rows_in_two_bins_by_hand():
    """(0.5, 1]: seven images, confidences sum to 5.27, four right; [0, 0.5]: three, 1.11, one right."""
    bins = measures.equal_width_bins(TEN, 2)
    assert bins.count.tolist() == [3, 7]
    assert bins.expected_error() == pytest.approx(100 * ((5.27 - 4) + (1.11 - 1)) / 10)
    assert bins.gaps().max() == pytest.approx(100 * (5.27 - 4) / 7)


def test_ten_rows_in_three_equal_parts_by_hand():
    """By rising confidence: 4 images (1.63, 1 right), 3 (1.97, 2 right), 3 (2.78, 2 right)."""
    bins = measures.equal_mass_bins(TEN, 3)
    assert bins.count.tolist() == [4, 3, 3]
    assert bins.expected_error() == pytest.approx(100 * (0.63 + 0.03 + 0.78) / 10)


def test_bins_close_above():
    edge = ImageScores(np.array([0.0, 0.5, 0.5000001, 1.0]), np.ones(4), np.zeros(4), np.zeros(4))
    assert measures.equal_width_bins(edge, 2).count.tolist() == [2, 2]


def test_ten_rows_of_risk_over_coverage_by_hand():
    risk = measures.risk_coverage(TEN)
    assert risk == pytest.approx([0, 0, 1 / 3, 1 / 4, 2 / 5, 2 / 6, 3 / 7, 4 / 8, 4 / 9, 5 / 10])
    assert MEASURES["aurc"].compute(TEN) == pytest.approx(100 * risk.mean())


def test_equal_confidences_share_their_errors():
    """Whatever the order of the images is."""
    for correct in ([1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]):
        same = ImageScores(np.full(4, 0.5), np.array(correct, float), np.zeros(4), np.zeros(4))
        assert measures.risk_coverage(same).tolist() == [0.5] * 4


def test_blocks_change_nothing(answers, scores, monkeypatch):
    monkeypatch.setattr(measures, "BLOCK", 50)
    temperatures = np.linspace(0.5, 2, len(answers))
    whole = image_scores(answers, temperatures)
    monkeypatch.undo()
    np.testing.assert_array_equal(image_scores(answers, temperatures).nll, whole.nll)
    assert scores.nll.shape == whole.nll.shape


def test_measures_of_the_top_classes_alone(monkeypatch):
    """Of 80 classes 50 are kept: probabilities of answer and truth are exact, the Brier score nearly."""
    torch = pytest.importorskip("torch")
    from dassl.evaluation.collector import PredictionCollector

    whole = make_answers(300, 80)
    monkeypatch.setattr(predictions, "FULL_LIMIT", 0)
    made = PredictionCollector(range(300), "/")
    made.add(torch.from_numpy(whole.logits), torch.from_numpy(whole.labels), {"impath": whole.paths.tolist()})
    top = made.collected(whole.classnames.tolist())
    assert top.top is not None
    for name, measure in MEASURES.items():
        full, part = (measure.compute(image_scores(each)) for each in (whole, top))
        assert part == pytest.approx(full, rel=2e-3), name


# -- temperatures


def test_best_temperature(answers):
    """By trying many; and logits that are too sharp by 3 get one that is 3 times as high."""
    logits = answers.relative.astype(np.float64)
    tried = np.exp(np.linspace(-2, 2, 2001))
    losses = [-log_softmax(logits / t, axis=1)[np.arange(500), answers.labels].mean() for t in tried]
    best = measures.best_temperature(answers)
    assert best == pytest.approx(tried[np.argmin(losses)], rel=3e-3)
    sharp = Predictions(**{**vars(answers), "relative": (answers.relative * np.float16(3)).astype(np.float16)})
    assert measures.best_temperature(sharp) == pytest.approx(3 * best, rel=5e-3)
    before, after = (image_scores(sharp, t).nll.mean() for t in (1.0, 3 * best))
    assert after < before


def test_proximity_by_hand():
    """Two nearest of three training classes, at angles of 90, 60 and 180 degrees: distances root 2 and 1."""
    own = np.array([[2.0, 0.0]])
    trained = np.array([[0, 5.0], [0.5, np.sqrt(0.75)], [-1, 0]])
    assert measures.proximity(own, trained, 2) == pytest.approx(np.exp(-(np.sqrt(2) + 1) / 2))


def test_distance_aware_temperatures():
    """A class that training moved away from those trained on gets less confidence; trained ones stay."""
    trained = make_answers(20, 4, names="base")
    new = make_answers(60, 3, seed=1, names="new")
    near = np.tile(trained.frozen_text_features.mean(axis=0), (3, 1))
    text = near.copy()
    text[1] = -text[1]
    names = np.array(["base 0", "new 1", "new 2"])
    changed = {"text_features": text, "frozen_text_features": near, "classnames": names}
    own = Predictions(**{**vars(new), **changed})
    base = Predictions(**{**vars(trained), "text_features": trained.frozen_text_features})
    found = measures.distance_aware_temperatures(own, base)
    frozen = base.frozen_text_features.astype(float)
    moved = measures.proximity(text.astype(float), frozen)[1] / measures.proximity(near.astype(float), frozen)[1]
    assert moved < 1
    assert set(found[own.predicted == 0]) == {1.0}
    assert found[own.predicted == 1] == pytest.approx(1 / moved)
    assert found[own.predicted == 2] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no class features"):
        measures.distance_aware_temperatures(Predictions(**{**vars(own), "text_features": None}), base)
