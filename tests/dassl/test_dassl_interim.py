"""A run that is asked to end saves its place, also inside an epoch, and goes on exactly."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from dassl_toys import ToyPairTrainer, ToyTrainer, toy_config
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.utils import MetricMeter, set_random_seed
from dassl.utils.interim import resumable_checkpoints
from dassl.utils.interruption import SIGNALS, Interrupted, asked, deferred, interruptible, raise_if_asked

EPOCHS, BATCHES = 3, 3


class Noisy(ToyTrainer):
    """Draws from every global generator in each step; asks its process to end in the steps that `ends_in` names."""

    ends_in: tuple[tuple[int, int], ...] = ()  # epoch, batch
    number = signal.SIGTERM

    def loss(self, images, labels):
        if (self.epoch, self.batch_idx) in self.ends_in:
            os.kill(os.getpid(), self.number)
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return F.cross_entropy(self.model(F.dropout(images, 0.3)), labels) * (1 + noise)


class NoisyPairs(ToyPairTrainer):
    """The same with pairs of batches."""

    ends_in: tuple[tuple[int, int], ...] = ()
    number = signal.SIGTERM
    loss = Noisy.loss


class OwnLoop(Noisy):
    """A loop of its own, as in code that was written for Dassl."""

    def run_epoch(self):
        self.set_model_mode("train")
        losses = MetricMeter()
        self.num_batches = len(self.train_loader_x)
        for index, batch in enumerate(self.train_loader_x):
            self.batch_idx = index
            losses.update(self.forward_backward(batch))
        self.history.append({"epoch": self.epoch + 1, "loss": losses.meters["loss"].avg})


@pytest.fixture(autouse=True)
def _heed_signals():
    """A shell that starts the tests in the background has them ignore interrupts, ``nohup`` hang-ups."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def train_until(tmp_path, monkeypatch):
    """Train in a folder; returns the trainer, or what ended it."""

    def run(kind: type[TrainerX], folder: str, ends_in: tuple = (), number: int = signal.SIGTERM, **keys):
        own = type(kind.__name__, (kind,), {"ends_in": ends_in, "number": number})
        if kind is OwnLoop:
            own.run_epoch = OwnLoop.run_epoch
        elif "run_epoch" in vars(kind):
            own.run_epoch = vars(kind)["run_epoch"]
        keys = {"OPTIM__MAX_EPOCH": EPOCHS, **keys}
        cfg = toy_config(monkeypatch, tmp_path / "data", kind.__name__, **keys)
        cfg.OUTPUT_DIR = str(tmp_path / folder)
        monkeypatch.setitem(TRAINER_REGISTRY._objects, kind.__name__, own)
        set_random_seed(1)
        trainer = build_trainer(cfg)
        with interruptible():
            try:
                trainer.train()
            except Interrupted as interrupted:
                return interrupted
        return trainer

    return run


def same(one: TrainerX, other: TrainerX) -> None:
    """Two trainers ended in the same state, bit by bit."""
    assert one.history == other.history
    assert one.best_result == other.best_result
    assert one.last_result == other.last_result
    for mine, its in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    for mine, its in zip(one.optim.state.values(), other.optim.state.values(), strict=True):
        assert all(torch.equal(mine[key], its[key]) for key in mine if torch.is_tensor(mine[key]))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streams", ["keyed", "global"])
def test_a_run_goes_on_exactly_inside_an_epoch(train_until, tmp_path, streams, workers):
    keys = {"DATALOADER__RANDOM_STREAMS": streams, "DATALOADER__NUM_WORKERS": workers}
    whole = train_until(Noisy, "whole", **keys)
    ended = train_until(Noisy, "cut", ((1, 1),), **keys)
    assert str(ended) == "ended by SIGTERM; the same command line goes on from epoch 2, batch 2 of 3"
    assert [path.name for path in (tmp_path / "cut" / "linear").iterdir()] == ["interim.pth.tar-1.2"]
    again = train_until(Noisy, "cut", ((1, 2),), signal.SIGINT, **keys)
    assert str(again) == "ended by SIGINT; the same command line goes on from epoch 2, batch 3 of 3"
    third = train_until(Noisy, "cut", ((2, 0),), signal.SIGHUP, **keys)
    assert isinstance(third, Interrupted)
    same(train_until(Noisy, "cut", **keys), whole)
    left = sorted(path.name for path in (tmp_path / "cut" / "linear").iterdir())
    assert left == ["checkpoint", "model.pth.tar-3"]


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 2)])
@pytest.mark.parametrize("streams", ["keyed", "global"])
def test_with_validation(train_until, streams, place):
    keys = {"DATALOADER__RANDOM_STREAMS": streams, "TEST__FINAL_MODEL": "best_val"}
    whole = train_until(Noisy, "whole", **keys)
    assert isinstance(train_until(Noisy, "cut", (place,), **keys), Interrupted)
    same(train_until(Noisy, "cut", **keys), whole)


def test_in_the_validation_after_an_epoch(train_until, monkeypatch):
    keys = {"DATALOADER__RANDOM_STREAMS": "global", "TEST__FINAL_MODEL": "best_val"}
    whole = train_until(Noisy, "whole", **keys)
    usual = Noisy.parse_batch_test

    def ask(self, batch):
        if self.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Noisy, "parse_batch_test", ask)
        ended = train_until(Noisy, "cut", **keys)
    assert str(ended).endswith("goes on from the end of epoch 2")
    same(train_until(Noisy, "cut", **keys), whole)


@pytest.mark.parametrize("streams", ["keyed", "global"])
def test_pairs_of_batches(train_until, streams):
    keys = {"DATALOADER__RANDOM_STREAMS": streams, "TRAIN__COUNT_ITER": "train_x"}
    whole = train_until(NoisyPairs, "whole", **keys)
    assert isinstance(train_until(NoisyPairs, "cut", ((1, 1),), **keys), Interrupted)
    same(train_until(NoisyPairs, "cut", **keys), whole)


@pytest.mark.parametrize("place", [(0, 1), (1, 2)])
def test_a_loop_of_its_own_goes_on_from_the_start_of_the_epoch(train_until, place):
    whole = train_until(OwnLoop, "whole", DATALOADER__RANDOM_STREAMS="global")
    ended = train_until(OwnLoop, "cut", (place,), DATALOADER__RANDOM_STREAMS="global")
    assert f"goes on from the start of epoch {place[0] + 1}: inside an epoch, the loop of this trainer" in str(ended)
    same(train_until(OwnLoop, "cut", DATALOADER__RANDOM_STREAMS="global"), whole)


def test_by_time(train_until, tmp_path, monkeypatch):
    """Two are kept until training is over; a damaged one is passed over."""
    often = {"TRAIN__CHECKPOINT_MINUTES": 1e-9, "DATALOADER__RANDOM_STREAMS": "global"}
    whole = train_until(Noisy, "whole", **often)
    assert sorted(path.name for path in (tmp_path / "whole" / "linear").iterdir()) == ["checkpoint", "model.pth.tar-3"]

    def killed(self, batch):
        if (self.epoch, self.batch_idx) == (1, 2):
            raise KeyboardInterrupt  # as a kill, it leaves no time to save
        return ToyTrainer.forward_backward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Noisy, "forward_backward", killed)
        with pytest.raises(KeyboardInterrupt):
            train_until(Noisy, "cut", **often)
    folder = tmp_path / "cut" / "linear"
    assert sorted(path.name for path in folder.iterdir()) == ["interim.pth.tar-1.1", "interim.pth.tar-1.2"]
    content = bytearray((folder / "interim.pth.tar-1.2").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "interim.pth.tar-1.2").write_bytes(content)
    same(train_until(Noisy, "cut", **often), whole)
    assert train_until(Noisy, "cut", TRAIN__CHECKPOINT_MINUTES=0.0).resumed


def test_interim_checkpoints_go_also_if_the_run_was_killed_after_its_last_epoch(train_until, tmp_path):
    train_until(Noisy, "run")
    folder = tmp_path / "run" / "linear"
    (folder / "interim.pth.tar-2.3").write_bytes((folder / "model.pth.tar-3").read_bytes())
    train_until(Noisy, "run")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "model.pth.tar-3"]


def test_the_checkpoint_with_the_most_work_comes_first(tmp_path):
    names = ["model.pth.tar-2", "model.pth.tar-1", "interim.pth.tar-1.7", "interim.pth.tar-2.3", "interim.pth.tar-2"]
    for name in (*names, "model-best.pth.tar"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "checkpoint").write_text("model.pth.tar-2\n")

    def found() -> list[str]:
        return [os.path.basename(path) for path in resumable_checkpoints(str(tmp_path))]

    assert found() == ["interim.pth.tar-2.3", "model.pth.tar-2", "interim.pth.tar-1.7", "model.pth.tar-1"]
    (tmp_path / "checkpoint").write_text("model-best.pth.tar\n")
    assert found()[:3] == ["interim.pth.tar-2.3", "model-best.pth.tar", "model.pth.tar-2"]
    (tmp_path / "checkpoint").unlink()
    assert found() == ["interim.pth.tar-2.3", "interim.pth.tar-1.7"]
    assert resumable_checkpoints(str(tmp_path / "none")) == []


def test_signals_raise_once_or_wait():
    with interruptible():
        with pytest.raises(Interrupted, match="ended by SIGHUP"):
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked() == signal.SIGHUP
    with interruptible():
        with deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # to the group as well: the same request
        with pytest.raises(Interrupted, match="SIGTERM"):
            raise_if_asked()
    assert not asked()
    raise_if_asked()


def test_workers_of_loaders_heed_their_parent_alone():
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(worker, number)
        time.sleep(0.3)
        os.kill(worker, 0)  # it lives
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "0\n"


WORKER = """
import os, signal, time
from dassl.utils.interruption import leave_signals_to_parent
start, asked = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
worker = os.fork()
if not worker:
    leave_signals_to_parent()
    print(os.getpid(), flush=True)
    time.sleep(600)
signal.sigwait({signal.SIGUSR1})
os.kill(worker, signal.SIGTERM)
print(os.waitpid(worker, 0)[1], flush=True)
"""
TWICE = """
import os, signal, sys, time
from dassl.utils.interruption import deferred, interruptible
with interruptible(), deferred():
    print(flush=True)
    time.sleep(600)
"""


def test_a_second_signal_ends_the_process():
    with subprocess.Popen([sys.executable, "-c", TWICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == -signal.SIGINT
        assert process.stderr.read() == b""
