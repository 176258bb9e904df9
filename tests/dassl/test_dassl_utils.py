"""Files, random streams, names, meters, registries, the log."""

import io
import logging
import os
import random
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dassl import utils
from dassl.utils.logger import StdoutHandler, close_logger


def _write_half(path):
    with utils.atomic_write(path) as file:
        file.write("half of")
        raise RuntimeError


def test_atomic_write_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with utils.atomic_write(path) as file:
        file.write("one é")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "one é"
    with pytest.raises(RuntimeError):
        _write_half(str(path))
    assert path.read_text(encoding="utf-8") == "one é"
    with utils.atomic_write(path, "wb") as file:
        file.write(b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(path.parent) == ["file.txt"]
    with pytest.raises(ValueError, match="mode"), utils.atomic_write(path, "a"):
        pass


def test_json_files(tmp_path):
    path = str(tmp_path / "deep" / "x.json")
    utils.write_json({"a": [1, 2.5, None]}, path)
    assert utils.read_json(path) == {"a": [1, 2.5, None]}


def test_folders(tmp_path):
    utils.mkdir_if_missing(str(tmp_path / "a" / "b"))
    utils.mkdir_if_missing(str(tmp_path / "a" / "b"))
    for name in ("z", ".hidden", "m"):
        (tmp_path / "a" / name).touch()
    assert utils.listdir_nohidden(str(tmp_path / "a"), sort=True) == ["b", "m", "z"]
    assert sorted(utils.listdir_nohidden(str(tmp_path / "a"))) == ["b", "m", "z"]
    assert utils.check_isfile(str(tmp_path / "a" / "m"))
    with pytest.warns(UserWarning, match='No file found at "nowhere"'):
        assert not utils.check_isfile("nowhere")


def test_images_that_cannot_be_read_are_named(tmp_path):
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    Image.new("L", (9, 5), 3).save(good)
    broken.write_bytes(good.read_bytes()[:40])
    image = utils.read_image(str(good))
    assert (image.mode, image.size) == ("RGB", (9, 5))
    with pytest.raises(ValueError, match=r"cannot read the image .*broken\.png"):
        utils.read_image(str(broken))
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        utils.read_image(str(tmp_path / "missing.png"))


def _draws():
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002 - the global generator is meant


def test_seeding():
    utils.set_random_seed(3)
    first = _draws()
    utils.set_random_seed(3)
    assert _draws() == first


def test_seeded_block_leaves_the_generators_alone():
    utils.set_random_seed(3)
    first = _draws()
    utils.set_random_seed(3)
    with utils.seeded(2**62 + 5):
        inside = _draws()
    assert _draws() == first
    with utils.seeded(2**62 + 5):
        assert _draws() == inside


def test_stream_seeds_differ_by_purpose():
    seeds = [utils.stream_seed(1), utils.stream_seed(2), utils.stream_seed(1, "a"), utils.stream_seed(1, "a", 0)]
    seeds += [utils.stream_seed(1, "a", "0"), utils.stream_seed(1, "a0"), utils.stream_seed(12)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert utils.stream_seed(1, "order", 2) == utils.stream_seed(1, "order", 2)


def test_nearest_names():
    with pytest.raises(ValueError, match=r'unknown trainer "coop": do you mean \[\'CoOp\''):
        utils.check_availability("coop", ["CoOp", "CoCoOp", "APEX"], "trainer")
    utils.check_availability("a", ["a"])
    assert utils.get_most_similar_str_to_a_from_b("cosin", ["sgd", "cosine"]) == "cosine"
    assert utils.tolist_if_not(1) == [1]
    assert utils.tolist_if_not([1]) == [1]


def test_registry():
    registry = utils.Registry("TRAINER")

    @registry.register()
    class First:
        pass

    registry.register(type("Second", (), {}))
    assert registry.registered_names() == ["First", "Second"]
    assert registry.get("First") is First
    assert "First" in registry
    message = 'An object named "First" was already registered in "TRAINER" registry'
    with pytest.raises(KeyError, match=message):
        registry.register(First)
    registry.register(First, force=True)
    with pytest.raises(KeyError, match="Second"):
        registry.get("Secnd")


@pytest.mark.parametrize("own_first", [True, False])
def test_a_replaceable_object_gives_its_name_up(own_first, capsys):
    own = type("Same", (), {"replaceable": True, "__module__": "own"})
    other = type("Same", (), {"__module__": "other"})
    registry = utils.Registry("TRAINER")
    for kind in (own, other) if own_first else (other, own):
        assert registry.register(kind) is kind
    assert registry.get("Same") is other
    assert "trainer Same: that of other replaces that of own" in capsys.readouterr().out
    with pytest.raises(KeyError, match="already registered"):
        registry.register(type("Same", (), {}))
    registry.register(own, force=True)
    with pytest.raises(KeyError, match="already registered"):
        registry.register(type("Same", (own,), {}))


def test_meters():
    meter = utils.AverageMeter()
    meter.update(2.0)
    meter.update(torch.tensor(5.0), n=2)
    assert (meter.val, meter.sum, meter.count, meter.avg) == (5.0, 12.0, 3, 4.0)
    smooth = utils.AverageMeter(ema=True)
    smooth.update(10.0)
    assert smooth.avg == pytest.approx(1.0)
    metrics = utils.MetricMeter()
    metrics.update({"loss": torch.tensor(1.0), "acc": 50})
    metrics.update({"loss": 2.0})
    metrics.update(None)
    assert str(metrics) == "loss 2.0000 (1.5000) acc 50.0000 (50.0000)"
    assert dict(metrics.meters.items())["loss"].avg == 1.5
    with pytest.raises(TypeError):
        metrics.update([1.0])


def test_log_is_copied_and_stdout_comes_back(tmp_path, capsys):
    console = sys.stdout
    logger = logging.getLogger("dassl.some.module")
    utils.setup_logger(None)
    assert sys.stdout is console
    utils.setup_logger(str(tmp_path))
    logger.info("first %d", 1)
    print("printed")
    assert sys.stdout.isatty() == console.isatty()
    utils.setup_logger(str(tmp_path))  # a second run in this process: no nesting, and the first log stays
    logger.info("second")
    utils.setup_logger(str(tmp_path))
    logger.info("third")
    close_logger()
    close_logger()
    logger.info("after")
    assert sys.stdout is console
    assert capsys.readouterr().out == "first 1\nprinted\nsecond\nthird\nafter\n"
    assert (tmp_path / "log.txt").read_text() == "first 1\nprinted\n"
    others = sorted(path for path in tmp_path.iterdir() if path.name != "log.txt")
    assert all(re.match(r"log\.txt-\d{4}(-\d\d){5}(-\d+)?$", path.name) for path in others)
    assert sorted(path.read_text() for path in others) == ["second\n", "third\n"]


def test_log_file_may_be_named(tmp_path, capsys):
    utils.setup_logger(tmp_path / "sub" / "mine.log")
    print("x")
    close_logger()
    assert (tmp_path / "sub" / "mine.log").read_text() == "x\n"
    with utils.Logger(str(tmp_path / "tee.txt")) as tee:
        tee.write("y")
        tee.flush()
    assert (tmp_path / "tee.txt").read_text() == "y"
    assert capsys.readouterr().out == "x\ny"


def test_further_loggers_can_be_sent_to_stdout(capsys):
    logger = logging.getLogger("test_dassl_utils_room")
    try:
        utils.log_to_stdout("test_dassl_utils_room")
        utils.log_to_stdout("test_dassl_utils_room")
        logger.info("once")
        assert capsys.readouterr().out == "once\n"
    finally:
        logger.handlers.clear()
        logger.propagate = True


def test_device_is_chosen_in_one_place(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert utils.on_gpu(utils.choose_device(use_cuda=True))
    assert not utils.on_gpu(utils.choose_device(use_cuda=False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert utils.choose_device(use_cuda=True) == torch.device("cpu")


def test_environment_is_described_without_other_programs(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    text = utils.collect_env_info()
    assert torch.__version__ in text
    assert np.__version__ in text
    assert "Pillow" in text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_messages_with_names_that_are_no_text_are_logged(tmp_path, monkeypatch, encoding):
    """The name of a folder in Latin-1 reaches Python with half surrogates, which no stream encodes."""
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # where logging would complain
    record = logging.LogRecord("datasets", logging.WARNING, "", 0, "no images in %s", (os.fsdecode(b"caf\xe9"),), None)
    StdoutHandler().handle(record)
    utils.setup_logger(str(tmp_path))
    print("\udce9 \u00e9")
    close_logger()
    console.flush()
    lines = console.buffer.getvalue().decode(encoding).splitlines()
    assert lines[0] == "no images in caf\\udce9"
    assert lines[1] == ("\\udce9 \u00e9" if encoding == "utf-8" else "\\udce9 \\xe9")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "\\udce9 \u00e9\n"
    assert sys.stderr.getvalue() == ""
