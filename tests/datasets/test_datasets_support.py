"""What runs train on, other than the rule's balanced draw: given lists, unbalanced draws, wrong labels."""

import hashlib
import json
import logging
import random
from collections import Counter
from pathlib import Path

import pytest
from dataset_trees import PER_CLASS, TREES, config, load, rows

from dassl.config import declared_cfg, merge_file, merge_opts
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.evidence import noise_name, support_name, training_evidence
from datasets import write_split_lists
from datasets.imbalance import Imbalance, apportion
from datasets.label_noise import with_wrong_labels
from datasets.split_lists import read_list, write_list
from datasets.splits import Item, read_split_file

pytestmark = pytest.mark.usefixtures("heard")
CLASSES = 3


@pytest.fixture
def eurosat(tmp_path) -> Path:
    TREES["EuroSAT"](tmp_path)
    load("EuroSAT", tmp_path)
    return tmp_path


def build(root: Path, shots: int = 2, seed: int = 1, subsample: str = "all", **keys):
    cfg = config("EuroSAT", root, shots, seed, subsample)
    for key, value in keys.items():
        cfg.DATASET[key] = value
    return build_dataset(cfg)


def lists_of(root: Path) -> Path:
    return root / "eurosat/split_fewshot"


def written(root: Path, capsys, *more: str) -> list[Path]:
    capsys.readouterr()
    assert write_split_lists.main(["eurosat", "--root", str(root), "--shots", "2", "--seeds", "1", *more]) == 0
    return [Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith("_train.jsonl")]


# -- lists -------------------------------------------------------------------------------------------------------------


def test_written_lists_are_the_rules_draws_and_serve_in_their_place(eurosat, capsys):
    drawn = load("EuroSAT", eurosat, shots=2)
    (path,) = written(eurosat, capsys)
    assert path == lists_of(eurosat) / "shot_2-seed_1_train.jsonl"
    listed = build(eurosat, SPLIT_LIST="split_fewshot")
    assert rows(listed, "train_x") == rows(drawn, "train_x")
    assert rows(listed, "test") == rows(drawn, "test")
    assert (listed.val, listed.draw_source, drawn.draw_source) == (None, "list", "rule")
    half, drawn_half = (
        build(eurosat, subsample="new", SPLIT_LIST=str(path)),
        load("EuroSAT", eurosat, 2, subsample="new"),
    )
    assert rows(half, "train_x") == rows(drawn_half, "train_x")


def test_a_folder_of_lists_of_all_sets(eurosat, tmp_path, capsys):
    (path,) = written(eurosat, capsys, "--to", str(tmp_path / "lists"))
    assert path == tmp_path / "lists/eurosat/shot_2-seed_1_train.jsonl"
    digest = (path.parent / f"{path.name}.sha256").read_text()
    assert digest == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
    assert len(build(eurosat, SPLIT_LIST=str(tmp_path / "lists")).train_x) == 2 * CLASSES
    with pytest.raises(FileNotFoundError, match=r"there is no file .*/lists/eurosat/shot_4-seed_1_train\.jsonl"):
        build(eurosat, shots=4, SPLIT_LIST=str(tmp_path / "lists"))


@pytest.mark.parametrize("keys", [("impath", "label", "classname"), ("_impath", "_label", "_classname")])
@pytest.mark.parametrize("prefix", ["", "/elsewhere/eurosat/2750/", "D:\\data\\2750\\"])
def test_lists_of_others_are_read_whatever_machine_wrote_them(eurosat, keys, prefix):
    split = read_split_file(str(eurosat / "eurosat/split_zhou_EuroSAT.json"))
    chosen = [next(item for item in split.train if item.label == label) for label in (2, 0, 1)]
    lines = []
    for item in chosen:
        path = prefix + (item.impath.replace("/", "\\") if "\\" in prefix else item.impath)
        lines.append(json.dumps({keys[0]: path, keys[1]: item.label, "_domain": 0, keys[2]: item.classname}))
    place = eurosat / "mine.jsonl"
    place.write_text("\n".join(lines) + "\n\n")
    listed = build(eurosat, shots=1, SPLIT_LIST=str(place))
    assert [item[1] for item in rows(listed, "train_x")] == [2, 0, 1]
    assert [Path(item[0]).name for item in rows(listed, "train_x")] == [Path(item.impath).name for item in chosen]


WRONG = {
    "test image": (lambda split: [split.test[0], *split.train[1:]], "it is a test image of the data set's split"),
    "validation image": (lambda split: [split.val[0], *split.train[1:]], "it is a validation image of"),
    "unknown image": (lambda split: [split.train[0]._replace(impath="a/b.jpg"), *split.train[1:]], "it is no image of"),
    "unknown label": (
        lambda split: [split.train[0]._replace(label=7), *split.train[1:]],
        "label 7 is 'Annual Crop Land' there, but the data set has 3 classes",
    ),
    "other name": (
        lambda split: [split.train[0]._replace(classname="Beach"), *split.train[1:]],
        "label 0 is 'Beach' there, but the data set calls it 'Annual Crop Land'",
    ),
    "other class": (
        lambda split: [split.train[0]._replace(label=1, classname="Forest"), *split.train[1:]],
        "its class is 'Forest' there, but 'Annual Crop Land' in the data set's split",
    ),
    "class missing": (
        lambda split: [item for item in split.train if item.label],
        "has no image of 1 classes: Annual Crop Land",
    ),
    "twice": (lambda split: [*split.train, split.train[0]], r"names 1 images twice, such as AnnualCrop/"),
    "too few": (
        lambda split: split.train[1:],
        r"has 4 images of 'Annual Crop Land', but DATASET.NUM_SHOTS is 100 and the split has 5 training images",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_lists_are_refused(eurosat, name):
    change, sentence = WRONG[name]
    split = read_split_file(str(eurosat / "eurosat/split_zhou_EuroSAT.json"))
    path = eurosat / "wrong.jsonl"
    write_list(str(path), split.train)
    assert len(build(eurosat, shots=100, SPLIT_LIST=str(path)).train_x) == 5 * CLASSES, "the whole list serves"
    write_list(str(path), change(split))
    with pytest.raises(ValueError, match=sentence) as caught:
        build(eurosat, shots=100, SPLIT_LIST=str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2 is not JSON"),
        ("3", "line 2: expected an object"),
        ("[1, 2]", "line 2: expected an object"),
        ('{"label": 0, "classname": "a"}', "line 2: expected one of the keys impath, path, image, file, found 0"),
        ('{"path": "a", "impath": "b", "label": 0, "classname": "a"}', "keys impath, path, image, file, found 2"),
        ('{"path": "a", "label": "0", "classname": "a"}', "the label must be a whole number from 0, found '0'"),
        ('{"path": "a", "label": true, "classname": "a"}', "the label must be a whole number"),
        ('{"path": "", "label": 0, "classname": "a"}', "the path must be a non-empty string"),
    ],
)
def test_lines_that_are_no_images_are_named(tmp_path, line, sentence):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"impath": "a/b.jpg", "label": 0, "classname": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=sentence):
        read_list(str(path))


def test_a_list_that_was_changed_since_it_was_written_is_refused(tmp_path):
    path = str(tmp_path / "list.jsonl")
    items = [Item("a/b.jpg", 0, "a\u2028b"), Item("c/\udcff.jpg", 1, "c")]
    write_list(path, items)
    assert read_list(path) == items
    text = Path(path).read_text()
    Path(path).write_text(text.replace("b.jpg", "d.jpg"))
    with pytest.raises(ValueError, match="does not hold what was written to it"):
        read_list(path)
    Path(f"{path}.sha256").unlink()  # as lists of others come
    assert read_list(path)[0].impath == "a/d.jpg"


def test_a_list_of_another_seed_is_refused(eurosat, capsys):
    (path,) = written(eurosat, capsys)
    with pytest.raises(ValueError, match=r"is of 2 shots and seed 1, but the run has 2 shots and seed 5"):
        build(eurosat, seed=5, SPLIT_LIST=str(path))
    assert write_split_lists.main(["eurosat", "--root", str(eurosat), "--shots", "0"]) == 2
    assert "--shots 0" in capsys.readouterr().err


def test_without_validation_images(eurosat):
    usual, none = load("EuroSAT", eurosat, shots=2), build(eurosat, VAL_SHOTS=0)
    assert rows(none, "train_x") == rows(usual, "train_x")
    assert (len(usual.val), none.val) == (2 * CLASSES, None)
    assert build(eurosat, shots=-1, VAL_SHOTS=0).val is None
    with pytest.raises(ValueError, match="VAL_SHOTS is -1"):
        build(eurosat, VAL_SHOTS=-1)


# -- unbalanced draws --------------------------------------------------------------------------------------------------


def counts(dataset) -> list[int]:
    found = Counter(item.label for item in dataset.train_x)
    return [found[label] for label in range(dataset.num_classes)]


def test_shares_by_hand():
    assert apportion([0.5, 0.25, 0.125, 0.125], [99] * 4, 16) == [8, 4, 2, 2]
    assert apportion([0.9, 0.05, 0.05], [4, 99, 99], 10) == [4, 3, 3], "what a class lacks goes to the others"
    assert apportion([1.0, 0.0, 0.0], [99] * 3, 6) == [4, 1, 1], "each class has an image"
    assert apportion([0.2, 0.8], [2, 3], 5) == [2, 3], "all that there are"


def test_power_law_by_hand():
    imbalance = Imbalance(power_law=1.0)
    made = imbalance.shots([100] * 4, 12, seed=1)
    total = 1 + 1 / 2 + 1 / 3 + 1 / 4
    assert sum(made) == 48
    assert all(
        abs(a - b) < 1 for a, b in zip(sorted(made, reverse=True), [48 / r / total for r in (1, 2, 3, 4)], strict=True)
    )
    assert imbalance.shots([100] * 4, 12, seed=1) == made
    assert len({tuple(imbalance.shots([100] * 4, 12, seed)) for seed in range(8)}) > 3, (
        "the seed says which class is rare"
    )


def test_concentration_says_how_unequal_a_dirichlet_is():
    spread = {}
    for concentration in (0.1, 1.0, 100.0):
        drawn = [Imbalance(dirichlet=concentration).shots([1000] * 10, 16, seed) for seed in range(20)]
        assert all(sum(own) == 160 and min(own) >= 1 for own in drawn)
        spread[concentration] = sum(max(own) for own in drawn) / 20
    assert spread[100.0] < 25 < spread[1.0] < 60 < spread[0.1]


def test_unbalanced_draws(eurosat):
    drawn = build(eurosat, shots=3, SHOTS_POWER_LAW=2.0)
    assert sorted(counts(drawn)) == [2, 2, 5], "shares of 0.7, 1.7 and 6.6 of 9 images, at most 5 of a class"
    assert len(drawn.val) == 2 * CLASSES
    state = random.getstate()
    again = build(eurosat, shots=3, SHOTS_POWER_LAW=2.0)
    assert random.getstate() == state
    assert rows(again, "train_x") == rows(drawn, "train_x")
    assert not lists_of(eurosat).exists(), "an unbalanced draw is not kept"
    evidence = training_evidence(drawn)
    assert evidence["shots_per_class"] == counts(drawn)
    assert training_evidence(build(eurosat, shots=3))["shots_per_class"] is None


def test_shots_of_each_class_in_a_yaml_file(eurosat, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("DATASET:\n  NAME: EuroSAT\n  NUM_SHOTS: 2\n  SHOTS_PER_CLASS: [1, 4, 2]\n")
    cfg = declared_cfg()
    merge_file(cfg, str(path))
    merge_opts(cfg, ["DATASET.ROOT", str(eurosat), "SEED", "1"])
    assert counts(build_dataset(cfg)) == [1, 4, 2]
    merge_opts(cfg, ["DATASET.SHOTS_PER_CLASS", "[2,2,3]"])
    assert counts(build_dataset(cfg)) == [2, 2, 3]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"SHOTS_PER_CLASS": [1, 2]}, "DATASET.SHOTS_PER_CLASS has 2 numbers, but there are 3 classes"),
        ({"SHOTS_PER_CLASS": [1, 2, PER_CLASS]}, "wants 10 images of label 2, which has 5"),
        ({"SHOTS_PER_CLASS": [1, 2, 0]}, "a whole number of at least 1 for each class"),
        ({"SHOTS_POWER_LAW": -1.0}, "DATASET.SHOTS_POWER_LAW -1.0: an exponent is at least 0"),
        ({"SHOTS_DIRICHLET": 0.001}, "a concentration at least 0.01"),
        ({"SHOTS_DIRICHLET": 1.0, "SHOTS_POWER_LAW": 1.0}, "POWER_LAW 1.0 and DATASET.SHOTS_DIRICHLET 1.0 exclude"),
        ({"SHOTS_DIRICHLET": 1.0, "SPLIT_LIST": "x"}, "leave out DATASET.SHOTS_DIRICHLET 1.0"),
        ({"SHOTS_DIRICHLET": 1.0, "NUM_SHOTS": -1}, "needs DATASET.NUM_SHOTS, the mean over the classes, not -1"),
        ({"NOISE_RATE": 1.5}, "NOISE_RATE is 1.5, but must lie between 0 and 1"),
        ({"NOISE_TYPE": "worse"}, "NOISE_TYPE is 'worse', but must be one of sym, asym"),
    ],
)
def test_settings_that_cannot_be(eurosat, keys, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(eurosat, **keys)


# -- wrong labels ------------------------------------------------------------------------------------------------------


def wrong(clean, noisy) -> list[tuple[int, int]]:
    pairs = zip(clean.train_x, noisy.train_x, strict=True)
    assert all(a.impath == b.impath for a, b in zip(clean.train_x, noisy.train_x, strict=True))
    return [(a.label, b.label) for a, b in pairs if a.label != b.label]


def test_asymmetric_noise_takes_the_next_class(eurosat):
    clean, noisy = build(eurosat, shots=4), build(eurosat, shots=4, NOISE_RATE=0.5, NOISE_TYPE="asym")
    flips = wrong(clean, noisy)
    assert len(flips) == noisy.wrong_labels == 6
    assert {(new - old) % CLASSES for old, new in flips} == {1}
    assert all(item.classname == clean.classnames[item.label] for item in noisy.train_x)
    for part in ("val", "test"):
        assert rows(noisy, part) == rows(clean, part), "only training images have wrong labels"
    assert training_evidence(noisy)["wrong_labels"] == 6
    assert training_evidence(clean)["wrong_labels"] == clean.wrong_labels == 0


def test_symmetric_noise_takes_all_other_classes_alike():
    items = [Datum(impath=__file__, label=i % 10, classname=str(i % 10)) for i in range(10_000)]
    noisy = with_wrong_labels(items, [str(c) for c in range(10)], 0.3, "sym", seed=1)
    steps = Counter((b.label - a.label) % 10 for a, b in zip(items, noisy, strict=True))
    assert steps.pop(0) == 7000
    assert sorted(steps) == list(range(1, 10))
    assert all(abs(count - 3000 / 9) < 80 for count in steps.values())


def test_noise_is_a_function_of_the_seed(eurosat):
    noisy = {seed: build(eurosat, shots=-1, seed=seed, NOISE_RATE=0.4) for seed in (1, 2)}
    state = random.getstate()
    again = build(eurosat, shots=-1, seed=1, NOISE_RATE=0.4)
    assert random.getstate() == state
    assert rows(again, "train_x") == rows(noisy[1], "train_x") != rows(noisy[2], "train_x")
    every = build(eurosat, shots=1, NOISE_RATE=1.0, NOISE_TYPE="sym")
    assert (every.num_classes, every.classnames) == (CLASSES, build(eurosat).classnames), (
        "though a class may have no image"
    )


def test_wrong_labels_are_within_the_classes_that_are_trained_on(eurosat):
    noisy = build(eurosat, shots=4, subsample="base", NOISE_RATE=0.5, NOISE_TYPE="asym")
    assert {item.label for item in noisy.train_x} == {0, 1}
    with pytest.raises(ValueError, match="with 1 class there are no wrong labels"):
        build(eurosat, subsample="new", NOISE_RATE=0.5)


def test_sets_for_evaluation_alone_have_neither(tmp_path):
    TREES["ImageNetA"](tmp_path)
    cfg = config("ImageNetA", tmp_path, 2)
    plain = rows(build_dataset(cfg), "test")
    cfg.DATASET.NOISE_RATE, cfg.DATASET.SHOTS_DIRICHLET = 1.0, 1.0
    dataset = build_dataset(cfg)
    assert rows(dataset, "test") == rows(dataset, "train_x") == plain
    assert dataset.wrong_labels == 0


@pytest.mark.parametrize(
    ("keys", "support", "noise"),
    [
        ({}, "balanced", "none"),
        ({"SPLIT_LIST": "a"}, "list", "none"),
        ({"SHOTS_POWER_LAW": 1.5, "NOISE_RATE": 0.25, "NOISE_TYPE": "asym"}, "power law 1.5", "asym 0.25"),
        ({"SHOTS_DIRICHLET": 0.05, "NOISE_RATE": 0.0}, "Dirichlet 0.05", "none"),
        ({"SHOTS_PER_CLASS": [1, 2]}, "given per class", "none"),
    ],
)
def test_names_in_records(keys, support, noise):
    assert (support_name(keys), noise_name(keys)) == (support, noise)


def test_the_log_says_which_list(eurosat, capsys, caplog):
    caplog.set_level(logging.INFO)
    (path,) = written(eurosat, capsys)
    build(eurosat, SPLIT_LIST="split_fewshot")
    assert f"Training on the images that {path} lists" in caplog.text


def test_data_sets_that_do_not_know_a_key_refuse_it(tmp_path, monkeypatch):
    """A data set of others would train on right labels, and the record would say that some are wrong."""

    class Foreign(DatasetBase):
        def __init__(self, cfg):
            items = [Datum(impath=__file__, label=i, classname=str(i)) for i in range(2)]
            super().__init__(train_x=items, test=items)

    monkeypatch.setitem(DATASET_REGISTRY._objects, "Foreign", Foreign)
    cfg = config("Foreign", tmp_path)
    assert len(build_dataset(cfg).train_x) == 2
    cfg.DATASET.NOISE_RATE = 0.5
    with pytest.raises(ValueError, match=r"DATASET\.NOISE_RATE is 0\.5, but the data set Foreign knows no such key"):
        build_dataset(cfg)
