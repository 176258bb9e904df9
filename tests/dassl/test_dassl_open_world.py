"""Measures of base against new images and of outliers: against scikit-learn, and by hand on ten rows."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from dassl.evaluation.detection import auroc, false_positive_rate, openworld_auc


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_detection_against_scikit_learn(seed, ties):
    rng = np.random.default_rng(seed)
    positives, negatives = rng.normal(1, 1, 1 + 40 * seed), rng.normal(0, 1, 57)
    if ties:
        positives, negatives = positives.round(0), negatives.round(0)
    labels = np.r_[np.ones(len(positives)), np.zeros(len(negatives))]
    scores = np.r_[positives, negatives]
    assert auroc(positives, negatives) == pytest.approx(roc_auc_score(labels, scores))
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    for recall in (0.5, 0.95, 1.0):
        assert false_positive_rate(positives, negatives, recall) == pytest.approx(false[np.argmax(true >= recall)])


def test_detection_by_hand_on_ten_rows():
    positives, negatives = np.array([0.9, 0.8, 0.7, 0.4]), np.array([0.8, 0.6, 0.3, 0.2, 0.1, 0.0])
    # below each positive: 6, 5 and a tie, 5, 4 of the 6
    assert auroc(positives, negatives) == (6 + 5.5 + 5 + 4) / 24
    assert false_positive_rate(positives, negatives) == 2 / 6, "all four are needed for 95%: the threshold is 0.4"
    assert false_positive_rate(positives, negatives, 0.75) == 1 / 6
    right_base, right_new = np.array([True, True, False, True]), np.array([True, True, True, True, False, True])
    pairs = itertools.product(zip(positives, right_base, strict=True), zip(negatives, right_new, strict=True))
    by_hand = sum(
        a_right * b_right * (1.0 if a > b else 0.5 if a == b else 0.0) for (a, a_right), (b, b_right) in pairs
    )
    assert openworld_auc(positives, right_base, negatives, right_new) == pytest.approx(by_hand / 24)
    assert openworld_auc(positives, right_base & False, negatives, right_new) == 0


@pytest.mark.parametrize("arrays", [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_what_cannot_be_compared(arrays):
    with pytest.raises(ValueError, match=r"samples of one kind|not a number"):
        auroc(*map(np.array, arrays))


def evaluator(name: str, subsample: str = "all"):
    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR, cfg.DATASET.SUBSAMPLE_CLASSES = name, subsample
    return build_evaluator(cfg, lab2cname={i: f"c{i}" for i in range(5)})


def test_open_world_against_an_independent_computation():
    """Five classes, three of them base; in batches."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)
    logits = rng.normal(0, 1, (200, 5)) + 1.5 * np.eye(5)[labels]
    made = evaluator("OpenWorld")
    for rows in np.array_split(np.arange(200), 7):
        made.process(torch.tensor(logits[rows], dtype=torch.float32), torch.tensor(labels[rows]))
    results = made.evaluate()
    base, answers = labels < 3, logits.argmax(1)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    score = probabilities[:, :3].max(1)
    a, b = (100 * accuracy_score(labels[kind], answers[kind]) for kind in (base, ~base))
    assert results["base_accuracy"] == pytest.approx(a)
    assert results["new_accuracy"] == pytest.approx(b)
    assert results["harmonic_mean"] == pytest.approx(2 * a * b / (a + b))
    assert results["accuracy"] == pytest.approx(100 * accuracy_score(labels, answers))
    assert results["base_new_auroc"] == pytest.approx(100 * roc_auc_score(base, score), abs=1e-4)
    own = np.where(base, logits[:, :3].argmax(1), 3 + logits[:, 3:].argmax(1)) == labels
    pairs = [own[i] and own[j] and score[i] > score[j] for i in np.flatnonzero(base) for j in np.flatnonzero(~base)]
    assert results["openworld_auc"] == pytest.approx(100 * np.mean(pairs), abs=1e-4)
    assert next(iter(results)) == "accuracy"
    made.reset()
    with pytest.raises(ValueError, match="no batch was processed"):
        made.kept()


def test_open_world_needs_all_classes():
    with pytest.raises(ValueError, match=r"DATASET\.SUBSAMPLE_CLASSES is 'new'"):
        evaluator("OpenWorld", "new")


def test_outliers_against_an_independent_computation():
    rng = np.random.default_rng(1)
    labels = np.r_[rng.integers(0, 5, 60), np.full(40, -1)]
    order = rng.permutation(100)
    labels = labels[order]
    cosines = rng.uniform(0.1, 0.2, (100, 5)) + 0.1 * np.where(labels[:, None] == np.arange(5), 1, 0)
    made = evaluator("OutOfDistribution")
    made.logit_scale = 100.0
    for rows in np.array_split(np.arange(100), 9):
        made.process(torch.tensor(100 * cosines[rows]), torch.tensor(labels[rows]))
    results = made.evaluate()
    inside = labels >= 0
    softmax = np.exp(cosines) / np.exp(cosines).sum(1, keepdims=True)
    energy = np.log(np.exp(100 * cosines).sum(1))
    for name, score in (("mcm", softmax.max(1)), ("energy", energy)):
        assert results[f"{name}_auroc"] == pytest.approx(100 * roc_auc_score(inside, score))
        false, true, _ = roc_curve(inside, score, drop_intermediate=False)
        assert results[f"{name}_fpr95"] == pytest.approx(100 * false[np.argmax(true >= 0.95)])
    assert results["accuracy"] == pytest.approx(100 * accuracy_score(labels[inside], cosines[inside].argmax(1)))
    assert results["num_ood"] == 40
    assert sum(row["total"] for row in made.per_class()) == 60


@pytest.mark.parametrize("label", [0, -1])
def test_both_kinds_of_images_are_needed(label):
    made = evaluator("OutOfDistribution")
    made.process(torch.rand(4, 5), torch.full((4,), label))
    with pytest.raises(ValueError, match=r"DATASET\.OOD adds others"):
        made.evaluate()
