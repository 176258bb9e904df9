"""predict.py on small runs: its probabilities are those of the run itself, and a checkpoint is all that it needs."""

import json
import os
import re
import shutil
import textwrap
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import train
import trainers  # noqa: F401 - registers
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils.digests import with_digest
from results.prediction_files import Writer, feature_archive
from sweep.method_configs import config_of

ROOT = Path(__file__).resolve().parents[2]
OPTS = ["DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1"]


def _tiny(name: str) -> str:
    """A trainer's configuration file for the carried CLIP; "" if it has none."""
    try:
        with chdir(ROOT):
            return config_of(name, "all", "drawn_thermal", 2)
    except ValueError:
        return ""


CONFIGS = {name: config for name in TRAINER_REGISTRY.registered_names() if (config := _tiny(name))}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The root of the data sets."""
    return tmp_path_factory.mktemp("data")


def _config(name: str, data: Path, output: Path):
    words = ["--root", str(data), "--seed", "1", "--trainer", name, "--output-dir", str(output)]
    words += ["--dataset-config-file", str(ROOT / "configs/datasets/drawn_thermal.yaml")]
    words += ["--config-file", str(ROOT / f"configs/trainers/{CONFIGS[name]}.yaml"), *OPTS]
    return train.build_config(train.build_parser().parse_args(words))


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A CoOp run of one epoch on base classes: its folder, its metrics and its test images by label."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    build_trainer(_config("CoOp", data, folder)).train()
    metrics = json.loads((folder / "metrics.json").read_text())
    images = data / "drawn_thermal" / "images"
    tests = json.loads((data / "drawn_thermal" / "split.json").read_text())["test"]
    tests = [(str(images / path), name) for path, label, name in tests if label < metrics["num_classes"]]
    return folder, metrics, tests


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def any_run(request, data, tmp_path_factory):
    """A run of any trainer: its name, its folder, eight test images, their probabilities by the run itself."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    trainer = build_trainer(_config(request.param, data, folder))
    trainer.train()
    batch = next(iter(trainer.test_loader))
    with torch.no_grad():
        logits = trainer.model_inference(trainer.parse_batch_test(batch)[0])
    if trainer.get_model_names():
        (folder / "metrics.json").unlink()
    return request.param, folder, batch["impath"][:8], torch.softmax(logits.float(), dim=-1)[:8].numpy()


def test_there_are_trainers():
    assert len(CONFIGS) > 15


def test_a_checkpoint_is_all_that_is_needed(any_run, tmp_path):
    _, folder, paths, expected = any_run
    again = predict.Predictor(folder)(paths)
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, expected, atol=1e-5)
    for file in folder.glob("*/model.pth.tar-*"):
        np.testing.assert_array_equal(predict.Predictor(shutil.copy(file, tmp_path))(paths), again)


def test_other_classes_are_served_or_refused(any_run):
    _, folder, paths, _ = any_run
    names = ["red circle", "blue star", "zebra"]
    predictor = predict.Predictor(folder)
    if predictor.trainer.class_transfer(predictor.trainer.cfg) != "any":
        with pytest.raises(ValueError, match="belongs to its classes"):
            predict.Predictor(folder, classnames=names)
    else:
        other = predict.Predictor(folder, classnames=names)(paths)
        assert other.shape == (len(paths), 3)
        np.testing.assert_allclose(other.sum(axis=1), 1, atol=1e-5)


def test_exported_features(any_run, tmp_path):
    name, folder, paths, expected = any_run
    predictor = predict.Predictor(folder)
    with feature_archive(str(tmp_path / "f.npz"), paths, predictor) as archive:
        for answers in predictor.stream(paths, features=True):
            archive.add(answers)
    arrays = np.load(tmp_path / "f.npz")
    n, c, e = len(paths), len(predictor.classnames), predictor.trainer.backbone.embed_dim
    shapes = {"images": (n,), "classnames": (c,), "probabilities": (n, c), "image_features": (n, e)}
    shapes |= {} if name == "CoCoOp" else {"text_features": (c, e)}
    assert {key: arrays[key].shape for key in arrays} == shapes
    assert [str(path) for path in arrays["images"]] == list(paths)
    assert [str(text) for text in arrays["classnames"]] == predictor.classnames
    for key in shapes.keys() - {"images", "classnames"}:
        assert arrays[key].dtype == np.float32
        assert np.isfinite(arrays[key]).all()
    np.testing.assert_allclose(arrays["probabilities"], expected, atol=1e-5)


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
    with pytest.raises(ValueError, match="no image"):
        predictor([])


def test_other_classes_and_the_data_set_is_left_as_it_was(run):
    from dassl.data.datasets import DATASET_REGISTRY

    folder, _, tests = run
    before = DATASET_REGISTRY.get("DrawnThermal")
    predictor = predict.Predictor(str(folder), classnames=["red circle", "blue star"])
    assert predictor([tests[0][0]]).shape == (1, 2)
    assert DATASET_REGISTRY.get("DrawnThermal") is before


def test_command_line(run, tmp_path, capsys):
    folder, metrics, tests = run
    path, other = tests[0][0], tests[1][0]
    features = tmp_path / "f.npz"
    assert predict.main([str(folder), path, "--top", "2", "--features", str(features)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(path)
    assert line.count("%") == 2
    assert {"image_features", "text_features", "probabilities"} < set(np.load(features))
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
        (["{run}/nothing", "{image}"], "holds no checkpoint"),
        (["{run}", "{image}", "--opts", "MODEL.BACKBONE.PATH", "gone.pt"], "gone.pt"),
        (["{run}", "{image}", "--opts", "MODEL.BACKBON.PATH", "x"], "MODEL.BACKBONE"),
        (["{run}", "{folder}"], "holds no image"),
        (["{run}", "{image}", "--epoch", "7"], "model.pth.tar-7"),
        (["{run}", "{image}", "--classes", "clases.txt"], "--classes clases.txt: there is no such file"),
        (["{run}", "{image}", "--classes", "lists/classes"], "there is no such file"),
        (["{run}", "{image}", "--classes", "{image}"], "the file is no text"),
        (["{run}", "{image}", "--classes", ","], "no name of a class"),
        (["{run}", "{image}", "--top", "0"], "--top 0"),
        (["{run}", "{image}", "--features", "{image}/f.npz"], "cannot be written: "),
        (["{image}", "{image}"], "is no checkpoint"),
        (["{text}", "{image}"], "text.md"),
    ],
)
def test_mistakes(run, tmp_path, capsys, words, named):
    folder, _, tests = run
    places = {"run": folder, "image": tests[0][0], "folder": tmp_path / "empty", "text": tmp_path / "text.md"}
    places["folder"].mkdir()
    places["text"].write_text("# no checkpoint\n")
    assert predict.main([word.format(**places) for word in words]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1
    assert "weights_only" not in said


@pytest.mark.parametrize(
    ("key", "value", "flag"),
    [
        ("NAME", "{place}", "--opts MODEL.BACKBONE.NAME"),
        ("NAME", "hf-hub:someone/repository", "--opts MODEL.BACKBONE.NAME"),
        ("NAME", "local-dir:{place}", "--opts MODEL.BACKBONE.NAME"),
        ("NAME", "../weights.pt", "--opts MODEL.BACKBONE.NAME"),
        ("PATH", "{place}", "--opts MODEL.BACKBONE.PATH"),
    ],
)
@pytest.mark.parametrize("form", ["checkpoint", "record"])
def test_a_run_of_others_does_not_choose_what_is_read(run, tmp_path, capsys, key, value, flag, form, monkeypatch):
    """A path in a checkpoint is not even opened: no reader of weights is called."""
    monkeypatch.setattr("adaptation.trainer.load_backbone", lambda *args: pytest.fail(f"read {args}"))
    value, source = value.format(place=tmp_path / "place.pt"), tmp_path / "model.pth.tar-1"
    (tmp_path / "place.pt").write_bytes(b"")
    if form == "checkpoint":
        checkpoint = torch.load(next(run[0].glob("*/model.pth.tar-1")), weights_only=True)
        checkpoint["config"]["MODEL"]["BACKBONE"][key] = value
        torch.save(with_digest(checkpoint), source)
    else:
        source = tmp_path
        record = json.loads((run[0] / "metrics.json").read_text())
        record["config"]["MODEL"]["BACKBONE"][key] = value
        (tmp_path / "metrics.json").write_text(json.dumps(record))
    assert predict.main([str(source), run[2][0][0]]) == 2
    said = capsys.readouterr().err
    assert flag in said
    assert value in said
    assert said.count("\n") == 1


def test_places_of_a_run_s_configuration_are_not_visited(run, tmp_path):
    """The image folder, the output folder and the weights to start from are the runner's own affair."""
    checkpoint = torch.load(next(run[0].glob("*/model.pth.tar-1")), weights_only=True)
    config, gone = checkpoint["config"], str(tmp_path / "gone")
    config["OUTPUT_DIR"] = config["RESUME"] = config["DATASET"]["ROOT"] = config["MODEL"]["INIT_WEIGHTS"] = gone
    torch.save(with_digest(checkpoint), tmp_path / "model.pth.tar-1")
    expected = predict.Predictor(run[0])([run[2][0][0]])
    assert (predict.Predictor(tmp_path / "model.pth.tar-1")([run[2][0][0]]) == expected).all()
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "change", [{"config": 3}, {"config": {"MODEL": 5}}, {"classnames": "cat"}, {"classnames": [1]}]
)
def test_a_checkpoint_of_other_types_is_refused(run, tmp_path, capsys, change):
    checkpoint = torch.load(next(run[0].glob("*/model.pth.tar-1")), weights_only=True)
    torch.save(with_digest({**checkpoint, **change}), tmp_path / "model.pth.tar-1")
    assert predict.main([str(tmp_path / "model.pth.tar-1"), run[2][0][0]]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_class_names_may_hold_dots_and_slashes():
    assert predict.read_classes("St. Bernard,and/or") == ["St. Bernard", "and/or"]
    assert predict.read_classes("St. Bernard") == ["St. Bernard"]


def test_an_unreadable_image_is_named(run, tmp_path, capsys):
    folder, _, _ = run
    (tmp_path / "broken.png").write_text("no picture")
    assert predict.main([str(folder), str(tmp_path)]) == 2
    assert "broken.png" in capsys.readouterr().err


def test_an_image_beyond_the_limit_of_pillow_is_named(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (40, 40)).save(tmp_path / "poster.png")
    assert predict.main([str(run[0]), str(tmp_path)]) == 2
    assert re.search(r"poster\.png.*more than 200 pixels", capsys.readouterr().err)


def test_images_are_found_whatever_their_endings_and_names(run, tmp_path, capsysbinary):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg_large"))
    (tmp_path / "notes.txt").write_text("no picture")
    assert predict.main([str(run[0]), str(tmp_path)]) == 0
    assert b"caf\\udce9.jpg_large" in capsysbinary.readouterr().out


def test_a_checkpoint_of_other_code_is_refused(run, tmp_path, capsys):
    torch.save({"state_dict": {}, "epoch": 1}, tmp_path / "model.pth.tar-1")
    assert predict.main([str(tmp_path / "model.pth.tar-1"), run[2][0][0]]) == 2
    assert "was not written by train.py" in capsys.readouterr().err


def test_an_evaluation_has_nothing_to_apply(run, tmp_path, capsys):
    shutil.copy(run[0] / "metrics.json", tmp_path)
    assert predict.main([str(tmp_path), run[2][0][0]]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_classes_of_one_name_are_shown_as_one():
    text = Writer("table", ["a.jpg"], ["missile", "cat", "missile"], 1).text(np.array([[0.3, 0.4, 0.3]]))
    assert text == "a.jpg   60.00% missile\n"


def test_the_lines_in_the_readme(run, tmp_path, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = textwrap.dedent(re.search(r"(?:^    .*\n)*    from apexvl import .*\n(?:    .*\n)+", readme, re.M)[0])
    assert len(code.splitlines()) == 5
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "dtd").symlink_to(run[0])
    shutil.copy(run[2][0][0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})  # the lines as they stand there
    said = capsys.readouterr().out
    assert run[1]["per_class"][0]["classname"] in said
    assert said.count("\n") == 1
