"""Every benchmark on a made tree in its exact layout: with and without its split file, all, base and new classes."""

import json
import logging
import os
import random
from pathlib import Path

import pytest
from dataset_trees import FOLDERS, TREES, WNIDS, classnames, config, load, put_images, rows

from dassl.config import get_cfg_default, merge_file
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets.fewshot import FewShotDataset
from datasets.splits import read_split_file

pytestmark = pytest.mark.usefixtures("heard")

SPLIT_FILE = ["Caltech101", "OxfordPets", "EuroSAT", "DescribableTextures", "StanfordCars", "OxfordFlowers", "Food101"]
SPLIT_FILE += ["SUN397", "UCF101"]
EVALUATION = ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]
STEMS = {
    "imagenet": "ImageNet",
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "OxfordFlowers",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "sun397": "SUN397",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
    "imagenetv2": "ImageNetV2",
    "imagenet_sketch": "ImageNetSketch",
    "imagenet_a": "ImageNetA",
    "imagenet_r": "ImageNetR",
}
CLASSES = {
    "Caltech101": ["face", "accordion", "airplane", "yin_yang"],
    "OxfordPets": ["abyssinian", "american_bulldog", "egyptian_mau"],
    "EuroSAT": ["Annual Crop Land", "Forest", "Sea or Lake"],
    "DescribableTextures": FOLDERS["DescribableTextures"],
    "Food101": FOLDERS["Food101"],
    "StanfordCars": [
        "2000 AM General Hummer SUV",
        "2011 Audi TT Hatchback",
        "2012 Ram C/V Cargo Van Minivan",
    ],
    "OxfordFlowers": ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"],
    "FGVCAircraft": ["707-320", "Boeing 717", "A300B4"],
    "SUN397": ["abbey", "outdoor apartment_building", "yard"],
    "UCF101": ["Apply_Eye_Makeup", "Archery", "Yo_Yo"],
    "ImageNet": ["tench", "goldfish", "great white shark", "tiger shark"],
    "ImageNetV2": ["tench", "goldfish", "great white shark", "tiger shark"],
    "ImageNetSketch": ["tench", "goldfish", "great white shark", "tiger shark"],
    "ImageNetA": ["goldfish", "tiger shark"],
    "ImageNetR": ["goldfish", "tiger shark"],
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, make in TREES.items():
        made[name] = tmp_path_factory.mktemp(name)
        make(made[name])
    return made


def test_yaml_files_name_every_benchmark(repo_root):
    for stem, name in STEMS.items():
        cfg = get_cfg_default()
        merge_file(cfg, repo_root / "configs/datasets" / f"{stem}.yaml")
        assert name == cfg.DATASET.NAME
        assert issubclass(DATASET_REGISTRY.get(name), FewShotDataset)


@pytest.mark.parametrize("name", sorted(TREES))
def test_class_names_and_parts(trees, name):
    dataset = load(name, trees[name])
    assert dataset.classnames == CLASSES[name]
    assert dataset.num_classes == len(CLASSES[name])
    assert {datum.label for datum in dataset.test} == set(range(len(CLASSES[name])))
    assert os.path.isabs(dataset.image_dir)
    assert dataset.image_dir.startswith(dataset.dataset_dir)
    train, val, test = (set(rows(dataset, part)) for part in ("train_x", "val", "test"))
    if name in EVALUATION:
        assert train == test
        assert not val
    elif name == "ImageNet":
        assert val == test
        assert not train & test
    else:
        assert val
        assert len(train | val | test) == len(train) + len(val) + len(test)


@pytest.mark.parametrize("name", SPLIT_FILE)
def test_split_is_made_once_and_read_back(trees, name, caplog):
    path = Path(load(name, trees[name]).split_path)
    assert path.name == f"split_zhou_{name}.json"
    path.unlink()
    caplog.set_level(logging.INFO)
    caplog.clear()  # of the first load, where an earlier test let messages through
    made = load(name, trees[name])
    content = json.loads(path.read_text())
    assert list(content)[:3] == ["train", "val", "test"]
    assert all((Path(made.image_dir) / row[0]).is_file() for row in content["train"] + content["val"])
    assert "Reading split from" not in caplog.text
    read = load(name, trees[name])
    assert f"Reading split from {path}" in caplog.text
    for part in ("train_x", "val", "test"):
        assert rows(made, part) == rows(read, part)


def test_made_split_has_the_official_proportions(trees):
    dataset = load("EuroSAT", trees["EuroSAT"])
    assert [len(rows(dataset, part)) for part in ("train_x", "val", "test")] == [15, 6, 9]
    pets = load("OxfordPets", trees["OxfordPets"])
    assert [len(rows(pets, part)) for part in ("train_x", "val", "test")] == [24, 6, 30]


def test_made_split_is_what_a_seeded_shuffle_of_sorted_files_gives(trees):
    """Half, a fifth and the rest of each class's shuffled list, classes one after the other from one generator."""
    dataset = load("DescribableTextures", trees["DescribableTextures"])
    random.seed(1)
    expected = []
    for label, folder in enumerate(FOLDERS["DescribableTextures"]):
        files = sorted(path.name for path in (Path(dataset.image_dir) / folder).iterdir())
        random.shuffle(files)
        expected += [(os.path.join(dataset.image_dir, folder, file), label, folder) for file in files[:5]]
    assert rows(dataset, "train_x") == expected


@pytest.mark.parametrize("name", sorted(set(TREES) - set(EVALUATION)))
def test_base_and_new_halves(trees, name):
    classes = CLASSES[name]
    middle = (len(classes) + 1) // 2
    whole = load(name, trees[name], shots=2)
    base = load(name, trees[name], shots=2, subsample="base")
    new = load(name, trees[name], shots=2, subsample="new")
    assert base.classnames == classes[:middle]
    assert new.classnames == classes[middle:]
    for part in ("train_x", "val", "test"):
        halves = {row[0] for row in rows(base, part)} | {row[0] for row in rows(new, part)}
        assert halves == {row[0] for row in rows(whole, part)}
    assert {datum.label for datum in new.test} == set(range(len(classes) - middle))


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_sets_ignore_shots_and_halves_with_a_warning(trees, name, caplog):
    dataset = load(name, trees[name], shots=1, subsample="base")
    assert dataset.classnames == CLASSES[name]
    assert len(dataset.train_x) == len(load(name, trees[name]).train_x)
    assert 'SUBSAMPLE_CLASSES "base" is ignored' in caplog.text


def test_the_full_split_hash_does_not_depend_on_the_draw(tmp_path):
    TREES["EuroSAT"](tmp_path)
    selections = [(-1, 1, "all"), (2, 1, "all"), (2, 2, "all"), (4, 3, "base"), (4, 3, "new")]
    found = [load("EuroSAT", tmp_path, shots, seed, part).full_split_hash for shots, seed, part in selections]
    path = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    assert set(found) == {read_split_file(path).digest()}
    content = json.loads(path.read_text())
    content["test"].pop()
    path.write_text(json.dumps(content))
    assert load("EuroSAT", tmp_path, 2).full_split_hash != found[0]


def test_templates(trees):
    assert load("EuroSAT", trees["EuroSAT"]).template == "a centered satellite photo of {}."
    assert load("Caltech101", trees["Caltech101"]).template == "a photo of a {}."
    cfg = config("EuroSAT", trees["EuroSAT"])
    cfg.DATASET.TEMPLATE = "from above: {}."
    assert build_dataset(cfg).template == "from above: {}."


def test_unknown_half(trees):
    with pytest.raises(ValueError, match=r"SUBSAMPLE_CLASSES.*'old'"):
        load("EuroSAT", trees["EuroSAT"], subsample="old")


def test_missing_root_and_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"DATASET.ROOT is empty"):
        load("Caltech101", "")
    with pytest.raises(FileNotFoundError, match=r"--root.*nowhere"):
        load("Caltech101", tmp_path / "nowhere")
    (tmp_path / "something").mkdir()
    message = r"101_ObjectCategories.*holds: something.*datasets.prepare Caltech101 --root.*DATASETS.md"
    with pytest.raises(FileNotFoundError, match=message):
        load("Caltech101", tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("OxfordPets", "annotations/test.txt"),
        ("StanfordCars", "devkit/cars_meta.mat"),
        ("OxfordFlowers", "cat_to_name.json"),
        ("FGVCAircraft", "variants.txt"),
        ("SUN397", "ClassName.txt"),
        ("UCF101", "ucfTrainTestlist/classInd.txt"),
        ("ImageNet", "classnames.txt"),
        ("ImageNetA", "classnames.txt"),
    ],
)
def test_missing_raw_file_is_named(tmp_path, name, file):
    TREES[name](tmp_path)
    next(tmp_path.glob(f"*/{file}")).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: .*{Path(file).name} is not there.*datasets.prepare"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("OxfordPets", "annotations/trainval.txt", "abyssinian_1 one 1 1", "trainval.txt, line 1: expected"),
        ("FGVCAircraft", "images_variant_val.txt", "0000001 Concorde", "val.txt, line 1: variant 'Concorde'"),
        ("SUN397", "Training_01.txt", "/z/zoo/sun_1.jpg", "line 1: class 'z/zoo'"),
        ("UCF101", "ucfTrainTestlist/classInd.txt", "Archery 1", "classInd.txt, line 1: expected"),
        ("UCF101", "ucfTrainTestlist/trainlist01.txt", "Sleeping/v_1.avi 1", "line 1: action 'Sleeping'"),
        ("StanfordCars", "devkit/cars_meta.mat", "no matrix", "cars_meta.mat is not a MATLAB file"),
        ("OxfordFlowers", "cat_to_name.json", '{"1": "pink primrose"}', "image 1 has label 3"),
        ("ImageNet", "classnames.txt", "tench", "classnames.txt, line 1: expected"),
    ],
)
def test_wrong_raw_file_is_named(tmp_path, name, file, text, message):
    TREES[name](tmp_path)
    next(tmp_path.glob(f"*/{file}")).write_text(text + "\n")
    with pytest.raises(ValueError, match=message):
        load(name, tmp_path)


def test_missing_image_is_named(tmp_path):
    TREES["EuroSAT"](tmp_path)
    dataset = load("EuroSAT", tmp_path)
    gone = dataset.test[0].impath
    os.unlink(gone)
    with pytest.raises(FileNotFoundError, match=f"EuroSAT: 1 of 30 images are missing, the first is {gone}"):
        load("EuroSAT", tmp_path)


def test_split_file_of_another_data_set(tmp_path):
    TREES["EuroSAT"](tmp_path)
    TREES["DescribableTextures"](tmp_path)
    foreign = load("DescribableTextures", tmp_path).split_path
    target = tmp_path / "eurosat/split_zhou_EuroSAT.json"
    target.write_text(Path(foreign).read_text())
    with pytest.raises(ValueError, match=r"split_zhou_EuroSAT.json names 3 of its 3 class folders.*banded.*AnnualCrop"):
        load("EuroSAT", tmp_path)


def test_split_file_with_a_wrong_label_range(tmp_path):
    TREES["EuroSAT"](tmp_path)
    path = Path(load("EuroSAT", tmp_path).split_path)
    content = json.loads(path.read_text())
    shifted = {part: [[row[0], row[1] + 1, row[2]] for row in content[part]] for part in ("train", "val", "test")}
    path.write_text(json.dumps(shifted))
    with pytest.raises(ValueError, match=r"split_zhou_EuroSAT.json: training labels must be 0 to C-1.*label 0"):
        load("EuroSAT", tmp_path)


def test_class_with_one_image(tmp_path):
    for folder in ("banded", "dotted"):
        put_images(tmp_path / "dtd/images" / folder, ["only.jpg"] if folder == "dotted" else ["a.jpg", "b.jpg"])
    with pytest.raises(ValueError, match=r"class 'dotted' has 1 image"):
        load("DescribableTextures", tmp_path)
    put_images(tmp_path / "dtd/images/dotted", ["other.jpg"])
    dataset = load("DescribableTextures", tmp_path)
    assert (len(dataset.train_x), dataset.val, len(dataset.test)) == (2, None, 2)


def test_imagenet_flat_val_is_said(tmp_path):
    TREES["ImageNet"](tmp_path)
    val = tmp_path / "imagenet/images/val"
    for file in sorted(val.glob("*/*")):
        file.rename(val / file.name)
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    with pytest.raises(ValueError, match=r"images/val has no class folders but 12 loose images.*prepare imagenet"):
        load("ImageNet", tmp_path)


def test_imagenet_folder_without_a_name(tmp_path):
    TREES["ImageNet"](tmp_path)
    put_images(tmp_path / "imagenet/images/train/n99999999", ["x.JPEG"])
    with pytest.raises(ValueError, match=r"1 of 5 folders are not in classnames.txt \(n99999999\)"):
        load("ImageNet", tmp_path)


def test_imagenetv2_folder_beyond_the_names(tmp_path):
    TREES["ImageNetV2"](tmp_path)
    put_images(tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val/17", ["x.jpeg"])
    with pytest.raises(ValueError, match=r"numbers below 4 .*'17'"):
        load("ImageNetV2", tmp_path)


def test_classnames_file(tmp_path):
    classnames(tmp_path)
    names = DATASET_REGISTRY.get("ImageNet").read_classnames(str(tmp_path / "classnames.txt"))
    assert list(names) == WNIDS
    assert names["n01484850"] == "great white shark"
    with open(tmp_path / "classnames.txt", "a") as file:
        file.write("n01440764 tench again\n")
    with pytest.raises(ValueError, match="line 5: n01440764 is there twice"):
        DATASET_REGISTRY.get("ImageNet").read_classnames(str(tmp_path / "classnames.txt"))


def test_read_only_root_still_loads(tmp_path, caplog, monkeypatch):
    """A split or draw that cannot be kept is made anew, with a warning."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    TREES["EuroSAT"](tmp_path)
    kept = load("EuroSAT", tmp_path, shots=2)
    for file in [Path(kept.split_path), *Path(kept.split_fewshot_dir).iterdir()]:
        file.unlink()
    monkeypatch.setattr("datasets.fewshot.write_split_file", refuse)
    monkeypatch.setattr("datasets.caches.write_draw", refuse)
    again = load("EuroSAT", tmp_path, shots=2)
    assert rows(again, "train_x") == rows(kept, "train_x")
    assert caplog.text.count("Cannot keep") == 2
