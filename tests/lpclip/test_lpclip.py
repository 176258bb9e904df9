"""The linear probe: draws, search of the L2 strength, features, and a whole run on made images."""

import io
import json
import os
import shutil
import warnings

import numpy as np
import pytest
from clip_models import VIT, random_state, write_plain
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from lpclip import __main__ as command
from lpclip import features as feature_room
from lpclip.features import Features
from lpclip.probe import draw, probe, search


def made(seed, per_class=30, classes=3, width=6, spread=1.6):
    """Overlapping clouds, in shuffled order."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(classes, width))
    y = generator.permutation(np.repeat(np.arange(classes), per_class))
    x = centres[y] + spread * generator.normal(size=(len(y), width))
    return Features(x.astype(np.float32), y)


@pytest.fixture(scope="module")
def clouds():
    return {"train": made(1), "val": made(2), "test": made(3, per_class=100)}


def test_draw_is_the_official_one(clouds):
    """The global generator seeded once; per class in ascending order, train before val."""
    np.random.seed(5)  # noqa: NPY002
    expected = []
    for part, shots in (("train", 8), ("val", 4)):
        y = clouds[part].y
        rows = [np.random.choice(np.where(y == c)[0], shots, replace=False) for c in np.unique(y)]  # noqa: NPY002
        expected.append(np.concatenate(rows))
    generator = np.random.RandomState(5)
    for (part, shots), rows in zip((("train", 8), ("val", 4)), expected, strict=True):
        drawn = draw(clouds[part], shots, generator)
        assert (drawn.x == clouds[part].x[rows]).all()
        assert (drawn.y == np.repeat([0, 1, 2], shots)).all()


def test_a_small_class_gives_all_it_has():
    few = Features(np.arange(6.0)[:, None], np.array([0, 0, 0, 0, 1, 1]))
    drawn = draw(few, 3, np.random.RandomState(0))
    assert (np.bincount(drawn.y) == [3, 2]).all()


def official_search(train, val):
    """The search written out plainly: nine fits of the two ends, each anew."""

    def fit(c):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(solver="lbfgs", max_iter=1000, C=c).fit(train.x, train.y)

    def score(classifier):
        return np.mean(classifier.predict(val.x) == val.y)

    candidates = [1e6, 1e4, 1e2, 1, 1e-2, 1e-4, 1e-6]
    peak = candidates[int(np.argmax([score(fit(c)) for c in candidates]))]
    left, right = 1e-1 * peak, 1e1 * peak
    for _ in range(8):
        at_left, at_right = fit(left), fit(right)
        middle = 10 ** ((np.log10(left) + np.log10(right)) / 2)
        if score(at_left) < score(at_right):
            c, kept, left = right, at_right, middle
        else:
            c, kept, right = left, at_left, middle
    return c, kept


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_search_agrees_with_the_plain_one(clouds, seed):
    generator = np.random.RandomState(seed)
    train, val = draw(clouds["train"], 4, generator), draw(clouds["val"], 4, generator)
    c, classifier = search(train, val)
    expected_c, expected = official_search(train, val)
    assert c == pytest.approx(expected_c, rel=1e-9)
    assert (classifier.predict(clouds["test"].x) == expected.predict(clouds["test"].x)).all()


def test_search_keeps_the_first_best_and_the_lower_end_on_ties():
    """Where every strength does equally well, the peak is 1e6 and the lower end is kept each time."""
    apart = Features(np.array([[-9.0], [9.0]]), np.array([0, 1]))
    c, _ = search(apart, apart)
    assert c == pytest.approx(1e5)


def test_more_shots_help_and_a_run_repeats(clouds):
    few, many = (np.mean([probe(clouds, shots, seed).accuracy for seed in (1, 2, 3)]) for shots in (1, 16))
    assert many > few > 100 / 3
    assert probe(clouds, 4, 7) == probe(clouds, 4, 7)


# A whole run


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A folder of coloured images in class folders, a small random CLIP, and the command line that probes it."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2), ("test", 5)):
        for name, colour in (("red", (200, 40, 40)), ("green", (40, 200, 40)), ("blue", (40, 40, 200))):
            folder = root / "colours" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(-40, 41, size=(20, 24, 3))
                Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(folder / f"{i}.png")
    weights = root / "small.pt"
    write_plain(random_state(VIT), weights)
    opts = ["DATASET.NAME", "OwnData", "DATASET.FOLDER", "colours", "DATALOADER.NUM_WORKERS", "0"]
    return ["--root", str(root), "--backbone", str(weights), "--runs", "2", "--shots", "1,4"], opts


def test_a_run_end_to_end(arguments, tmp_path, monkeypatch, capsys):
    flags, opts = arguments
    assert command.main([*flags, "--output-dir", str(tmp_path), *opts]) == 0
    record = json.loads((tmp_path / "linear_probe.json").read_text())
    assert record["dataset"] == "OwnData"
    assert record["searched_on"] == "val"
    assert (record["num_classes"], record["num_test"]) == (3, 15)
    assert list(record["shots"]) == ["1", "4"]
    for shots, val_shots in (("1", 1), ("4", 4)):
        result = record["shots"][shots]
        assert result["val_shots"] == val_shots
        assert len(result["accuracy"]) == len(result["c"]) == 2
        assert result["mean"] == pytest.approx(np.mean(result["accuracy"]))
        assert result["mean"] > 90  # colours are easy, even for random weights
    assert "4-shot, 2 runs" in (tmp_path / "log.txt").read_text()

    # features are computed once: a second run reads them, and finds the same
    monkeypatch.setattr(feature_room, "encode", None)
    assert command.main([*flags, "--output-dir", str(tmp_path), *opts]) == 0
    again = json.loads((tmp_path / "linear_probe.json").read_text())
    assert again["shots"] == record["shots"]
    assert "Loading features" in capsys.readouterr().out


def test_pictures_that_were_replaced_under_their_names_are_encoded_anew(arguments, tmp_path):
    flags, opts = arguments
    root = tmp_path / "data"
    shutil.copytree(flags[1], root)
    line = ["--root", str(root), *flags[2:], "--shots", "1", "--runs", "1"]
    assert command.main([*line, "--output-dir", str(tmp_path / "kept"), *opts]) == 0
    for path in (root / "colours" / "test" / "red").iterdir():
        before = path.stat()
        Image.new("RGB", (20, 24), (40, 200, 40)).save(path)
        with open(path, "ab") as file:
            file.write(bytes(max(0, before.st_size - path.stat().st_size)))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
    for folder in ("kept", "new"):
        assert command.main([*line, "--output-dir", str(tmp_path / folder), *opts]) == 0
    kept, new = (json.loads((tmp_path / folder / "linear_probe.json").read_text()) for folder in ("kept", "new"))
    assert kept["shots"] == new["shots"]
    assert kept["shots"]["1"]["mean"] < 70  # no red picture is left among the test images of that class
    for key in ("full_split_hash", "train_images_hash", "test_images_hash"):
        assert kept[key] == new[key] is not None


def test_other_settings_compute_features_anew(arguments, tmp_path):
    flags, opts = arguments
    base = [*flags, "--shots", "1", "--runs", "1", "--output-dir", str(tmp_path), *opts]
    assert command.main(base) == 0
    first = np.load(tmp_path / "features.npz")["train_x"]
    assert command.main([*base, "DATASET.SUBSAMPLE_CLASSES", "base"]) == 0
    second = np.load(tmp_path / "features.npz")["train_x"]
    assert (len(first), len(second)) == (18, 12)


def test_features_are_the_backbone_s_raw_ones(arguments, tmp_path):
    flags, opts = arguments
    command.main([*flags, "--shots", "1", "--runs", "1", "--output-dir", str(tmp_path), *opts])
    with np.load(tmp_path / "features.npz") as arrays:
        norms = np.linalg.norm(arrays["test_x"], axis=1)
        assert arrays["test_x"].shape == (15, VIT["embed_dim"])
        assert arrays["test_x"].dtype == np.float32
        assert (arrays["test_y"] == np.repeat([0, 1, 2], 5)).all()
    assert (abs(norms - 1) > 0.05).all()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--shots", "0"], "--shots must be at least 1"),
        (["--runs", "0"], "--runs must be at least 1"),
        (["DATASET.NUM_SHOTS", "4"], "use --shots"),
        (["DATASET.NAMES", "x"], "DATASET.NAME"),
        (["DATASET.NAME", "OwnDate"], "OwnData"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(arguments, tmp_path, capsys, extra, sentence):
    flags, opts = arguments
    extra = [*extra, *opts] if extra[0].startswith("--") else [*opts, *extra]
    assert command.main([*flags, "--output-dir", str(tmp_path), *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lpclip: ")
    assert sentence in error


def _damages(path):
    """Contents that a file of features may have after an accident, none of which is the right one."""
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    yield from (b"no archive", b"", whole[: len(whole) // 2])
    values = arrays["test_x"].tobytes()
    place = whole.index(values) + 7
    yield whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
    for changed in (
        {"test_x": arrays["test_x"] + 1},
        {"digest": np.array("0" * 64)},
        {"test_y": arrays["test_y"][::-1]},
    ):
        buffer = io.BytesIO()
        np.savez(buffer, **{**arrays, **changed})  # with checksums that are right
        yield buffer.getvalue()


def test_damaged_features_are_computed_anew(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(feature_room.logger, "propagate", True)
    path = tmp_path / "features.npz"
    draw = np.random.default_rng(0).standard_normal
    features = {part: feature_room.Features(draw((4, 3)), np.arange(4)) for part in feature_room.PARTS}
    feature_room._write(path, "of this", features)
    assert (feature_room._read(path, "of this")["test"].x == features["test"].x).all()
    assert feature_room._read(path, "of that") is None
    for content in list(_damages(path)):
        caplog.clear()
        path.write_bytes(content)
        assert feature_room._read(path, "of this") is None
        assert "computed anew" in caplog.text
