"""Few-shot draws: the official ones, kept as JSON or read from official pickles, by many processes at once."""

import json
import logging
import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_trees import TREES, config, load, rows

import datasets
from dassl.config import declared_cfg
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets import caches
from datasets.fewshot import FewShotDataset
from datasets.splits import Item, Split, subsample_split

pytestmark = pytest.mark.usefixtures("heard")


@pytest.fixture
def eurosat(tmp_path) -> Path:
    TREES["EuroSAT"](tmp_path)
    load("EuroSAT", tmp_path)
    return tmp_path


def kept_files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "eurosat/split_fewshot").iterdir())


def parity_split(parity_dir) -> tuple[dict, Split]:
    data = json.loads((parity_dir / "data.json").read_text())
    lists = [
        [Item(str(index), label, f"c{label}") for index, label in enumerate(data["fewshot"][f"{part}_labels"])]
        for part in ("train", "val")
    ]
    return data, Split(*lists)


def test_draws_are_the_official_ones(parity_dir, tmp_path):
    data, split = parity_split(parity_dir)
    dataset = FewShotDataset.located(config("EuroSAT", tmp_path))
    for case, chosen in data["fewshot"]["chosen"].items():
        seed, shots = (int(number) for number in re.findall(r"\d+", case))
        random.random()  # something drew before
        state = random.getstate()
        train, val = dataset.draw(split, shots, seed)
        assert random.getstate() == state
        assert [int(item.impath) for item in train] == chosen["train"]
        assert [int(item.impath) for item in val] == chosen["val"]


def test_halves_are_the_official_ones(parity_dir):
    data, split = parity_split(parity_dir)
    for subsample, expected in data["subsample_classes"].items():
        kept = subsample_split(split, subsample)
        assert [[int(item.impath), item.label, item.classname] for item in kept.train] == expected


def test_draw_is_kept_as_json_with_the_hash_of_the_split(eurosat, caplog):
    caplog.set_level(logging.INFO)
    drawn = load("EuroSAT", eurosat, shots=2, subsample="base")
    (name,) = kept_files(eurosat)
    assert name.startswith("shot_2-seed_1-")
    assert name.endswith(".json")
    path = eurosat / "eurosat/split_fewshot" / name
    assert f"Saving preprocessed few-shot data to {path}" in caplog.text
    assert "SUBSAMPLE BASE CLASSES!" in caplog.text
    content = json.loads(path.read_text())
    assert len(content["train"]) == 2 * 3  # all classes, though only the base half was asked for
    caplog.clear()
    again = load("EuroSAT", eurosat, shots=2, subsample="base")
    assert f"Loading preprocessed few-shot data from {path}" in caplog.text
    assert "Creating a" not in caplog.text
    assert rows(again, "train_x") == rows(drawn, "train_x")
    assert rows(again, "val") == rows(drawn, "val")


def test_another_split_gets_a_draw_of_its_own(eurosat):
    load("EuroSAT", eurosat, shots=2)
    path = eurosat / "eurosat/split_zhou_EuroSAT.json"
    content = json.loads(path.read_text())
    content["train"].reverse()
    path.write_text(json.dumps(content))
    load("EuroSAT", eurosat, shots=2)
    assert len(kept_files(eurosat)) == 2


def test_draw_without_a_seed_comes_from_the_global_generator_and_is_not_kept(eurosat):
    random.seed(7)
    first = load("EuroSAT", eurosat, shots=2, seed=-1)
    random.seed(7)
    second = load("EuroSAT", eurosat, shots=2, seed=-1)
    seeded = load("EuroSAT", eurosat, shots=2, seed=7)
    assert rows(first, "train_x") == rows(second, "train_x") == rows(seeded, "train_x")
    assert all("seed_7" in name for name in kept_files(eurosat))


def test_seed_and_shots_change_the_draw(eurosat):
    draws = {
        (shots, seed): rows(load("EuroSAT", eurosat, shots=shots, seed=seed), "train_x")
        for shots, seed in [(2, 1), (2, 2), (3, 1)]
    }
    assert draws[2, 1] != draws[2, 2]
    assert len(draws[3, 1]) == 9
    assert len(load("EuroSAT", eurosat, shots=100).train_x) == 15  # classes with too few are taken whole


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"train": [["a", 0]], "val": []}', '{"train": 3, "val": []}'])
def test_damaged_json_is_drawn_anew(eurosat, damage, caplog):
    drawn = rows(load("EuroSAT", eurosat, shots=2), "train_x")
    (name,) = kept_files(eurosat)
    path = eurosat / "eurosat/split_fewshot" / name
    whole = path.read_text()
    path.write_text(damage)
    assert rows(load("EuroSAT", eurosat, shots=2), "train_x") == drawn
    assert f"Ignoring {path}" in caplog.text
    assert path.read_text() == whole


def test_a_draw_that_was_changed_within_the_split_is_drawn_anew(eurosat, caplog):
    """Other images of the split, under the right labels: only the digest tells that they are not those drawn."""
    drawn = rows(load("EuroSAT", eurosat, shots=2), "train_x")
    (name,) = kept_files(eurosat)
    path = eurosat / "eurosat/split_fewshot" / name
    whole, split = path.read_text(), json.loads((eurosat / "eurosat/split_zhou_EuroSAT.json").read_text())
    content = json.loads(whole)
    content["train"][0] = next(row for row in split["train"] if row not in content["train"])
    path.write_text(json.dumps(content))
    assert rows(load("EuroSAT", eurosat, shots=2), "train_x") == drawn
    assert f"Ignoring {path}: damaged (its content is not that which was written" in caplog.text
    assert path.read_text() == whole
    del content["digest"]
    path.write_text(json.dumps(content))  # as older versions wrote it
    assert rows(load("EuroSAT", eurosat, shots=2), "train_x") != drawn


def test_a_pickle_with_a_giant_index_takes_no_memory(tmp_path):
    path = tmp_path / "draw.pkl"
    path.write_bytes(b"\x80\x04}r\xff\xff\xff\xff.")  # the reader in C would ask for 64 GB
    assert caches.read_pickle(str(path), "2750") == {}


def official_pickle(root: Path, train: list[Datum], val: list[Datum], prefix: str | None = None) -> Path:
    """What the official code writes: its Datums with the full paths of the machine that wrote it."""
    path = root / "eurosat/split_fewshot/shot_1-seed_1.pkl"
    path.parent.mkdir(exist_ok=True)
    data = {"train": train, "val": val}
    if prefix is not None:
        for datum in train + val:
            datum._impath = datum._impath.replace(f"{root}/eurosat/" if prefix == "HERE" else str(root), prefix)
            datum._impath = datum._impath.removeprefix("HERE")  # 2750/Forest/Forest_1.jpg
    path.write_bytes(pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL))
    return path


@pytest.mark.parametrize("prefix", [None, "/another/machine", "D:\\data", ".", "HERE"])
def test_official_pickle_serves(eurosat, prefix, caplog):
    caplog.set_level(logging.INFO)
    whole = load("EuroSAT", eurosat)
    chosen = [whole.train_x[index] for index in (3, 7, 11)]
    expected = [(datum.impath, datum.label, datum.classname) for datum in chosen]
    path = official_pickle(eurosat, chosen, whole.val[:1], prefix)
    drawn = load("EuroSAT", eurosat, shots=1)
    assert f"Loading preprocessed few-shot data from {path}" in caplog.text
    assert rows(drawn, "train_x") == expected
    assert len(drawn.val) == 1
    assert drawn.draw_source == "stored"
    assert "The stored draw of 1 shots, seed 1 in" in caplog.text


def test_a_stored_draw_that_is_the_rules_is_not_remarked(eurosat, caplog):
    ours = load("EuroSAT", eurosat, shots=1)
    official_pickle(eurosat, [*ours.train_x], [*ours.val])
    for path in (eurosat / "eurosat/split_fewshot").glob("*.json"):
        path.unlink()
    again = load("EuroSAT", eurosat, shots=1)
    assert rows(again, "train_x") == rows(ours, "train_x")
    assert [dataset.draw_source for dataset in (ours, again, load("EuroSAT", eurosat))] == ["rule", "rule", None]
    assert "stored draw" not in caplog.text


def test_official_pickle_of_another_split_is_ignored(eurosat, caplog):
    whole = load("EuroSAT", eurosat)
    path = official_pickle(eurosat, whole.test[:3], [])
    drawn = load("EuroSAT", eurosat, shots=1)
    assert f"Ignoring {path}: made from another split" in caplog.text
    assert not set(rows(drawn, "train_x")) & set(rows(drawn, "test"))


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"junk", pickle.dumps([1, 2]), pickle.dumps({"train": [3]})])
def test_damaged_pickle_is_ignored(eurosat, content, caplog):
    path = eurosat / "eurosat/split_fewshot/shot_1-seed_1.pkl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert len(load("EuroSAT", eurosat, shots=1).train_x) == 3
    assert f"Ignoring {path}" in caplog.text


class Malicious:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize(("call", "arguments"), [(os.mkdir, ["PATH"]), (eval, ["__import__('os').mkdir('PATH')"])])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_is_refused_and_not_executed(eurosat, call, arguments, protocol):
    path = eurosat / "eurosat/split_fewshot/shot_1-seed_1.pkl"
    path.parent.mkdir(exist_ok=True)
    trap = eurosat / "executed"
    arguments = [argument.replace("PATH", str(trap)) for argument in arguments]
    path.write_bytes(pickle.dumps({"train": [Malicious(call, *arguments)], "val": []}, protocol=protocol))
    with pytest.raises(caches.ForbiddenPickle, match=r"shot_1-seed_1.pkl was not read.*delete it"):
        load("EuroSAT", eurosat, shots=1)
    assert not trap.exists()


def test_reading_a_pickle_runs_no_code_of_datum_either(eurosat, tmp_path):
    """Nor can a state dictionary put attributes on the real class."""
    datum = Datum.__new__(Datum)
    datum.__dict__.update(_impath="x/2750/a.jpg", _label=0, _domain=0, _classname="a", other="thing")
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"train": [datum]}))
    assert caches.read_pickle(str(path), "2750") == {"train": [Item("a.jpg", 0, "a")]}


def test_persistent_ids_are_refused(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02U\x01aQ.")
    with pytest.raises(caches.ForbiddenPickle, match="outside object"):
        caches.read_pickle(str(path), "images")


def imagenet_pickle(root: Path, rename: dict[str, str] | None = None) -> list[str]:
    """The official listing of ImageNet, in an order of its own."""
    names = rename or {}
    data = {}
    for part, key in (("train", "train"), ("val", "test")):
        listed = load("ImageNet", root)
        datums = list(listed.train_x if part == "train" else listed.test)
        datums.sort(key=lambda datum: datum.impath[::-1])
        for datum in datums:
            datum._classname = names.get(datum.classname, datum.classname)
            datum._impath = datum._impath.replace(str(root), "/elsewhere")
        data[key] = datums
    (root / "imagenet/preprocessed.pkl").write_bytes(pickle.dumps(data))
    return [os.path.basename(datum.impath) for datum in data["train"]]


def test_imagenet_listing_of_the_official_code(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    TREES["ImageNet"](tmp_path)
    order = imagenet_pickle(tmp_path)
    dataset = load("ImageNet", tmp_path)
    assert "Loading the list of images from" in caplog.text
    assert [os.path.basename(datum.impath) for datum in dataset.train_x] == order
    assert len(load("ImageNet", tmp_path, shots=2).train_x) == 8


def test_stale_imagenet_listing_is_ignored(tmp_path, caplog):
    TREES["ImageNet"](tmp_path)
    imagenet_pickle(tmp_path, {"tench": "tench, Tinca tinca"})
    dataset = load("ImageNet", tmp_path)
    assert "preprocessed.pkl: its classes are not those of the folders" in caplog.text
    assert dataset.classnames[0] == "tench"


EIGHT = """
import hashlib, os, sys, time
sys.path[:0] = sys.argv[2:]
from dataset_trees import load, rows
start = time.time() + 0.3
for number in range(8):
    if os.fork() == 0:
        status = 1
        try:
            time.sleep(max(0, start - time.time()))
            dataset = load("EuroSAT", sys.argv[1], shots=2)
            lists = repr((rows(dataset, "train_x"), rows(dataset, "test")))
            os.write(1, f"lists {hashlib.sha256(lists.encode()).hexdigest()}\\n".encode())
            status = 0
        finally:
            os._exit(status)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(8)))
"""


def test_eight_processes_at_once_on_a_fresh_data_set(tmp_path, repo_root):
    TREES["EuroSAT"](tmp_path)
    command = [sys.executable, "-c", EIGHT, str(tmp_path), str(repo_root), str(repo_root / "tests" / "helpers")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr
    seen = [line for line in result.stdout.splitlines() if line.startswith("lists ")]
    assert len(seen) == 8
    assert len(set(seen)) == 1
    assert len(kept_files(tmp_path)) == 1
    assert sorted(path.name for path in (tmp_path / "eurosat").iterdir()) == [
        "2750",
        "split_fewshot",
        "split_zhou_EuroSAT.json",
    ]


def test_lists_do_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    made = {}
    for name in ("EuroSAT", "ImageNet", "ImageNetV2"):
        root = tmp_path / name
        TREES[name](root)
        real_listdir, real_scandir = os.listdir, os.scandir
        made[name] = [rows(load(name, root, seed=1), part) for part in ("train_x", "test")]
        for path in root.glob("*/split_zhou_*.json"):
            path.unlink()

        class Reversed(list):
            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

        monkeypatch.setattr(os, "listdir", lambda path, real=real_listdir: real(path)[::-1])
        monkeypatch.setattr(os, "scandir", lambda path, real=real_scandir: Reversed(list(real(path))[::-1]))
        assert [rows(load(name, root, seed=1), part) for part in ("train_x", "test")] == made[name]
        monkeypatch.undo()


FOREIGN = """
import os
import pickle

from dassl.data.datasets import DATASET_REGISTRY, Datum, DatasetBase
from dassl.utils import mkdir_if_missing

from .dtd import DescribableTextures as DTD
from .oxford_pets import OxfordPets


@DATASET_REGISTRY.register()
class ForeignTextures(DatasetBase):
    dataset_dir = "dtd"

    def __init__(self, cfg):
        self.dataset_dir = os.path.join(os.path.abspath(cfg.DATASET.ROOT), self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        split_path = os.path.join(self.dataset_dir, "split_foreign.json")
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")
        mkdir_if_missing(self.split_fewshot_dir)
        if os.path.exists(split_path):
            train, val, test = OxfordPets.read_split(split_path, self.image_dir)
        else:
            train, val, test = DTD.read_and_split_data(self.image_dir)
            OxfordPets.save_split(train, val, test, split_path, self.image_dir)
        shots = cfg.DATASET.NUM_SHOTS
        path = os.path.join(self.split_fewshot_dir, f"shot_{shots}-seed_{cfg.SEED}.pkl")
        train = self.generate_fewshot_dataset(train, num_shots=shots)
        val = self.generate_fewshot_dataset(val, num_shots=min(shots, 4))
        with open(path, "wb") as file:
            pickle.dump({"train": train, "val": val}, file, protocol=pickle.HIGHEST_PROTOCOL)
        train, val, test = OxfordPets.subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)
"""


def test_file_written_for_the_family_works_when_dropped_in(tmp_path, monkeypatch):
    """Its seeded draw, its pickle and its halves agree with those of the project's own class for the same split."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/foreign_textures.py").write_text(FOREIGN)
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path / "code")])
    datasets._import_modules(tmp_path / "code")
    TREES["DescribableTextures"](tmp_path)
    ours = load("DescribableTextures", tmp_path, shots=2, subsample="new")
    random.seed(1)
    theirs = load("ForeignTextures", tmp_path, shots=2, subsample="new")
    for part in ("train_x", "val", "test"):
        assert rows(theirs, part) == rows(ours, part)
    for path in Path(ours.split_fewshot_dir).glob("*.json"):
        path.unlink()
    from_pickle = load("DescribableTextures", tmp_path, shots=2, subsample="new")
    assert rows(from_pickle, "train_x") == rows(ours, "train_x")
    assert not list(Path(ours.split_fewshot_dir).glob("*.json"))


def test_a_key_has_one_default(monkeypatch):
    kind = DATASET_REGISTRY.get("Food101")
    monkeypatch.setattr(kind, "CONFIG", {"TEMPLATE": "x {}"})
    with pytest.raises(ValueError, match=r"DATASET.TEMPLATE: FewShotDataset declares .* '', Food101 'x \{\}'"):
        declared_cfg()


def test_import_names_a_broken_file(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
    (tmp_path / "mine_works.py").write_text("VALUE = 3\n")
    assert datasets._import_modules(tmp_path) == ["mine_works"]
    (tmp_path / "zz_broken.py").write_text("import no_such_module\n")
    with pytest.raises(ImportError, match=rf"data set file {tmp_path}/zz_broken.py cannot be imported"):
        datasets._import_modules(tmp_path)
