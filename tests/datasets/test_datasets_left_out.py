"""No file vanishes without a word: endings, folders that are no classes, columns of CSV files, numbers as names."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import TREES, jpeg, put_images
from dataset_trees import load as load_benchmark
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_data_trees import BIRDS, class_folders, counts, load, make_config, write_csv
from PIL import Image

import train
from datasets import catalogue, check
from datasets.splits import class_images, list_images

pytestmark = pytest.mark.usefixtures("heard")

ENDINGS = (".jfif", ".JFIF", ".JPG", ".Jpe", "", ".img", ".jpg_large", ".jpg.bak")


def rename_all(folder: Path, ending: str) -> None:
    for path in folder.iterdir():
        path.rename(folder / f"{path.stem}{ending}")


def examined(root: Path, **keys: str) -> check.Report:
    make_config(root, FOLDER="birds", **keys)
    path = str(root / "mine.yaml")
    return check.examine("mine", catalogue.configuration(path, str(root)))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("parts", [False, True])
def test_a_class_does_not_vanish_whatever_the_ending_of_its_images(tmp_path, ending, parts):
    tops = [tmp_path / "birds" / part for part in ("train", "test")] if parts else [tmp_path / "birds"]
    for top in tops:
        class_folders(top)
        rename_all(top / "robin", ending)
    dataset = load(tmp_path)
    assert dataset.classnames == sorted(BIRDS)
    assert sum(counts(dataset)) == 30 * len(tops)
    report = examined(tmp_path)
    assert (report.classes, sum(report.images.values()), report.left_out) == (3, 30 * len(tops), {})


def test_what_is_no_image_is_named_with_its_reason(tmp_path, caplog):
    class_folders(tmp_path / "birds")
    wren = tmp_path / "birds/wren"
    (wren / "notes.txt").write_text("seen in May")
    (wren / ".DS_Store").write_bytes(b"\0")
    put_images(wren / "2019", ["old.jpg"])
    expected = {"notes.txt": "no image", ".DS_Store": "hidden", "2019": "a folder below a class folder"}
    assert counts(load(tmp_path)) == [15, 6, 9]
    assert "3 files in class folders are left out" in caplog.text
    for name, reason in expected.items():
        assert f"{wren / name} ({reason})" in caplog.text
    put_images(wren, ["later.jpg"])
    report = examined(tmp_path)
    assert report.left_out == {str(wren / n): why for n, why in {**expected, "later.jpg": "not in the split"}.items()}
    assert f"LEFT OUT: {wren / '.DS_Store'} (hidden)" in check.details(report, all_prompts=False)


@pytest.mark.parametrize("parts", [False, True])
def test_a_class_folder_without_images_is_named(tmp_path, parts):
    top = tmp_path / "birds" / ("train" if parts else "")
    class_folders(top)
    if parts:
        class_folders(tmp_path / "birds" / "test")
    (top / "zebra").mkdir()
    with pytest.raises(ValueError, match=r"the class folder .*zebra has no image; it holds nothing: .* remove it"):
        load(tmp_path)
    (top / "zebra" / "list.txt").write_text("x")
    with pytest.raises(ValueError, match=r"zebra has no image; it holds only list.txt"):
        load(tmp_path)
    assert any("zebra" in text for text in examined(tmp_path).problems)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text("ab.jpgJPG_", min_size=1, max_size=6).filter(lambda n: n.strip(".")), st.sampled_from("itf")
    )
)
def test_every_file_is_used_or_left_out_with_a_reason(tmp_path, entries):
    folder = tmp_path / "class"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, kind in entries.items():
        path = folder / name
        path.mkdir() if kind == "f" else path.write_bytes(jpeg() if kind == "i" else b"some text")
    left_out: dict[str, str] = {}
    used = list_images(str(folder), left_out)
    assert sorted([*used, *(os.path.basename(path) for path in left_out)]) == sorted(entries)
    for name, kind in entries.items():
        hidden = name.startswith(".")
        assert kind != "i" or hidden or name in used  # an image that is not hidden is used
        assert kind != "f" or name not in used
    if not used:
        with pytest.raises(ValueError, match="has no image"):
            class_images(str(folder), {})


# Folders


def test_folders_that_archives_and_this_program_make_are_no_classes(tmp_path):
    class_folders(tmp_path / "birds")
    for name in ("__MACOSX", "split_fewshot", ".ipynb_checkpoints"):
        put_images(tmp_path / "birds" / name, ["._1.jpg", "2.jpg"])
    assert load(tmp_path).classnames == sorted(BIRDS)
    (tmp_path / "birds/split.json").unlink()
    assert load(tmp_path).classnames == sorted(BIRDS)


def test_what_lies_beside_class_folders_is_named(tmp_path, caplog):
    birds = tmp_path / "birds"
    class_folders(birds)
    put_images(birds, ["loose.jpg"])
    (birds / "robin").rename(birds / ".robin")
    assert load(tmp_path).classnames == ["blue_tit", "wren"]
    assert "1 hidden folders, which are no classes: .robin" in caplog.text
    assert "1 images beside the class folders, which are not used: loose.jpg" in caplog.text


@pytest.mark.parametrize("top", ["birds", "birds/test"])
def test_a_class_whose_link_leads_nowhere_does_not_vanish(tmp_path, top):
    for part in ("train", "test") if "/" in top else ("",):
        class_folders(tmp_path / "birds" / part)
    shutil.rmtree(tmp_path / top / "robin")
    (tmp_path / top / "robin").symlink_to(tmp_path / "unmounted")
    with pytest.raises(ValueError, match=r"robin is a link to nothing"):
        load(tmp_path)
    assert any("is a link to nothing" in text for text in examined(tmp_path).problems)


def test_a_class_that_train_lacks_is_named(tmp_path):
    class_folders(tmp_path / "birds/train", 5)
    class_folders(tmp_path / "birds/test", 3)
    (tmp_path / "birds/train/robin").rename(tmp_path / "birds/train/Robin")
    with pytest.raises(ValueError, match=r"label 2 \('robin'\) has no training image"):
        load(tmp_path)


def test_spellings_of_the_parts(tmp_path):
    for part, count in (("training", 5), ("valid", 2), ("testing", 3)):
        class_folders(tmp_path / "birds" / part, count)
    assert counts(load(tmp_path)) == [15, 6, 9]


def test_parts_are_found_in_any_case(tmp_path, caplog):
    for part, count in (("Train", 5), ("VAL", 2), ("Test", 3), ("extra", 4), ("__MACOSX", 1)):
        class_folders(tmp_path / "birds" / part, count)
    dataset = load(tmp_path)
    assert counts(dataset) == [15, 6, 9]
    assert "the folders extra are no part of the split and stay unused" in caplog.text


@pytest.mark.parametrize("pair", [("val", "validation"), ("val", "Val"), ("train", "training"), ("test", "TEST")])
def test_two_folders_for_one_part_are_refused_by_name(tmp_path, pair):
    for part in {"train", "test", *pair}:
        class_folders(tmp_path / "birds" / part, 3)
    with pytest.raises(
        ValueError, match=r"has the folders .* and .*: which one is (train|val|test)\? Keep one"
    ) as caught:
        load(tmp_path)
    assert all(name in str(caught.value) for name in pair)


def test_a_class_without_test_images_is_named(tmp_path, caplog):
    class_folders(tmp_path / "birds/train", 5)
    class_folders(tmp_path / "birds/test", 3)
    shutil.rmtree(tmp_path / "birds/test/robin")
    assert load(tmp_path).num_classes == 3
    assert "no test image of 1 classes: robin" in caplog.text


def test_backslashes_in_a_list_are_named(tmp_path):
    class_folders(tmp_path / "birds")
    write_csv(tmp_path / "birds", ["path", "class"], [[f"{n}\\{i}.jpg", n] for n in BIRDS for i in range(10)])
    with pytest.raises(FileNotFoundError, match="paths with backslashes: write them with /"):
        load(tmp_path, LIST="list.csv")
    assert any("backslashes" in text for text in examined(tmp_path, LIST="list.csv").problems)
    TREES["EuroSAT"](tmp_path)
    load_benchmark("EuroSAT", tmp_path)
    path = tmp_path / "eurosat/split_zhou_EuroSAT.json"
    path.write_text(path.read_text().replace("Forest/", "Forest\\\\"))
    with pytest.raises(ValueError, match="paths with backslashes: write them with /"):
        load_benchmark("EuroSAT", tmp_path)


def test_a_class_folder_whose_name_is_no_text_is_named(tmp_path):
    class_folders(tmp_path / "birds")
    os.rename(tmp_path / "birds/wren", os.path.join(os.fsencode(tmp_path / "birds"), b"caf\xe9"))
    with pytest.raises(ValueError, match=r"the class name b'caf\\xe9' is not UTF-8"):
        load(tmp_path)
    assert any("is not UTF-8" in text for text in examined(tmp_path).problems)


# Columns


def table_of(names: list[str], each: int = 4) -> list[tuple[str, int, str]]:
    """Rows (path, number of the class, name) with images in the folders 0, 1, ..."""
    return [(f"{number}/{image}.jpg", number, name) for number, name in enumerate(names) for image in range(each)]


def birds_by_number(root: Path, count: int) -> None:
    for number in range(count):
        put_images(root / "birds" / str(number), [f"{image}.jpg" for image in range(4)])


NUMBERED = ["wren", "robin", "tit", "owl", "jay", "kite", "crow", "swan", "duck", "gull", "tern", "rook"]


@pytest.mark.parametrize(
    "header", [["path", "label", "name"], ["path", "Class", "class_name"], ["file", "target", "label"]]
)
def test_names_win_over_numbers_and_numbers_give_the_order(tmp_path, header):
    birds_by_number(tmp_path, len(NUMBERED))
    write_csv(tmp_path / "birds", header, table_of(NUMBERED))
    dataset = load(tmp_path, LIST="list.csv")
    assert dataset.classnames == NUMBERED  # not 0, 1, 10, 11, 2
    assert {Path(item.impath).parent.name for item in dataset.train_x if item.classname == "tern"} == {"10"}


def test_numbers_alone_are_in_their_order_and_said_aloud(tmp_path, caplog):
    birds_by_number(tmp_path, len(NUMBERED))
    write_csv(tmp_path / "birds", ["path", "label"], [row[:2] for row in table_of(NUMBERED)])
    assert load(tmp_path, LIST="list.csv").classnames == [str(number) for number in range(12)]
    assert "12 class names are numbers: prompts are 'a photo of a 0.'" in caplog.text
    assert any("class names are numbers" in text for text in examined(tmp_path, LIST="list.csv").remarks)
    caplog.clear()
    (tmp_path / "birds/names.json").write_text(json.dumps({str(n): name for n, name in enumerate(NUMBERED)}))
    assert load(tmp_path, LIST="list.csv", CLASSNAMES="names.json").classnames == NUMBERED
    assert "are numbers" not in caplog.text


def test_numbered_class_folders_are_said_aloud(tmp_path, caplog):
    birds_by_number(tmp_path, 3)
    load(tmp_path)
    assert "3 class names are numbers" in caplog.text


def test_columns_that_contradict_each_other(tmp_path, caplog):
    birds_by_number(tmp_path, 3)
    names = ["wren", "robin", "tit"]
    table = [(path, number, f"{name} {path[-5]}") for path, number, name in table_of(names)]
    write_csv(tmp_path / "birds", ["path", "label", "name"], table)
    with pytest.raises(ValueError, match="the columns name do not go with the classes one to one, and without them"):
        load(tmp_path, LIST="list.csv")
    table = [(path, name, f"IMG_{path}") for path, _, name in table_of(names)]
    write_csv(tmp_path / "birds", ["path", "class", "name"], table)  # a title of each picture
    assert load(tmp_path, LIST="list.csv").classnames == sorted(names)
    assert "the columns name do not go with the classes one to one and are not used" in caplog.text
    write_csv(tmp_path / "birds", ["path", "class", "class"], table)
    with pytest.raises(ValueError, match="two columns are called 'class'"):
        load(tmp_path, LIST="list.csv")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_and_the_case_of_columns_do_not_matter(tmp_path, data):
    birds_by_number(tmp_path, 3)
    names = data.draw(st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=3, max_size=3, unique=True))
    columns = {
        data.draw(st.sampled_from(["path", "Filename", "IMAGE"])): [row[0] for row in table_of(names)],
        data.draw(st.sampled_from(["label", "Class_ID", "target"])): [row[1] for row in table_of(names)],
        data.draw(st.sampled_from(["name", "Class", "CLASSNAME", "category"])): [row[2] for row in table_of(names)],
        "width": [640] * 12,
    }
    order = data.draw(st.permutations(list(columns)))
    with open(tmp_path / "birds/list.csv", "w", newline="") as file:
        csv.writer(file).writerows([order, *zip(*(columns[name] for name in order), strict=True)])
    dataset = load(tmp_path, LIST="list.csv")
    assert dataset.classnames == names
    assert {(Path(item.impath).parent.name, item.classname) for item in dataset.train_x} == {
        (str(number), name) for number, name in enumerate(names)
    }


@pytest.mark.parametrize(("file", "text"), [("n.csv", "wren,a\nwren,b\n"), ("n.json", '{"wren": "a", "wren": "b"}')])
def test_a_class_that_is_named_twice_is_refused(tmp_path, file, text):
    class_folders(tmp_path / "birds")
    (tmp_path / "birds" / file).write_text(text)
    with pytest.raises(ValueError, match=rf"{file}: the class 'wren' is named twice: 'a' and 'b'"):
        load(tmp_path, CLASSNAMES=file)


# Numbers of a whole run


@pytest.mark.parametrize("kind", ["16-bit PNG", "16-bit TIFF, big-endian", "float TIFF", "palette"])
def test_a_run_on_other_modes_has_the_results_of_its_8_bit_originals(tmp_path, kind):
    ways = {
        "16-bit PNG": lambda v: (Image.fromarray(v * np.uint16(257)), "PNG"),
        "16-bit TIFF, big-endian": lambda v: (Image.fromarray((v * np.uint16(257)).astype(">u2")), "TIFF"),
        "float TIFF": lambda v: (Image.fromarray(v.astype(np.float32) / 255), "TIFF"),
        "palette": lambda v: (Image.fromarray(v).convert("P"), "PNG"),
    }
    found = {}
    for name, way in {"8 bits": lambda v: (Image.fromarray(v), "PNG"), kind: ways[kind]}.items():
        generator, root = np.random.default_rng(0), tmp_path / name
        for bird in BIRDS:
            (root / "birds" / bird).mkdir(parents=True)
            for number in range(6):
                picture = generator.integers(0, 256, (40, 40), dtype=np.uint8)
                picture[: 6 + 10 * BIRDS.index(bird)] = 255
                image, form = way(picture)
                image.save(root / "birds" / bird / f"{number}.{form.lower()}", form)
        make_config(root, FOLDER="birds")
        argv = [
            "--root",
            str(root),
            "--seed",
            "1",
            "--trainer",
            "ZeroshotCLIP",
            "--backbone",
            "tiny-ViT",
            "--eval-only",
        ]
        argv += ["--dataset-config-file", str(root / "mine.yaml"), "--output-dir", str(root / "out")]
        train.run(train.build_parser().parse_args([*argv, "DATALOADER.NUM_WORKERS", "0"]))
        metrics = json.loads((root / "out" / "metrics.json").read_text())
        found[name] = [metrics[key] for key in ("accuracy", "macro_f1", "per_class")]
    assert found[kind] == found["8 bits"]
