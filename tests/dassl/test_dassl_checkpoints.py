"""Checkpoint files: plain data, written whole; Dassl's own are read, and nothing in a file is run."""

import contextlib
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    open_all_layers,
    open_specified_layers,
    resume_from_checkpoint,
    save_checkpoint,
)
from dassl.utils.checkpoints import checkpoints_from_last, last_checkpoint, require_finite, sound_checkpoints
from dassl.utils.digests import DamagedError, content_digest, read_array, with_digest, write_array


def _parts(name="adadelta"):
    cfg = get_cfg_default().OPTIM
    cfg.NAME, cfg.LR_SCHEDULER, cfg.WARMUP_EPOCH = name, "cosine", 1
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, cfg)
    scheduler = build_lr_scheduler(optimizer, cfg)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


def _state(model, optimizer, scheduler, **extra):
    parts = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    return {"state_dict": model.state_dict(), "epoch": 3, **parts, "val_result": None, **extra}


def test_files(tmp_path, capsys):
    model, *parts = _parts()
    save_checkpoint(_state(nn.DataParallel(model), *parts), str(tmp_path / "linear"))
    assert sorted(os.listdir(tmp_path / "linear")) == ["checkpoint", "model.pth.tar-3"]
    assert (tmp_path / "linear" / "checkpoint").read_text().strip() == "model.pth.tar-3"
    path = tmp_path / "linear" / "model.pth.tar-3"
    assert capsys.readouterr().out == f"Checkpoint saved to {path}\n"
    checkpoint = torch.load(path, weights_only=True)
    assert list(checkpoint["state_dict"]) == ["weight", "bias"]  # without DataParallel's prefix
    assert set(checkpoint) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result", "digest"}
    save_checkpoint(_state(model, *parts), str(tmp_path / "best"), is_best=True)
    assert sorted(os.listdir(tmp_path / "best")) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-3"]
    save_checkpoint(_state(model, *parts), str(tmp_path / "named"), model_name="mine")
    assert (tmp_path / "named" / "mine").is_file()


@pytest.mark.parametrize("name", ["adadelta", "adam", "sgd"])
def test_resume(tmp_path, name):
    model, optimizer, scheduler = _parts(name)
    save_checkpoint(_state(model, optimizer, scheduler), str(tmp_path))
    other = _parts(name)
    torch.nn.init.zeros_(other[0].weight)
    assert resume_from_checkpoint(str(tmp_path), *other) == 3
    assert torch.equal(other[0].weight, model.weight)
    assert other[1].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert other[2].get_last_lr() == scheduler.get_last_lr()
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        resume_from_checkpoint(str(tmp_path / "empty"), *other)


@pytest.mark.parametrize("name", ["adadelta", "adam", "adamw", "amsgrad", "radam", "rmsprop", "sgd"])
def test_checkpoints_of_dassl_are_read(tmp_path, name):
    """Its warm-up scheduler stores the successor as an object, with the optimiser; its results are NumPy numbers."""
    model, optimizer, scheduler = _parts(name)
    state = _state(model, optimizer, scheduler, val_result=np.float64(71.5))
    state["scheduler"]["successor"] = scheduler.successor
    torch.save(state, tmp_path / "model.pth.tar-3")
    (tmp_path / "checkpoint").write_text("model.pth.tar-3\n")
    with pytest.raises(Exception, match="Unsupported"):
        torch.load(tmp_path / "model.pth.tar-3", weights_only=True)
    assert load_checkpoint(str(tmp_path / "model.pth.tar-3"))["val_result"] == 71.5
    other = _parts(name)
    assert resume_from_checkpoint(str(tmp_path), *other) == 3
    optimizer.step()
    scheduler.step()
    other[1].step()
    other[2].step()
    assert other[1].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


class Unknown:
    """What a checkpoint should not hold."""


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    path = tmp_path / "strange.pt"
    torch.save({"state_dict": {}, "epoch": 1, "payload": Unknown()}, path)
    with pytest.raises(ValueError, match=r"strange\.pt.*Unknown.*DASSL_UNSAFE_LOAD=1"):
        load_checkpoint(str(path))
    monkeypatch.setenv("DASSL_UNSAFE_LOAD", "1")
    assert isinstance(load_checkpoint(str(path))["payload"], Unknown)
    monkeypatch.delenv("DASSL_UNSAFE_LOAD")
    torch.save({"payload": os.system}, path)
    with pytest.raises(ValueError, match="DASSL_UNSAFE_LOAD"):
        load_checkpoint(str(path))


class Payload:
    """Runs a program wherever the calls of a pickle are made."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo run > {self.path}",)


def _legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _early_tar(content, path):
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(content)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _script_archive(content, path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (
            ("data.pkl", pickle.dumps(content, 2)),
            ("constants.pkl", b"\x80\x02)."),
            ("version", b"3\n"),
        ):
            archive.writestr(f"a/{name}", data)
        archive.writestr("a/code/__torch__.py", "")


def _plain_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, _legacy, _early_tar, _plain_pickle, _script_archive])
@pytest.mark.parametrize("entry", ["payload", "state_dict", "epoch", "digest"])
def test_the_calls_of_a_pickle_are_not_made(tmp_path, write, entry):
    victim, path = tmp_path / "victim", tmp_path / "run" / "model.pth.tar-1"
    path.parent.mkdir()
    (path.parent / "checkpoint").write_text("model.pth.tar-1\n")
    write({"state_dict": {}, "epoch": 1, entry: Payload(victim)}, path)
    for read in (load_checkpoint, lambda file: load_pretrained_weights(nn.Linear(1, 1), file)):
        with pytest.raises(ValueError, match=r"model\.pth\.tar-1"):
            read(str(path))
    with contextlib.suppress(ValueError, FileNotFoundError):  # damaged, so passed over, or refused
        resume_from_checkpoint(str(path.parent), nn.Linear(1, 1))
    assert not victim.exists()


def test_damaged_files(tmp_path):
    with pytest.raises(ValueError, match="None"):
        load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint("nowhere")
    whole = tmp_path / "whole"
    torch.save({"epoch": 1}, whole)
    for content in (b"", b"hello world" * 50, whole.read_bytes()[:200]):
        path = tmp_path / "damaged"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(str(path))


def test_pretrained_weights(tmp_path, capsys):
    weights = {"module.weight": torch.ones(2, 2), "bias": torch.zeros(3), "other": torch.zeros(1)}
    torch.save({"state_dict": weights}, tmp_path / "some.pt")
    model = nn.Linear(2, 2)
    load_pretrained_weights(model, str(tmp_path / "some.pt"))
    assert torch.equal(model.weight, torch.ones(2, 2))
    assert "Discarded, for their name or size: ['bias', 'other']" in capsys.readouterr().out
    torch.save({"x": torch.ones(1)}, tmp_path / "none.pt")
    with pytest.warns(UserWarning, match="nothing was loaded"):
        load_pretrained_weights(model, str(tmp_path / "none.pt"))
    with pytest.raises(FileNotFoundError):
        load_pretrained_weights(model, str(tmp_path / "missing.pt"))


def test_counting_and_opening_parameters():
    model = nn.Sequential()
    model.add_module("body", nn.Linear(2, 3))
    model.add_module("head", nn.Linear(3, 1))
    assert count_num_param(model) == 13
    assert count_num_param(params=model.head.parameters()) == 4
    assert count_num_param(params=[{"params": [model.head.bias]}]) == 1
    with pytest.raises(ValueError, match="needs"):
        count_num_param()
    open_specified_layers(nn.DataParallel(model), "head")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert not model.body.training
    open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="head"):
        open_specified_layers(model, ["hed"])


def test_a_damaged_checkpoint_can_be_deleted(tmp_path):
    """The sentence says so; the run then goes on from the checkpoint before, or from the start."""
    for epoch in (1, 2, 10):
        save_checkpoint({"state_dict": {}, "epoch": epoch}, str(tmp_path))
    last = tmp_path / "model.pth.tar-10"
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(ValueError, match=f'"{last}" is no checkpoint, or is damaged: delete it') as caught:
        load_checkpoint(last_checkpoint(str(tmp_path)))
    assert "weights_only" not in str(caught.value)
    last.unlink()
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "model.pth.tar-2")
    for path in tmp_path.glob("model*"):
        path.unlink()
    assert last_checkpoint(str(tmp_path)) is None


@pytest.mark.parametrize("name", ["../secret.pt", "/secret.pt", "a/../../secret.pt", "..", "", "\x00", "..\\secret.pt"])
def test_the_pointer_leads_to_files_beside_it_only(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"epoch": 9}, tmp_path / "secret.pt")
    (folder / "checkpoint").write_text(name.replace("/secret.pt", str(tmp_path / "secret.pt"), int(name[:1] == "/")))
    assert last_checkpoint(str(folder)) is None
    save_checkpoint({"state_dict": {}, "epoch": 1}, str(folder))
    (folder / "checkpoint").write_text(name)
    assert last_checkpoint(str(folder)) == str(folder / "model.pth.tar-1")


# Digests


def test_a_digest_is_of_the_content():
    same = [{"a": [1, 2.5, None, True], "b": torch.arange(3)}, {"a": (1, np.float64(2.5), None, np.bool_(True))}]
    same[1] |= {"b": torch.arange(6)[::2] // 2, "digest": "of something else"}
    assert content_digest(same[0]) == content_digest(same[1])
    others = [
        {"a": [1, 2.5, None, True], "b": torch.arange(3.0)},
        {"a": [1, 2.5, None, True], "b": torch.arange(3)[None]},
        {"a": [1, 2.5, None, 1], "b": torch.arange(3)},
        {"a": [1, 2.5, "None", True], "b": torch.arange(3)},
        {"a": [1, [2.5, None, True]], "b": torch.arange(3)},
        {"b": torch.arange(3), "a": [1, 2.5, None, True]},
        {"a": [1, 2.5, None, True, "b"], "": torch.arange(3)},
    ]
    assert len({content_digest(data) for data in [*same, *others]}) == 1 + len(others)
    with pytest.raises(TypeError, match="a object is no plain data"):
        content_digest({"a": object()})
    deep = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(DamagedError, match="nested more than 100 deep"):
        content_digest(deep)


def _digest_of_entries(state, path):
    """Of what is read under the names that were written: another entry, as of a flipped name, changes nothing."""
    checkpoint = load_checkpoint(str(path))
    return content_digest({key: checkpoint[key] for key in state if key in checkpoint})


def _flipped(data, place):
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


@pytest.mark.parametrize("kind", ["now", "without a digest", "legacy"])
def test_a_flipped_bit_is_noticed(tmp_path, kind):
    """It is refused, or the file says the same as before it (a bit of padding or of a name within the archive)."""
    state = _state(*_parts(), classnames=["cat", "dog"], config={"OPTIM": {"LR": 0.5}})
    save_checkpoint(state, str(tmp_path))
    path = tmp_path / "model.pth.tar-3"
    if kind != "now":
        state = with_digest(state) if kind == "legacy" else state
        torch.save(state, path, _use_new_zipfile_serialization=kind != "legacy")
    data, generator = path.read_bytes(), torch.Generator().manual_seed(0)
    expected, refused = _digest_of_entries(state, path), 0
    for place in torch.randint(8 * len(data), (150,), generator=generator).tolist():
        path.write_bytes(_flipped(data, place))
        try:
            assert _digest_of_entries(state, path) == expected, place
        except ValueError:
            refused += 1
    assert refused > 50


def test_other_weights_under_an_old_digest_are_refused(tmp_path):
    checkpoint = with_digest(_state(*_parts()))
    checkpoint["state_dict"] = {name: value + 1 for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, tmp_path / "model.pth.tar-3")
    with pytest.raises(DamagedError, match="the digest is another one's"):
        load_checkpoint(str(tmp_path / "model.pth.tar-3"))


@pytest.mark.parametrize(
    "entry",
    [
        *({"epoch": "3"}, {"epoch": True}, {"epoch": -1}, {"epoch": 10**12}, {"epoch": 2.5}, {"state_dict": [1]}),
        *({"val_result": "50"}, {"classnames": "cat"}, {"config": 3}, {"progress": []}, {"backbone_digest": 7}),
    ],
)
def test_entries_of_other_types_are_refused(tmp_path, entry):
    torch.save({**_state(*_parts()), **entry}, tmp_path / "model.pth.tar-3")
    with pytest.raises(DamagedError, match=f"its {next(iter(entry))} is"):
        load_checkpoint(str(tmp_path / "model.pth.tar-3"))


def test_what_is_no_plain_data_is_written_without_a_digest(tmp_path, capsys):
    save_checkpoint({**_state(*_parts()), "payload": Unknown()}, str(tmp_path))
    assert "The checkpoint has no digest, for a Unknown is no plain data" in capsys.readouterr().out


# The last checkpoint that can be used


def _damage(path, how):
    data = path.read_bytes()
    if how == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        checkpoint = torch.load(path, weights_only=True)
        weights = next(iter(checkpoint["state_dict"].values())).numpy().tobytes()
        assert weights in data
        path.write_bytes(_flipped(data, 8 * data.index(weights) + 5))
    elif how == "diverged":
        checkpoint = torch.load(path, weights_only=True)
        next(iter(checkpoint["state_dict"].values())).view(-1)[0] = float("nan")
        torch.save(with_digest(checkpoint), path)


DAMAGES = ["torn", "empty", "flipped", "diverged"]


@pytest.mark.parametrize("how", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path, capsys, how):
    model, *parts = _parts()
    for epoch in (2, 4, 10):
        save_checkpoint({**_state(model, *parts), "epoch": epoch}, str(tmp_path))
    _damage(tmp_path / "model.pth.tar-10", how)
    capsys.readouterr()
    assert resume_from_checkpoint(str(tmp_path), *_parts()) == 4
    assert capsys.readouterr().out.count(f'"{tmp_path / "model.pth.tar-10"}"') == 1
    _damage(tmp_path / "model.pth.tar-4", how)
    _damage(tmp_path / "model.pth.tar-2", how)
    with pytest.raises(FileNotFoundError, match="no checkpoint that can be read"):
        resume_from_checkpoint(str(tmp_path), *_parts())


def test_later_checkpoints_than_the_last_written_one_are_another_run_s(tmp_path):
    for epoch in (1, 3, 2):
        save_checkpoint({"state_dict": {}, "epoch": epoch}, str(tmp_path))
    names = [os.path.basename(path) for path in checkpoints_from_last(str(tmp_path))]
    assert names == ["model.pth.tar-2", "model.pth.tar-1"]
    (tmp_path / "checkpoint").write_bytes(b"\xff\x00 torn")
    assert [epoch["epoch"] for _, epoch in sound_checkpoints(str(tmp_path), nn.Identity())] == [3, 2, 1]


def test_infinite_buffers_are_no_divergence():
    model = nn.Linear(1, 1)
    model.register_buffer("mask", torch.full((2,), float("-inf")))
    require_finite({"state_dict": model.state_dict()}, model, "a")
    for name, value in (("weight", float("inf")), ("mask", float("nan"))):
        state = {**model.state_dict(), name: torch.full((1, 1), value)}
        with pytest.raises(DamagedError, match=f'"a" is of a run that diverged: {name} holds'):
            require_finite({"state_dict": state}, model, "a")


# Arrays


def test_arrays_with_a_digest(tmp_path):
    path, array = tmp_path / "a" / "x.npy", np.arange(6.0).reshape(2, 3)
    write_array(path, array)
    assert (read_array(path) == array).all()
    data = path.read_bytes()
    for place in range(0, 8 * len(data), 37):
        path.write_bytes(_flipped(data, place))
        with pytest.raises(DamagedError, match=r"x\.npy does not hold what was written"):
            read_array(path)
    path.write_bytes(data[:-1])
    with pytest.raises(DamagedError):
        read_array(path)
    with pytest.raises(ValueError, match="pickle"):
        write_array(path, np.array([object()]))
