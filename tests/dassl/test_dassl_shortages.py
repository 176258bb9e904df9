"""Where memory or disk is short, or an image is exchanged meanwhile: less is done at a time, or a sentence is said."""

import errno
import logging
import sys

import pytest
import torch
from dassl_toys import ToyTrainer, toy_config
from PIL import Image

from dassl.engine import build_trainer
from dassl.engine.writer import SummaryWriter
from dassl.utils import Logger
from dassl.utils.shortages import ShortageError, shortage_of

FULL = OSError(errno.ENOSPC, "No space left on device")


class Full:
    """A file on a full disk."""

    name = "run/log.txt"

    def write(self, text):
        raise FULL

    def close(self):
        raise FULL


@pytest.mark.parametrize("room", [1, 3])
def test_an_evaluation_without_memory_takes_fewer_images(tmp_path, monkeypatch, caplog, heard, room):
    cfg = toy_config(monkeypatch, tmp_path, DATALOADER__TEST__BATCH_SIZE=12)
    expected, sizes = build_trainer(cfg).test(), []
    usual = ToyTrainer.model_inference

    def short(self, images):
        sizes.append(len(images))
        if len(images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")
        return usual(self, images)

    monkeypatch.setattr(ToyTrainer, "model_inference", short)
    trainer = build_trainer(cfg)
    with caplog.at_level(logging.WARNING):
        assert trainer.test() == expected
    assert f"Out of memory: from here on {room} images are evaluated at a time" in caplog.text
    assert sizes[:3] == [12, 6, 3]
    assert max(sizes[-4:]) == room
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        build_trainer(cfg).test()


def test_what_pytorch_says_becomes_a_sentence():
    said = {
        "TRAIN.MEMORY_GB": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0"),
        "--shm-size": RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback\nRuntimeError: unable to write to "
            "file </torch_1_2_3>: No space left on device (28)"
        ),
        "NUM_WORKERS 0": RuntimeError(
            "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        ),
        "CACHE_MB": RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate"),
        "batch sizes": MemoryError(),
    }
    for words, error in said.items():
        shortage = shortage_of(error)
        assert isinstance(shortage, ShortageError)
        assert words in str(shortage)
        assert "\n" not in str(shortage)
    assert shortage_of(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_log_that_cannot_be_written_ends_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    with Logger(str(tmp_path / "log.txt")) as log:
        log.write("one\n")

        log.file.close()
        monkeypatch.setattr(log, "file", Full())
        log.write("two\n")
        log.write("three\n")
    out, err = capsys.readouterr()
    assert out == "one\ntwo\nthree\n"
    assert err == "run/log.txt ends here, for it cannot be written: No space left on device\n"


def test_events_that_cannot_be_written_end_and_the_run_goes_on(monkeypatch, caplog, heard):
    class Writer:
        def __init__(self, log_dir):
            self.log_dir = log_dir

        def add_scalar(self, *args):
            raise FULL

    module = type(sys)("tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    writer = SummaryWriter(log_dir="x")
    assert writer.log_dir == "x"
    writer.add_scalar("a", 1.0, 1)
    writer.add_scalar("a", 1.0, 2)
    writer.close()
    assert caplog.text.count("TensorBoard events end here, for they cannot be written: No space left on device") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_becomes_a_bomb_is_named(tmp_path, monkeypatch, workers):
    keys = {"DATALOADER__CACHE_MB": 0, "DATALOADER__NUM_WORKERS": workers}
    trainer = build_trainer(toy_config(monkeypatch, tmp_path, **keys))
    usual = trainer.after_epoch

    def exchange():
        usual()
        for path in (tmp_path / "toy").iterdir():
            Image.new("RGB", (100, 100)).save(path)

    trainer.after_epoch = exchange
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"cannot read the image .*more than 2000 pixels, the limit of Pillow"):
        trainer.train()
    assert len(trainer.history) == 1
