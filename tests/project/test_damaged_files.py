"""Damaged and hostile files, by the hundred: every reader answers with what it documents, and with nothing else.

A seeded fuzz test. For each reader a real file is made, changed at random (bits, cuts, repeated pieces; for JSON, YAML,
CSV and `KEY VALUE` also by their grammar) and read. What is read must be what was written where a digest or a checksum
says what that was; a refusal must be an error that is documented, on one line; no file is written and no program run.

    python -m pytest tests/project/test_damaged_files.py                # some hundred files
    python -m pytest tests/project/test_damaged_files.py --long         # `MANY` for each reader
"""

import csv
import hashlib
import io
import json
import math
import os
import pickle
import random
import signal
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clip_models import VIT, random_state, write_torchscript
from dataset_trees import oxford_flowers, stanford_cars
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import datasets
import predict
import trainers
from clip import hub
from clip.weight_files import read_weights
from dassl.config import declared_cfg, merge_file, merge_opts
from dassl.data.datasets import Datum
from dassl.evaluation.predictions import Predictions, write_predictions
from dassl.utils import file_identity, save_checkpoint
from dassl.utils.checkpoints import load_checkpoint
from dassl.utils.digests import content_digest, read_array, write_array
from dassl.utils.file_identity import file_digests
from dassl.utils.images import is_image_file, read_image
from datasets import archives, caches, first_use, matlab, own_data, split_lists, splits
from datasets.oxford_flowers import OxfordFlowers
from datasets.stanford_cars import StanfordCars
from lpclip import features
from results import logs
from results.predictions import read_predictions
from results.records import read_metrics, read_object

FEW, MANY = 12, 500  # mutations for each reader
SECONDS = 10  # that one file may take; the slowest takes a tenth of one
CHECKPOINT_KEYS = ("state_dict", "epoch", "optimizer", "classnames", "config", "progress")
assert datasets, trainers  # imported for what they register


@dataclass(frozen=True)
class Reader:
    """How one kind of file is made and read.

    Attributes:
        make: writes a whole file into a folder; returns its path.
        read: reads it; what it returns has to be the same for every file that is accepted, where `exact`.
        exact: whether the file says what was written to it.
        grammar: how its text is changed beside bytes: "json", "yaml", "csv", "opts", "log" or "".
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    exact: bool = False
    grammar: str = ""


# -- making files ------------------------------------------------------------------------------------------------------

STATE = random_state({**VIT, "vocab_size": 50})
ROWS = [[f"cat/{number}.jpg", number % 2, ("cat", "dog")[number % 2]] for number in range(6)]
LISTED = ("impath", "label", "classname")
RECORD = {
    "trainer": "CoOp",
    "dataset": "DTD",
    "seed": 1,
    "accuracy": 62.5,
    "epoch": 3,
    "split": "test",
    "shots": 2,
    "num_test": 8,
    "num_classes": 2,
    "train_seconds": 1.5,
    "created": "2026-01-01T00:00:00+00:00",
    "learns": True,
    "predictions": {"file": "predictions.npz", "digest": "0" * 64},
    "history": [{"epoch": 1, "lr": 0.1, "loss": 0.7}, {"epoch": 2, "lr": 0.1, "loss": 0.6}],
    "per_class": [{"classname": "cat", "correct": 5, "total": 8, "accuracy": 62.5}],
    "config": {"OPTIM": {"LR": 0.002, "MAX_EPOCH": 3}, "TRAINER": {"NAME": "CoOp"}},
}


def _written(name: str, write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return make


def _text(name: str, content: str) -> Callable[[Path], Path]:
    return _written(name, lambda path: path.write_text(content, encoding="utf-8"))


def _json(name: str, content: object) -> Callable[[Path], Path]:
    return _text(name, json.dumps(content, indent=1))


def _checkpoint() -> dict:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    extras = {"classnames": ["cat", "dog"], "config": {"MODEL": {"BACKBONE": {"NAME": "tiny-ViT"}}}, "progress": {}}
    return {
        "state_dict": model.state_dict(),
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "scheduler": None,
        **extras,
    }


def _make_checkpoint(folder: Path) -> Path:
    save_checkpoint(_checkpoint(), str(folder))
    return folder / "model.pth.tar-3"


def _make_legacy_checkpoint(folder: Path) -> Path:
    torch.save({**_checkpoint()}, folder / "old.pth.tar-3", _use_new_zipfile_serialization=False)
    return folder / "old.pth.tar-3"


def _datum(row: list) -> Datum:
    datum = Datum.__new__(Datum)
    datum._impath, datum._label, datum._domain, datum._classname = f"/data/2750/{row[0]}", row[1], 0, row[2]
    return datum


class Payload:
    """Runs a program wherever a pickle's calls are made."""

    def __reduce__(self):
        return os.system, ("echo run > executed",)


def _features(folder: Path) -> Path:
    some = features.Features(np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4))
    features._write(folder / "features.npz", "of this", dict.fromkeys(features.PARTS, some))
    return folder / "features.npz"


def _make_predictions(folder: Path) -> Path:
    """Of four images and three classes, the two largest logits of each."""
    names = np.array(["cat", "dog", "cow"])
    some = Predictions(
        paths=np.array([f"a/{number}.jpg" for number in range(4)]),
        labels=np.array([0, 1, 2, 0]),
        classnames=names,
        predicted=np.array([0, 1, 1, 2]),
        largest=np.arange(4, dtype=np.float32),
        relative=np.tile(np.array([0, -1.5], np.float16), (4, 1)),
        top=np.array([[0, 1], [1, 0], [1, 0], [2, 1]]),
        relative_of_label=np.array([0, 0, -3, -2], np.float16),
        logsumexp=np.full(4, 0.3, np.float32),
        logsumexp_cosine=np.full(4, 1.0, np.float32),
        logit_scale=100.0,
        text_features=np.ones((3, 2), np.float16),
        frozen_text_features=np.ones((3, 2), np.float16),
    )
    write_predictions(folder / "predictions.npz", some)
    return folder / "predictions.npz"


def _make_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("a/b.jpg", "a/c.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 600
            archive.addfile(info, io.BytesIO(bytes(range(200)) * 3))


def _make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/b.jpg", "a/c.jpg"):
            archive.writestr(name, bytes(range(200)) * 3)


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
DEEP = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (24, 32), dtype=np.uint16))


def _image(name: str, image: Image.Image = PICTURE, **options) -> Callable[[Path], Path]:
    return _written(name, lambda path: image.save(path, **options))


def _cars(folder: Path) -> Path:
    stanford_cars(folder)
    return folder / "stanford_cars" / "devkit" / "cars_train_annos.mat"


def _flowers(folder: Path) -> Path:
    oxford_flowers(folder)
    return folder / "oxford_flowers" / "imagelabels.mat"


LOG = """***************
** Arguments **
SEED: 1
epoch [1/2] batch [1/3] time 0.1 loss 0.5
epoch [2/2] batch [3/3] time 0.1 loss 0.4
Finish training
Evaluate on the *test* set
=> result
* total: 8
* correct: 5
* accuracy: 62.5%
* error: 37.5%
* macro_f1: 60.1%
"""


def _log(folder: Path) -> Path:
    (folder / "seed1").mkdir()
    return _text("seed1/log.txt", LOG)(folder)


def _hash_store(folder: Path) -> Path:
    """The store knows the hash of a file beside it, which is read as one that has not changed for long."""
    known = folder / "known.jpg"
    known.write_bytes(b"content")
    os.utime(known, ns=(10**18, 10**18))
    with _store_in(folder):
        file_digests([str(known)])
    return folder / "hashes.sqlite"


@contextmanager
def _store_in(folder: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FILE_HASHES", str(folder / "hashes.sqlite"))
        patch.setattr(file_identity, "SETTLED_SECONDS", 0.0)
        yield


YAML = yaml.safe_dump(
    {"OPTIM": {"LR": 0.002, "MAX_EPOCH": 3, "STEPSIZE": [1, 2]}, "INPUT": {"SIZE": [32, 32]}, "SEED": 1}
)
OPTS = "OPTIM.LR 0.5\nINPUT.SIZE (32,32)\nOPTIM.NAME sgd\nUSE_CUDA False\nDATASET.SOURCE_DOMAINS ('a','b')\nSEED 3\n"

# -- reading them ------------------------------------------------------------------------------------------------------


def _of_checkpoint(path: Path) -> str:
    checkpoint = load_checkpoint(str(path))
    return content_digest({key: checkpoint[key] for key in CHECKPOINT_KEYS if key in checkpoint})


def _configuration(path: Path) -> object:
    return predict._configuration(read_object(path), [], "the checkpoint")


def _merged(path: Path) -> object:
    cfg = declared_cfg()
    merge_file(cfg, str(path))
    return cfg


def _with_opts(path: Path) -> object:
    words = path.read_text(encoding="utf-8").split()
    cfg = declared_cfg()
    merge_opts(cfg, words)
    return cfg


def _metrics(path: Path) -> object:
    record = read_metrics(path)
    assert 0 <= record["accuracy"] <= 100, record["accuracy"]
    assert isinstance(record["seed"], int), record["seed"]
    return record


def _unpacked(path: Path) -> object:
    """Unpacks into a folder beside, which is emptied again: files elsewhere are noticed by the test."""
    folder = path.parent / "unpacked"
    try:
        archives.extract(str(path), str(folder))
    except archives.DAMAGE as error:
        raise ValueError("cannot be unpacked") from error
    finally:
        for entry in sorted(folder.rglob("*"), reverse=True):
            entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        folder.rmdir()


def _draw(path: Path) -> object:
    split = splits.Split(*([splits.Item(*row) for row in ROWS[start::2]] for start in (0, 1, 0)))
    return caches.read_draw(str(path), split)


def _predictions(path: Path) -> str:
    return content_digest({name: value for name, value in vars(read_predictions(path)).items() if value is not None})


def _first_use(path: Path) -> object:
    return first_use._read(str(path))


def _pixels(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of Pillow, about tags that are damaged
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of half the limit
        image = read_image(str(path))
    assert image.mode == "RGB"
    assert image.width * image.height <= 2 * Image.MAX_IMAGE_PIXELS
    assert isinstance(is_image_file(str(path)), bool)
    return image.size


def _raw_split(kind: type) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        cfg = declared_cfg()
        cfg.DATASET.ROOT = str(next(folder for folder in path.parents if folder.name == "files"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matlab, "SECONDS", SECONDS - 2)
            split = kind.located(cfg).make_split()
        splits.check_labels(split, str(path))
        return None

    return read


def _experiment(path: Path) -> object:
    for keyword in ("accuracy", "macro_f1"):
        for signals in (logs.END_OF_TRAINING, logs.END_OF_TEST):
            result = logs.read_run(path.parent, keyword, signals)
            assert (result.value is None) == bool(result.problem)
            assert result.value is None or 0 <= result.value <= 100
    return None


def _remembered(path: Path) -> object:
    """Whatever the store says, the digest is that of the content."""
    known = path.parent / "known.jpg"
    with _store_in(path.parent):
        assert file_digests([str(known)]) == [hashlib.sha256(known.read_bytes()).hexdigest()]
    for other in path.parent.glob("hashes.sqlite?*"):
        other.unlink()
    return None


WRITES = ("hash store",)  # to itself: it is a cache
SLOW = dict.fromkeys(("MATLAB records", "MATLAB labels"), (4, 100))  # numbers of mutations where each starts a process
ISOLATED = f"subprocess.Popen ({sys.executable!r}, [{sys.executable!r}, '-I', '-c', "

READERS = {
    "JPEG": Reader(_image("a.jpg", quality=90), _pixels),
    "progressive JPEG": Reader(_image("a.jpg", progressive=True), _pixels),
    "PNG": Reader(_image("a.png"), _pixels),
    "16-bit PNG": Reader(_image("a.png", DEEP), _pixels),
    "GIF": Reader(_image("a.gif", PICTURE.quantize(16)), _pixels),
    "TIFF": Reader(_image("a.tif", compression="tiff_deflate"), _pixels),
    "16-bit TIFF": Reader(_image("a.tif", DEEP), _pixels),
    "WebP": Reader(_image("a.webp"), _pixels),
    "BMP": Reader(_image("a.bmp"), _pixels),
    "MATLAB records": Reader(_cars, _raw_split(StanfordCars)),
    "MATLAB labels": Reader(_flowers, _raw_split(OxfordFlowers)),
    "log": Reader(_log, _experiment, grammar="log"),
    "hash store": Reader(_hash_store, _remembered),
    "TorchScript": Reader(_written("a.pt", lambda p: write_torchscript(STATE, p)), lambda p: _tensors(p), exact=True),
    "state dict": Reader(_written("a.pt", lambda p: torch.save(STATE, p)), lambda p: _tensors(p), exact=True),
    "legacy": Reader(
        _written("a.pt", lambda p: torch.save(STATE, p, _use_new_zipfile_serialization=False)), lambda p: _tensors(p)
    ),
    "safetensors": Reader(_written("a.safetensors", lambda p: save_file(STATE, p)), lambda p: _tensors(p)),
    "payload": Reader(_written("a.pt", lambda p: torch.save({"a": Payload()}, p)), lambda p: _tensors(p)),
    "open_clip settings": Reader(
        _json(
            "open_clip_config.json",
            {"model_cfg": {"embed_dim": 8, "text_cfg": {"width": 8}, "vision_cfg": {"width": 8}}},
        ),
        lambda p: hub._read_settings("a", p),
        grammar="json",
    ),
    "checkpoint": Reader(_make_checkpoint, _of_checkpoint, exact=True),
    "legacy checkpoint": Reader(_make_legacy_checkpoint, _of_checkpoint),
    "hostile checkpoint": Reader(
        _written("model.pth.tar-1", lambda p: torch.save({"state_dict": {}, "epoch": Payload()}, p)), _of_checkpoint
    ),
    "settings of a checkpoint": Reader(_json("config.json", RECORD["config"]), _configuration, grammar="json"),
    "image features": Reader(
        _written("a.features", lambda p: write_array(p, np.arange(12.0))), lambda p: read_array(p).tolist(), exact=True
    ),
    "features of the probe": Reader(
        _features, lambda p: content_digest(features._read(p, "of this") or {}), exact=True
    ),
    "predictions": Reader(_make_predictions, _predictions, exact=True),
    "draw": Reader(
        _written("draw.json", lambda p: caches.write_draw(str(p), *(_items(part) for part in (ROWS[:2:2], ROWS[1:2])))),
        _draw,
        exact=True,
        grammar="json",
    ),
    "official draw": Reader(
        _written("d.pkl", lambda p: p.write_bytes(pickle.dumps({"train": list(map(_datum, ROWS)), "val": []}))),
        lambda p: caches.read_pickle(str(p), "2750"),
    ),
    "hostile draw": Reader(
        _written("d.pkl", lambda p: p.write_bytes(pickle.dumps({"train": [Payload()]}))),
        lambda p: caches.read_pickle(str(p), "2750"),
    ),
    "split": Reader(
        _json("split.json", {"train": ROWS, "val": ROWS[:2], "test": ROWS[2:]}),
        lambda p: splits.read_split_file(str(p)),
        grammar="json",
    ),
    "split list": Reader(
        _written("shot_2-seed_1_train.jsonl", lambda p: split_lists.write_list(str(p), _items(ROWS))),
        lambda p: split_lists.read_list(str(p)),
        exact=True,
    ),
    "split list of others": Reader(
        _text("a.jsonl", "".join(json.dumps(dict(zip(LISTED, row, strict=True))) + "\n" for row in ROWS)),
        lambda p: split_lists.read_list(str(p), "cat"),
        grammar="jsonl",
    ),
    "list": Reader(
        _text("list.csv", "path,label,name,split\n" + "".join(f"{a},{b},{c},train\n" for a, b, c in ROWS)),
        lambda p: own_data._read_csv(str(p)),
        grammar="csv",
    ),
    "names": Reader(
        _json("n.json", {"n01": "cat", "n02": "dog"}), lambda p: own_data.read_names(str(p)), grammar="json"
    ),
    "names in lines": Reader(
        _text("n.txt", "n01,cat\nn02,dog\n"), lambda p: own_data.read_names(str(p)), grammar="csv"
    ),
    "configuration": Reader(_text("a.yaml", YAML), _merged, grammar="yaml"),
    "KEY VALUE": Reader(_text("opts", OPTS), _with_opts, grammar="opts"),
    "metrics.json": Reader(_json("metrics.json", RECORD), _metrics, grammar="json"),
    "sweep.json": Reader(_json("sweep.json", {"config": RECORD["config"]}), read_object, grammar="json"),
    "downloads.json": Reader(
        _json("downloads.json", {"https://a": {"bytes": 3, "sha256": "0" * 64}}), _first_use, grammar="json"
    ),
    "tar": Reader(_written("a.tar", _make_tar), _unpacked),
    "zip": Reader(_written("a.zip", _make_zip), _unpacked),
}


def _tensors(path: Path) -> object:
    state = read_weights(path).state
    return content_digest({key: state[key] for key in sorted(state)})


def _items(rows: list) -> list:
    return [splits.Item(*row) for row in rows]


# -- changing them -----------------------------------------------------------------------------------------------------

ODD = [
    *(None, True, False, 0, -1, -5, 1.5, 10000, 10**400, "", "50", "nan", "\0", "\ud800", "../../etc/passwd", [], {}),
    *(
        math.nan,
        math.inf,
        1e308,
        [[]],
        {"a": {}},
        "=cmd()",
        "a" * 5000,
        [None],
        {"": 1},
        "\u202e",
        "1e400",
        "__import__",
    ),
]


def _some_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of the kinds that disks, networks and people make."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 16, 300))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            data = data[:at]
        elif kind == 3:
            data[at:at] = rng.randbytes(length)
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at : at + length] = bytes(length)
        else:
            data[at:at] = data[: rng.randrange(len(data) + 1)]
    return bytes(data)


def _places(tree: object) -> list[tuple[object, object]]:
    """Containers and keys of all values in a tree of JSON."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    found = [(tree, key) for key in keys]
    for key in keys:
        found += _places(tree[key])
    return found


def _some_json(text: str, rng: random.Random) -> str:
    """A value becomes another one, vanishes, is there twice, or is nested without end."""
    tree = json.loads(text)
    parent, key = rng.choice(_places(tree))
    kind = rng.randrange(6)
    if kind <= 2:
        parent[key] = rng.choice(ODD)
    elif kind == 3:
        del parent[key]
    elif kind == 4:
        return json.dumps(tree).replace("{", '{"accuracy": 1, "accuracy": 2, "train": [], "val": [], ', 1)
    else:
        deep = rng.choice((50, 5000, 200_000))
        parent[key] = "@"
        return json.dumps(tree).replace('"@"', rng.choice(("[", '{"a":')) * deep + rng.choice(("", "1" + "]" * deep)))
    return json.dumps(rng.choice((tree, tree, tree, [tree], rng.choice(ODD))))


def _some_json_lines(text: str, rng: random.Random) -> str:
    """One line is changed as JSON, vanishes, or is there twice."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    changed = [_some_json(lines[at], rng)] if rng.randrange(3) else lines[at : at + 1] * rng.choice((0, 2))
    return "\n".join([*lines[:at], *changed, *lines[at + 1 :]])


def _some_yaml(text: str, rng: random.Random) -> str:
    tree = yaml.safe_load(text)
    kind = rng.randrange(6)
    if kind == 0:  # a billion laughs, of lists and of nodes
        first, more = rng.choice((("[x]", "[*a{0}, *a{0}, *a{0}]"), ("{x: 1}", "{{p: *a{0}, q: *a{0}, r: *a{0}}}")))
        return text + "\n".join([f"a: &a0 {first}", *(f"b{i}: &a{i + 1} {more.format(i)}" for i in range(40))])
    if kind == 1:
        return text + rng.choice(
            ("!!python/object/apply:os.system ['echo run > executed']", "a: !!python/name:os.system")
        )
    if kind == 2:
        return text.replace(
            "OPTIM:", rng.choice(("OPTIM: " + "[" * 3000, "OPTIM: {" * 500, "OPTIM: *none", "? [a]\n:"))
        )
    parent, key = rng.choice(_places(tree))
    parent[key] = rng.choice([odd for odd in ODD if odd != "\ud800"])
    return yaml.safe_dump(tree, allow_unicode=True)


def _some_csv(text: str, rng: random.Random) -> str:
    rows = list(csv.reader(text.splitlines()))
    row = rng.choice(rows)
    odd = ["", "\0", '"', "1e400", "9" * 400, "nan", "-1", "../x", "a" * 200_000, "=1+1", "\ud800", "\r", "x,y", "path"]
    row[rng.randrange(len(row))] = rng.choice(odd)
    if rng.randrange(3) == 0:
        rows[rng.randrange(len(rows))] = row[: rng.randrange(len(row) + 1)] * rng.choice((1, 2, 40))
    return "\n".join(",".join(row) for row in rows)


def _some_opts(text: str, rng: random.Random) -> str:
    words = text.split()
    odd = [
        "None",
        "[" * 3000,
        "(" * 200 + ")" * 200,
        "9" * 5000,
        "1e400",
        "nan",
        "-1",
        "''",
        '"',
        "{1:2}",
        "__import__('os')",
    ]
    odd += [
        "lambda:0",
        "1" + "+1" * 5000,
        "{" * 90,
        "\ud800",
        "'a' 'b'",
        "b'x'",
        "1_000",
        "0x10",
        "f'{1}'",
        "...",
        "OPTIM",
    ]
    words[rng.randrange(len(words))] = rng.choice(odd)
    return " ".join(words)


def _some_log(text: str, rng: random.Random) -> str:
    """A line becomes another, vanishes or is there twice; a number becomes an odd one."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    odd = [
        "-5%",
        "1e400%",
        "nan%",
        "10000%",
        "%",
        "\0%",
        "62.5",
        "9" * 5000 + "%",
        "6\u0660%",
        "\ud800%",
        "1_0%",
        "=1%",
    ]
    kind = rng.randrange(5)
    if kind <= 1:
        lines[rng.choice((10, 11, 12))] = f"* {rng.choice(('accuracy', 'macro_f1', 'x'))}: {rng.choice(odd)}"
    elif kind == 2:
        del lines[at]
    elif kind == 3:
        lines[at:at] = rng.sample(lines, rng.randrange(1, 6)) * rng.choice((1, 1, 5000))
    else:
        lines[2] = f"SEED: {rng.choice(odd)}"
    return rng.choice(("\n", "\r\n", "\r")).join(lines)


GRAMMARS = {
    "log": _some_log,
    "json": _some_json,
    "jsonl": _some_json_lines,
    "yaml": _some_yaml,
    "csv": _some_csv,
    "opts": _some_opts,
}


def _changed(data: bytes, grammar: str, rng: random.Random) -> bytes:
    if not grammar or rng.randrange(3) == 0:
        return _some_bytes(data, rng)
    return GRAMMARS[grammar](data.decode("utf-8"), rng).encode("utf-8", "surrogatepass")


# -- the test ----------------------------------------------------------------------------------------------------------

_watched: list[str] | None = None
PROGRAMS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "os.startfile")


def _hook(event: str, args: tuple) -> None:
    if _watched is None:
        return
    if event in PROGRAMS:
        _watched.append(f"{event} {args!r}")
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _watched.append(f"opens {args[0]!r} to write")


sys.addaudithook(_hook)


@contextmanager
def _watching(seconds: int):
    """Collect what is run or opened to be written; end what takes too long."""
    global _watched

    def late(*_):
        raise AssertionError(f"still reading after {seconds} seconds")

    before, _watched = signal.signal(signal.SIGALRM, late), []
    signal.alarm(seconds)
    try:
        yield _watched
    finally:
        _watched = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*")}


def _read(reader: Reader, path: Path) -> tuple[object, Exception | None]:
    """What is read, or the error."""
    try:
        return reader.read(path), None
    except Exception as error:
        return None, error


@pytest.mark.parametrize("name", READERS)
def test_every_reader_survives_damage(name, tmp_path, monkeypatch, request):
    reader = READERS[name]
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    path = reader.make(tmp_path / "files")
    data = path.read_bytes()
    right = None if "hostile" in name or name == "payload" else reader.read(path)
    few, many = SLOW.get(name, (FEW, MANY))
    refused, count = 0, many if request.config.getoption("--long") else few
    for number in range(count):
        rng = random.Random(f"{name} {number}")
        content = _changed(data, reader.grammar, rng)
        path.write_bytes(content)
        before = _tree(tmp_path)
        where = f"{name}, mutation {number}: {content[:200]!r}"
        with _watching(SECONDS) as seen:
            got, error = _read(reader, path)
        assert error is None or (isinstance(error, ValueError) and len(str(error)) < 20_000), f"{error!r}\n{where}"
        refused += error is not None
        seen = [event for event in seen if "unpacked" not in event]
        if name.startswith("MATLAB"):  # scipy reads them in a process of its own
            seen = [event for event in seen if not event.startswith((ISOLATED, f"opens {os.devnull!r}"))]
        assert not seen or name in WRITES, f"{where}: {seen}"
        assert _tree(tmp_path) == before or name in WRITES, where
        if reader.exact and got is not None and content != data:
            assert got in (right, content_digest({})), where
    never = ("draw", "features of the probe", "log", "hash store")  # whatever is wrong with them is said otherwise
    assert refused or name in never or count < MANY, "no mutation was refused"


def _resized(png: bytes, width: int, height: int) -> bytes:
    """A PNG whose head says another size, with its checksum."""
    head = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


@pytest.mark.parametrize(
    ("width", "height", "said"), [(60_000, 60_000, "the limit of Pillow"), (40, 24, ""), (5000, 24, ""), (0, 9, "")]
)
def test_a_png_that_is_larger_than_its_data_is_refused(tmp_path, width, height, said):
    path = _image("a.png")(tmp_path)
    path.write_bytes(_resized(path.read_bytes(), width, height))
    with pytest.raises(ValueError, match=rf'cannot read the image "{path}": .*({said})'):
        read_image(str(path))


def test_a_cut_jpeg_is_refused_wherever_it_is_cut(tmp_path):
    path = _image("a.jpg", quality=90)(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 40, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf'cannot read the image "{path}"'):
            read_image(str(path))


def test_a_store_of_hashes_that_is_damaged_is_set_aside(tmp_path, caplog, heard):
    path = _hash_store(tmp_path)
    data = bytearray(path.read_bytes())
    data[100:4000] = bytes(3900)  # the first page, but for its head
    path.write_bytes(data)
    for _ in range(3):
        with _store_in(tmp_path):
            assert file_digests([str(tmp_path / "known.jpg")]) == [hashlib.sha256(b"content").hexdigest()]
    assert (tmp_path / "hashes.sqlite.damaged").read_bytes() == data
    assert len([record for record in caplog.records if "a new one is begun" in record.message]) == 1
