"""predict.py on a small run: the probabilities are those of the run's own evaluation."""

import json
import logging

import numpy as np
import pytest

import predict
import train


@pytest.fixture(scope="module")
def run(tmp_path_factory, repo_root):
    """A CoOp run of one epoch on base classes: its folder, its metrics and its test images by label."""
    folder = tmp_path_factory.mktemp("predict")
    words = ["--root", str(folder / "data"), "--seed", "1", "--trainer", "CoOp", "--output-dir", str(folder / "run")]
    words += ["--dataset-config-file", str(repo_root / "configs/datasets/drawn_thermal.yaml")]
    words += ["--config-file", str(repo_root / "configs/trainers/CoOp/tiny_vit_ep50_ctxv1.yaml")]
    opts = ["DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1"]
    train.run(train.build_parser().parse_args([*words, *opts]))
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    images = folder / "data" / "drawn_thermal" / "images"
    tests = json.loads((folder / "data" / "drawn_thermal" / "split.json").read_text())["test"]
    tests = [(str(images / path), name) for path, label, name in tests if label < metrics["num_classes"]]
    return folder / "run", metrics, tests


@pytest.fixture
def loud():
    """Leave the loggers as they were."""
    levels = {name: logging.getLogger(name).level for name in predict.LOGGERS}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_accuracy_is_that_of_the_run(run):
    folder, metrics, tests = run
    predictor = predict.Predictor(str(folder))
    assert predictor.classnames == [row["classname"] for row in metrics["per_class"]]
    probabilities = predictor([path for path, _ in tests])
    assert probabilities.shape == (metrics["num_test"], metrics["num_classes"])
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    right = [predictor.classnames[row.argmax()] == name for row, (_, name) in zip(probabilities, tests, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(metrics["accuracy"])


def test_features_give_the_probabilities(run):
    folder, _, tests = run
    predictor = predict.Predictor(str(folder))
    paths = [path for path, _ in tests[:5]]
    images, classes = predictor.features(paths), predictor.text_features()
    cosine = (images / np.linalg.norm(images, axis=1, keepdims=True)) @ (
        classes / np.linalg.norm(classes, axis=1, keepdims=True)
    ).T
    logits = float(predictor.trainer.backbone.logit_scale) * cosine
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    assert np.allclose(predictor(paths), expected, atol=1e-4)
    assert predictor([]).shape == (0, len(predictor.classnames))


def test_other_classes_and_the_data_set_is_left_as_it_was(run):
    from dassl.data.datasets import DATASET_REGISTRY

    folder, _, tests = run
    before = DATASET_REGISTRY.get("DrawnThermal")
    predictor = predict.Predictor(str(folder), classnames=["red circle", "blue star"])
    assert predictor([tests[0][0]]).shape == (1, 2)
    assert DATASET_REGISTRY.get("DrawnThermal") is before


def test_command_line(run, tmp_path, capsys, loud):
    folder, metrics, tests = run
    path, other = tests[0][0], tests[1][0]
    features = tmp_path / "f.npz"
    assert predict.main([str(folder), path, "--top", "2", "--features", str(features)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(path)
    assert line.count("%") == 2
    assert set(np.load(features)) == {"image_features", "text_features", "images", "classnames"}
    assert predict.main([str(folder), path, other, "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].count(",") == metrics["num_classes"]
    names = tmp_path / "names.txt"
    names.write_text("red circle\nblue star\n")
    assert predict.main([str(folder), path, "--format", "json", "--classes", str(names)]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert list(row["probabilities"]) == ["red circle", "blue star"]
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["{run}", "nowhere.jpg"], "nowhere.jpg"),
        (["{run}/nothing", "{image}"], "metrics.json"),
        (["{run}", "{folder}"], "holds no image"),
        (["{run}", "{image}", "--epoch", "7"], "model.pth.tar-7"),
    ],
)
def test_mistakes(run, tmp_path, capsys, loud, words, named):
    folder, _, tests = run
    places = {"run": folder, "image": tests[0][0], "folder": tmp_path}
    assert predict.main([word.format(**places) for word in words]) == 2
    assert named in capsys.readouterr().err


def test_an_unreadable_image_is_named(run, tmp_path, capsys, loud):
    folder, _, _ = run
    (tmp_path / "broken.png").write_text("no picture")
    assert predict.main([str(folder), str(tmp_path)]) == 2
    assert "broken.png" in capsys.readouterr().err
