"""The evaluator and the metrics."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

from dassl.config import get_cfg_default
from dassl.evaluation import Classification, build_evaluator
from dassl.metrics import compute_accuracy, compute_distance_matrix


def _scores(predictions, classes):
    return torch.eye(classes)[torch.as_tensor(predictions)]


def _evaluator(**keys):
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    for key, value in keys.items():
        cfg.TEST[key] = value
    return cfg, build_evaluator(cfg, lab2cname={0: "cat", 1: "dog", 2: "emu"})


def test_figures_equal_scikit_learns():
    rng = np.random.default_rng(0)
    _, evaluator = _evaluator()
    labels, predictions = rng.integers(0, 6, 200), rng.integers(0, 7, 200)  # class 6 is predicted but never right
    for part in np.array_split(np.arange(200), 3):
        evaluator.process(_scores(predictions[part], 8), torch.from_numpy(labels[part]))
    results = evaluator.evaluate()
    accuracy = 100 * (labels == predictions).mean()
    f1 = 100 * f1_score(labels, predictions, average="macro", labels=np.unique(labels))
    expected = {"accuracy": accuracy, "error_rate": 100 - accuracy, "macro_f1": f1}
    assert list(results) == list(expected)
    assert results == pytest.approx(expected, rel=1e-12)


def test_lines(capsys):
    _, evaluator = _evaluator(PER_CLASS_RESULT=True)
    evaluator.process(_scores([0, 0, 1, 2], 3), torch.tensor([0, 0, 0, 2]))
    results = evaluator.evaluate()
    assert capsys.readouterr().out.splitlines() == [
        "=> result",
        "* total: 4",
        "* correct: 3",
        "* accuracy: 75.00%",
        "* error: 25.00%",
        "* macro_f1: 90.00%",
        "=> per-class result",
        "* class: 0 (cat)\ttotal: 3\tcorrect: 2\tacc: 66.67%",
        "* class: 2 (emu)\ttotal: 1\tcorrect: 1\tacc: 100.00%",
        "* average: 83.33%",
    ]
    assert results["perclass_accuracy"] == pytest.approx(250 / 3)
    row = {"label": 0, "classname": "cat", "total": 3, "correct": 2, "accuracy": pytest.approx(200 / 3)}
    assert evaluator.per_class()[0] == row
    evaluator.reset()
    evaluator.process(_scores([1] * 1234, 3), torch.ones(1234).long())
    evaluator.evaluate()
    assert "* total: 1,234\n* correct: 1,234\n* accuracy: 100.00%\n" in capsys.readouterr().out


def test_confusion_matrix(tmp_path, capsys):
    cfg, evaluator = _evaluator(COMPUTE_CMAT=True)
    cfg.OUTPUT_DIR = str(tmp_path)
    labels, predictions = [0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 2, 2]
    evaluator.process(_scores(predictions, 3), torch.tensor(labels))
    evaluator.evaluate()
    path = tmp_path / "cmat.pt"
    assert f"Confusion matrix is saved to {path}" in capsys.readouterr().out
    expected = confusion_matrix(labels, predictions, normalize="true")
    np.testing.assert_allclose(torch.load(path, weights_only=True).numpy(), expected)


def test_mistakes_are_named():
    _, evaluator = _evaluator()
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match=r"scores \(B, C\)"):
        evaluator.process(torch.zeros(3), torch.zeros(3))
    evaluator.process(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="labels from 0 to 3 do not fit scores for 3 classes"):
        evaluator.evaluate()
    evaluator.reset()
    evaluator.process(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), torch.tensor([1, 1]))
    with pytest.raises(FloatingPointError, match="1 of 2 samples are NaN"):
        evaluator.evaluate()
    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "Clasification"
    with pytest.raises(ValueError, match="Classification"):
        build_evaluator(cfg)


def test_compute_accuracy():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.5, 0.4, 0.1]])
    top1, top2 = compute_accuracy((scores, "features"), torch.tensor([1, 1, 2, 2]), topk=(1, 2))
    assert (top1.item(), top2.item()) == (50.0, 75.0)
    assert compute_accuracy(scores, torch.tensor([1, 0, 2, 0]))[0].shape == (1,)


def test_distances():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    assert compute_distance_matrix(a, b).flatten().tolist() == [1.0, 2.0]
    cosine = compute_distance_matrix(a, b, "cosine").flatten().tolist()
    assert cosine == pytest.approx([1 - 0.5**0.5] * 2)
    with pytest.raises(ValueError, match="metric"):
        compute_distance_matrix(a, b, "manhattan")
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2,\)"):
        compute_distance_matrix(a, b[0].repeat(1))


# Evaluators of others


class Calibration(Classification):
    """Replaces `reset` and `process` without calling them, needs attributes of its own, adds a result."""

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg, lab2cname)
        self.bins = 2
        self.reset()

    def reset(self):
        self._correct = 0
        self._total = 0
        self._y_true = []
        self._y_pred = []
        self._confidences = [[] for _ in range(self.bins)]
        if self._per_class_res is not None:
            self._per_class_res.clear()

    def process(self, mo, gt):
        confidence, pred = mo.softmax(1).max(1)
        matches = pred.eq(gt).float()
        self._correct += int(matches.sum().item())
        self._total += gt.shape[0]
        self._y_true.extend(gt.data.cpu().numpy().tolist())
        self._y_pred.extend(pred.data.cpu().numpy().tolist())
        self._confidences[0].extend(confidence.tolist())
        if self._per_class_res is not None:
            for i, label in enumerate(gt):
                self._per_class_res[label.item()].append(int(matches[i].item()))

    def evaluate(self):
        results = super().evaluate()
        results["confidence"] = sum(self._confidences[0]) / self._total
        return results


class Counts(Classification):
    """Keeps nothing but the two numbers."""

    def reset(self):
        self.correct_of_mine = self._correct = self._total = 0

    def process(self, mo, gt):
        self._correct += int((mo.argmax(1) == gt).sum())
        self._total += len(gt)


def test_a_subclass_with_a_reset_and_a_process_of_its_own(capsys):
    cfg, own = _evaluator(PER_CLASS_RESULT=True)
    theirs = Calibration(cfg, lab2cname={0: "cat", 1: "dog", 2: "emu"})
    assert theirs._per_class_res == {}
    results = []
    for evaluator in (own, theirs):
        evaluator.reset()
        evaluator.process(_scores([0, 0, 1], 3), torch.tensor([0, 0, 0]))
        evaluator.process(_scores([2], 3), torch.tensor([2]))
        results.append((evaluator.evaluate(), capsys.readouterr().out, evaluator.per_class()))
        assert (evaluator._correct, evaluator._total) == (3, 4)
        assert (evaluator._y_true, evaluator._y_pred) == ([0, 0, 0, 2], [0, 0, 1, 2])
        assert evaluator._per_class_res == {0: [1, 1, 0], 2: [1]}
    assert results[1][0].pop("confidence") == pytest.approx(float(torch.eye(3)[0].softmax(0).max()))
    assert results[0] == results[1]


def test_a_subclass_that_keeps_only_counts(capsys):
    cfg, _ = _evaluator(PER_CLASS_RESULT=True, COMPUTE_CMAT=True)
    evaluator = Counts(cfg)
    evaluator.process(_scores([0, 0, 1, 2], 3), torch.tensor([0, 0, 0, 2]))
    assert evaluator.evaluate() == {"accuracy": 75.0, "error_rate": 25.0}
    assert evaluator.per_class() == []
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["=> result", "* total: 4", "* correct: 3", "* accuracy: 75.00%", "* error: 25.00%"]
    with pytest.raises(ValueError, match="nothing to evaluate"):
        Counts(cfg).evaluate()


def test_without_per_class_results_there_is_no_table():
    _, evaluator = _evaluator()
    evaluator.process(_scores([1], 3), torch.tensor([1]))
    assert evaluator._per_class_res is None
