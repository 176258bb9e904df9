"""Predictors: pictures in any form, batch by batch, the classes in force, and exported models that agree."""

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import train
from dassl.utils.images import as_rgb
from results.prediction_files import FORMATS, Writer, feature_archive
from sweep.method_configs import config_of

ROOT = Path(__file__).resolve().parents[2]


def _run(folder: Path, name: str, classes: str = "base") -> Path:
    """A run of one epoch on drawn pictures; its folder."""
    words = ["--root", str(folder / "data"), "--seed", "1", "--trainer", name, "--output-dir", str(folder / name)]
    words += ["--dataset-config-file", str(ROOT / "configs/datasets/drawn_easy.yaml")]
    words += ["--config-file", str(ROOT / f"configs/trainers/{config_of(name, 'all', 'drawn_easy', 2)}.yaml")]
    opts = ["DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", classes, "OPTIM.MAX_EPOCH", "1"]
    train.run(train.build_parser().parse_args([*words, *opts]))
    return folder / name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def folder(place):
    return _run(place, "CoOp")


@pytest.fixture
def predictor(folder, caplog):
    return predict.Predictor(folder)


@pytest.fixture
def paths(place, folder):
    return sorted(map(str, (place / "data/drawn_easy/images").rglob("*.png")))[:7]


def test_one_picture_or_many_in_every_form_give_the_same(predictor, paths):
    expected = predictor(paths)
    assert expected.shape == (7, 10)
    pictures = [Image.open(path) for path in paths]
    arrays = np.stack([np.array(picture.convert("RGB")) for picture in pictures])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    several = [map(Path, paths), pictures, arrays, list(arrays), arrays / np.float32(255), tensors, list(tensors),
               tensors.double() / 255, [paths[0], pictures[1], arrays[2], *tensors[3:]]]  # fmt: skip
    for images in several:
        np.testing.assert_allclose(predictor(images), expected, atol=1e-6)
    for one in (paths[0], Path(paths[0]), pictures[0], arrays[0], tensors[0], arrays[:1]):
        np.testing.assert_allclose(predictor(one), expected[:1], atol=1e-6)
    np.testing.assert_allclose(predictor.features(arrays), predictor.features(paths), atol=1e-5)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"image 0 has the shape \(3, 8, 8\): an array \(H, W, 3\)"),
        (torch.zeros(8, 8, 3), r"a tensor \(3, H, W\)"),
        (np.zeros((8, 8, 3), np.int64), "samples of type int64"),
        (np.full((8, 8, 3), 255.0), "samples from 255 to 255"),
        (np.full((8, 8, 3), -0.1), "samples from -0.1"),
        (np.full((8, 8, 3), np.nan), "samples from nan"),
        ([7], "is a int"),
        ([], "no image was named"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no image was named"),
        ("gone.jpg", "gone.jpg"),
        (Image.new("LAB", (8, 8)), "image 0 cannot be read: its colours are LAB"),
    ],
)
def test_what_is_no_picture_is_refused(predictor, image, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        predictor(image)


def test_transparency_palettes_and_grey_are_read_as_files_are(tmp_path):
    colours = Image.effect_noise((8, 8), 90)
    for mode in ("L", "P", "RGBA", "1", "CMYK"):
        picture = colours.convert(mode)
        assert as_rgb(picture).mode == "RGB"
        if mode != "CMYK":
            picture.save(tmp_path / "a.png")
            assert (np.asarray(as_rgb(picture)) == np.asarray(as_rgb(tmp_path / "a.png"))).all()


def test_no_more_than_a_batch_is_taken_at_a_time(predictor, paths):
    taken = []

    def pictures():
        for number in range(1000):
            taken.append(number)
            yield paths[number % len(paths)]

    predictor.trainer.cfg.defrost()
    predictor.trainer.cfg.DATALOADER.TEST.BATCH_SIZE = 3
    answers = predictor.stream(pictures(), features=True)
    first, second = next(answers), next(answers)
    assert len(taken) == 6
    assert first.images == paths[:3]
    np.testing.assert_allclose(np.concatenate([first.probabilities, second.probabilities]), predictor(paths[:6]))
    np.testing.assert_allclose(second.features, predictor.features(paths[3:6]))
    assert next(predictor.stream(paths)).features is None


def test_base_classes_are_said_in_a_warning(folder, place, caplog):
    with caplog.at_level(logging.INFO, "predict"):
        predictor = predict.Predictor(folder)
    assert "10 classes, the base ones of DrawnEasy, on which the run was trained" in caplog.text
    assert all(name in caplog.text for name in predictor.classnames)
    caplog.clear()
    assert predict.Predictor(folder, ["star", "red moon"]).describe_classes() == "2 classes, as given: star, red moon"
    zero = predict.Predictor(_run(place, "ZeroshotCLIP", "all"))
    assert zero.describe_classes().startswith("20 classes, all of DrawnEasy: ")
    assert zero.describe_classes().endswith(" and 10 more")
    assert not [record for record in caplog.records if record.name == "predict"]


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_line_says_its_classes_and_streams(folder, paths, capsys, form, tmp_path, monkeypatch):
    expected = predict.Predictor(folder)(paths)
    monkeypatch.setattr(predict, "_configuration", _in_batches_of_two(predict._configuration))
    assert predict.main([str(folder), *paths, "--format", form, "--features", str(tmp_path / "f.npz")]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("10 classes, the base ones of DrawnEasy")
    assert said.err.count("\n") == 1
    names = predict.Predictor(folder).classnames
    whole = Writer(form, paths, names, 3)
    if form == "json":
        rows = json.loads(said.out)
        assert said.out == json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
        assert [row["image"] for row in rows] == paths
        found = [[row["probabilities"][name] for name in names] for row in rows]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    else:
        assert said.out.splitlines()[-1].split(",")[0].startswith(paths[-1])
        assert len(said.out.splitlines()) == len(whole.text(expected).splitlines())
    arrays = np.load(tmp_path / "f.npz")
    assert arrays["image_features"].shape == (7, predict.Predictor(folder).trainer.backbone.embed_dim)
    np.testing.assert_allclose(arrays["probabilities"], expected, atol=1e-6)


def _in_batches_of_two(make):
    def configuration(*arguments):
        cfg = make(*arguments)
        cfg.defrost()
        cfg.DATALOADER.TEST.BATCH_SIZE = 2
        cfg.freeze()
        return cfg

    return configuration


def test_classnames_is_the_same_as_classes(folder, paths, capsys):
    assert predict.main([str(folder), paths[0], "--classnames", "star,moon"]) == 0
    said = capsys.readouterr()
    assert said.err == "2 classes, as given: star, moon\n"
    assert said.out.count("%") == 2
    assert predict.main([str(folder)]) == 2
    assert "no image was named" in capsys.readouterr().err


def test_a_stream_that_fails_leaves_no_archive(folder, paths, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"bad\.png"):
        _fill_archive(predict.Predictor(folder), [paths[0], str(tmp_path / "bad.png")], tmp_path / "f.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]


def _fill_archive(predictor, images, path):
    with feature_archive(str(path), images, predictor) as archive:
        for answers in predictor.stream(images, features=True):
            archive.add(answers)


@pytest.mark.parametrize("name", ["APEX", "CoOp", "CLIP_LoRA", "MMRL"])
def test_exported_programs_give_the_same_probabilities(place, paths, tmp_path, name, request):
    if not request.config.getoption("--long"):
        pytest.skip("beside the model below with --long")
    predictor = predict.Predictor(_run(place, name))
    about = predictor.export(tmp_path / "m.pt2")
    extra = {"apexvl": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    assert json.loads(extra["apexvl"]) == about
    _, images = next(predictor._batches(paths))
    for count in (1, 7):
        np.testing.assert_allclose(program(images[:count]).numpy(), predictor(paths[:count]), atol=1e-5)


def test_what_cannot_be_traced_is_refused(place, tmp_path, request):
    if not request.config.getoption("--long"):
        pytest.skip("with --long")
    with pytest.raises(ValueError, match="CoCoOp cannot be exported"):
        predict.Predictor(_run(place, "CoCoOp")).export(tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_an_onnx_model_gives_the_same_probabilities_and_says_how_pictures_are_prepared(place, paths, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    run = _run(place, "APEX")
    assert predict.main([str(run), "--export", str(tmp_path / "m.onnx"), "--classes", "star,moon,tree"]) == 0
    assert "3 classes, as given: star, moon, tree" in capsys.readouterr().err
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["apexvl"])
    assert about["classnames"] == ["star", "moon", "tree"]
    assert session.get_inputs()[0].shape[1:] == about["input"]["shape"][1:]
    steps, images = about["preprocessing"], []
    for path in paths:  # as somebody does it who has the file alone
        assert (steps["resize"], steps["interpolation"]) == ("shortest", "bicubic")
        with Image.open(path) as picture:
            pixels = picture.convert("RGB").resize(steps["size"], Image.Resampling.BICUBIC)
        values = (np.asarray(pixels, np.float32) / 255 - steps["mean"]) / steps["std"]
        images.append(values.transpose(2, 0, 1).astype(np.float32))
    found = session.run([about["output"]["name"]], {about["input"]["name"]: np.stack(images)})[0]
    predictor = predict.Predictor(run, ["star", "moon", "tree"])
    np.testing.assert_allclose(found, predictor(paths), atol=1e-5)
    assert predictor.export(tmp_path / "m.pt2") == about
    program = torch.export.load(tmp_path / "m.pt2").module()
    np.testing.assert_allclose(program(torch.from_numpy(np.stack(images))).numpy(), found, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--export", "model.pkl"], "ends in .onnx or .pt2"),
        (["--export", "{folder}/metrics.json/m.pt2"], "metrics.json"),
        (["--export", "m.pt2", "--opts", "TRAINER.COOP.PREC", "bf16"], "give --opts TRAINER.COOP.PREC fp32"),
    ],
)
def test_exports_that_cannot_be_are_refused(folder, words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert predict.main([str(folder), *(word.format(folder=folder) for word in words)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_writers_of_one_image_and_of_none():
    assert Writer("json", [], ["a"], 1).end() == "\n]\n"
    assert io.StringIO(Writer("csv", ["x"], ["a"], 1).text(np.ones((1, 1)))).readlines() == ["image,a\n", "x,1.0\n"]
