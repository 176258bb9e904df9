"""Features of the frozen image tower are kept on disk and shared: the same results, no image read twice."""

import multiprocessing
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import conformance
import numpy as np
import pytest
import torch

import trainers  # noqa: F401 - registers
from adaptation.feature_cache import BatchImages, FeatureCache, cache_file, shrink
from clip.backbone import Backbone
from clip.precision import CPU
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.digests import content_digest, read_array, write_array
from results.predictions import read_predictions

UNREAD = {"CLIP_Adapter", "CoCoOp", "CoOp", "KgCoOp", "ProGrad", "TaskRes", "TipAdapter", "TipAdapterF", "ZeroshotCLIP"}
OFF = {"TEST.CACHE_FEATURES": "False"}
NAMES = sorted(name for name in TRAINER_REGISTRY.registered_names() if TRAINER_REGISTRY.get(name).__module__ != "toys")


@pytest.fixture
def features(tmp_path, monkeypatch) -> Path:
    """An empty folder of kept features."""
    folder = tmp_path / "features"
    monkeypatch.setenv("FEATURE_CACHE", str(folder))
    return folder


@torch.no_grad()
def say(trainer) -> tuple[torch.Tensor, bool]:
    """Logits of the test images, and whether these were read."""
    trainer.set_model_mode("eval")
    logits, read = [], False
    for batch in trainer.evaluation_batches(trainer.test_loader):
        images, _ = trainer.parse_batch_test(batch)
        logits.append(trainer.model_inference(images))
        read |= not isinstance(images, BatchImages) or images.pixels is not None
    assert trainer.model.backbone.encode_image.__func__ is Backbone.encode_image
    return torch.cat(logits), read


@pytest.mark.parametrize("name", NAMES)
def test_kept_features_change_nothing(name, eurosat_root, tmp_path, features):
    new = {"DATASET.SUBSAMPLE_CLASSES": "new"}
    without, first, again = (
        conformance.make(name, eurosat_root, tmp_path / run, **new, **more)
        for run, more in (("a", OFF), ("b", {}), ("c", {}))
    )
    expected, _ = say(without)
    assert not features.exists()
    assert torch.equal(say(first)[0], expected)
    logits, read = say(again)
    assert torch.equal(logits, expected)
    files = list(features.glob("*.features"))
    assert len(files) == (not read)
    assert not (read and name in UNREAD)


@pytest.mark.parametrize("name", ["APEX", "ZeroshotCLIP"])
def test_answers_from_kept_features_are_kept_too(name, eurosat_root, tmp_path, features):
    """No image is read the second time; the files are the same."""
    new = {"DATASET.SUBSAMPLE_CLASSES": "new", "TRAINER.APEX.FIXED_ALPHA": "0.5"}
    answers = []
    for run in ("first", "again"):
        conformance.make(name, eurosat_root, tmp_path / run, **new).test()
        answers.append(content_digest(vars(read_predictions(tmp_path / run / "predictions.npz"))))
    assert len(list(features.glob("*.features"))) == 1
    assert answers[0] == answers[1]


def test_apex_shares_the_file_of_zero_shot_where_its_frozen_branch_counts(eurosat_root, tmp_path, features):
    def run(name: str, alpha: str) -> torch.Tensor:
        return say(conformance.make(name, eurosat_root, tmp_path / name, **{"TRAINER.APEX.FIXED_ALPHA": alpha}))[0]

    run("APEX", "1.0")
    assert not features.exists()  # the frozen branch has weight 0
    run("ZeroshotCLIP", "1.0")
    (file,) = features.glob("*.features")
    expected = run("APEX", "0.5")
    write_array(file, -read_array(file))  # so that reading shows
    assert not torch.equal(run("APEX", "0.5"), expected)
    file.unlink()
    assert torch.equal(run("APEX", "0.5"), expected)
    assert list(features.glob("*.features")) == [file]


def test_another_list_transform_precision_or_file_is_another_key(eurosat_root, tmp_path, features, monkeypatch):
    def path(root=eurosat_root, precision="fp32", **more) -> Path:
        trainer = conformance.make("ZeroshotCLIP", root, tmp_path / "run", precision=precision, **more)
        loader = trainer.test_loader
        shown = repr(loader.dataset.transform)
        return cache_file(trainer.cfg, loader, trainer.backbone, trainer.precision, shown)

    first = path()
    assert path() == first
    others = {
        path(precision="bf16"),
        path(**{"DATASET.SUBSAMPLE_CLASSES": "new"}),
        path(**{"INPUT.TRANSFORMS": "['random_flip']"}),  # without the normalisation
        path(**{"DATALOADER.TEST.BATCH_SIZE": "5"}),
    }
    assert len(others - {first}) == 4
    trainer = conformance.make("ZeroshotCLIP", eurosat_root, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
        assert path() != first
    touched = Path(trainer.test_loader.dataset.data_source[0].impath)
    before, content = os.stat(touched), touched.read_bytes()
    touched.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # another picture of the same size and time
    os.utime(touched, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path() != first
    touched.write_bytes(content)
    assert path() == first  # written anew, but the same picture
    usual = trainer.test_loader.dataset.transform
    trainer.test_loader.dataset.transform = lambda image: usual(image)  # does not say what it does
    say(trainer)
    assert not features.exists()


def test_images_that_a_trainer_or_a_method_has_changed_are_encoded(eurosat_root, tmp_path, features, monkeypatch):
    def zero_shot(run: str, **more: str):
        return conformance.make("ZeroshotCLIP", eurosat_root, tmp_path / run, **more)

    plain, _ = say(zero_shot("plain"))
    (file,) = features.glob("*.features")
    changed, trainer = zero_shot("a", **OFF), zero_shot("b")

    class Brighter(type(trainer)):
        def model_inference(self, images):
            return super().model_inference(images + 1)

    changed.__class__ = trainer.__class__ = Brighter
    expected, _ = say(changed)
    assert not torch.equal(expected, plain)
    logits, read = say(trainer)
    assert read
    assert torch.equal(logits, expected)

    trainer = zero_shot("c")
    usual = type(trainer.model).image_features
    for change in (lambda images: images + 1, lambda images: images.add_(1)):
        monkeypatch.setattr(type(trainer.model), "image_features", lambda m, x, f=change: usual(m, f(x)))
        assert torch.equal(say(trainer)[0], expected)
    assert list(features.glob("*.features")) == [file]


def fill(path: Path, value: float, rows=((0, 1), (2,))) -> None:
    cache, device = FeatureCache(lambda: path, 3, 4), CPU
    for part in rows:
        images = BatchImages.of(torch.tensor(part), lambda part=part: torch.full((len(part), 4), value))
        cache.encode(SimpleNamespace(encode_image=lambda pixels: pixels, device=device), images)
    cache.write()


def test_only_whole_lists_are_kept_and_damaged_files_are_replaced(tmp_path, caplog):
    path = tmp_path / "f" / "x.features"
    fill(path, 1.0, rows=((0, 1),))
    assert not path.exists()
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    fill(path, 2.0)
    assert FeatureCache(lambda: path, 3, 4).known.unique().tolist() == [2.0]
    assert FeatureCache(lambda: path, 5, 4).known is None
    assert [entry.name for entry in path.parent.iterdir()] == ["x.features"]
    (tmp_path / "file").touch()
    fill(tmp_path / "file" / "x.features", 1.0)  # the folder cannot be made
    assert "are not kept" in caplog.text


@pytest.mark.parametrize("how", ["flipped", "cut", "other shape", "not finite", "objects"])
def test_damaged_files_are_said_and_computed_anew(tmp_path, caplog, how):
    path = tmp_path / "x.features"
    fill(path, 1.0)
    content = path.read_bytes()
    if how == "flipped":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif how == "cut":
        path.write_bytes(content[:-8])
    elif how == "objects":
        path.write_bytes(pickle.dumps([1.0]))
    else:
        write_array(path, np.ones((4, 4), "f4") if how == "other shape" else np.full((3, 4), np.nan, "f4"))
    caplog.clear()
    assert FeatureCache(lambda: path, 3, 4).known is None
    assert f"Image features are computed anew: {path}" in caplog.text
    fill(path, 2.0)
    assert FeatureCache(lambda: path, 3, 4).known.unique().tolist() == [2.0]


def test_the_folder_is_bounded(tmp_path):
    for age, name in enumerate("dcba"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    shrink(tmp_path, 250)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c", "d"]


def _many_times(path: Path, value: float) -> None:
    for _ in range(30):
        fill(path, value)
        shrink(path.parent, 0)


def test_several_processes_may_use_the_folder(tmp_path):
    path = tmp_path / "x.features"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_many_times, args=(path, float(value))) for value in (1, 2)]
    for process in processes:
        process.start()
    seen = set()
    while any(process.is_alive() for process in processes):
        known = FeatureCache(lambda: path, 3, 4).known
        if known is not None:
            seen |= {tuple(known.unique().tolist())}
    assert [process.exitcode for process in processes] == [0, 0]
    assert seen <= {(1.0,), (2.0,)}


def test_images_of_a_batch_are_read_when_somebody_looks():
    pixels, read = torch.rand(2, 3, 4, 4), []
    images = BatchImages.of(torch.tensor([5, 6]), lambda: read.append(1) or pixels)
    assert images.to(CPU) is images
    assert not read
    assert images.shape == (2, 3, 4, 4)
    assert images.handled
    for value, expected in (
        (images + 1, pixels + 1),
        (1 - images, 1 - pixels),
        (torch.cat([images, images]), torch.cat([pixels, pixels])),
        (images[:1], pixels[:1]),
        (images.to(torch.float64), pixels.double()),
        (torch.nn.functional.conv2d(images, torch.ones(1, 3, 1, 1)), pixels.sum(dim=1, keepdim=True)),
    ):
        assert type(value) is torch.Tensor
        torch.testing.assert_close(value, expected)
    assert len(read) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_loader(eurosat_root, tmp_path, features, workers):
    more = {"DATALOADER.NUM_WORKERS": str(workers), "DATALOADER.TEST.BATCH_SIZE": "3"}
    trainer = conformance.make("ZeroshotCLIP", eurosat_root, tmp_path / "run", **more)
    for look in (True, False):
        cache = FeatureCache(lambda: tmp_path / "none.npy", 1, 1)
        found = []
        for batch in cache.batches(trainer.test_loader):
            if look:
                assert batch["img"].mean().isfinite()
            found.append(batch)
        for one, other in zip(trainer.test_loader, found, strict=True):
            assert one.keys() == other.keys()
            assert torch.equal(one.pop("img"), other.pop("img").load())
            assert one.pop("impath") == other.pop("impath")
            assert all(torch.equal(value, other[key]) for key, value in one.items())
