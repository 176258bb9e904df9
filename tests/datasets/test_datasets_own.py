"""One's own data from a YAML file: every form, every mistake, and the walk-through of the documentation."""

import json
import re
from pathlib import Path

import pytest
from dataset_trees import TREES, jpeg, put_images, rows
from own_data_trees import BIRDS, class_folders, counts, load, make_config, write_csv

import train
from dassl.config import merge_file
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets import catalogue, check, own_data
from datasets.fewshot import Counts
from sweep import cli

pytestmark = pytest.mark.usefixtures("heard")


@pytest.fixture
def birds(tmp_path) -> Path:
    class_folders(tmp_path / "birds")
    return tmp_path


def test_class_folders(birds):
    dataset = load(birds)
    assert dataset.classnames == sorted(BIRDS)
    assert counts(dataset) == [15, 6, 9]
    assert (birds / "birds/split.json").is_file()
    assert rows(load(birds), "train_x") == rows(dataset, "train_x")


def test_later_images_stay_unused_with_a_warning(birds, caplog):
    load(birds)
    put_images(birds / "birds/wren", ["new.jpg"])
    assert counts(load(birds)) == [15, 6, 9]
    assert "1 images in" in caplog.text
    assert "delete that file" in caplog.text


def test_full_path_as_folder(birds, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    dataset = build_dataset(make_config(elsewhere, FOLDER=str(birds / "birds")))
    assert dataset.num_classes == 3


@pytest.mark.parametrize("val", ["val", "validation", "valid"])
def test_part_folders(tmp_path, val):
    for part, count in (("train", 5), (val, 2), ("test", 3)):
        class_folders(tmp_path / "birds" / part, count)
    dataset = load(tmp_path)
    assert counts(dataset) == [15, 6, 9]
    assert not (tmp_path / "birds/split.json").exists()
    assert dataset.classnames == sorted(BIRDS)


def test_part_folders_without_val(tmp_path):
    class_folders(tmp_path / "birds/train", 5)
    class_folders(tmp_path / "birds/test", 3)
    dataset = load(tmp_path)
    assert counts(dataset) == [12, 3, 9]
    assert rows(load(tmp_path), "val") == rows(dataset, "val")


def test_part_folders_without_test(tmp_path):
    class_folders(tmp_path / "birds/train", 5)
    class_folders(tmp_path / "birds/val", 3)
    dataset = load(tmp_path)
    assert counts(dataset) == [12, 3, 9]
    assert all("/val/" in row[0] for row in rows(dataset, "test"))


def test_part_folders_with_train_alone(tmp_path):
    class_folders(tmp_path / "birds/train", 5)
    with pytest.raises(ValueError, match="neither test nor val images"):
        load(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        put_images(tmp_path / "birds" / name, ["1.jpg", "2.jpg"])
    assert load(tmp_path).classnames == ["bus", "train"]


def test_test_class_that_train_lacks(tmp_path):
    class_folders(tmp_path / "birds/train", 5)
    class_folders(tmp_path / "birds/test", 3)
    put_images(tmp_path / "birds/test/zebra", ["1.jpg"])
    with pytest.raises(ValueError, match=r"test has labels that train lacks: \[3\]"):
        load(tmp_path)


@pytest.mark.parametrize("header", [["path", "class"], ["Label", "FILENAME"], ["image", "category"]])
def test_csv_without_a_split(birds, header):
    table = [[f"{name}/{number}.jpg", name] for name in BIRDS for number in range(10)]
    if header[0] == "Label":
        table = [row[::-1] for row in table]
    write_csv(birds / "birds", header, table)
    dataset = load(birds, LIST="list.csv")
    assert counts(dataset) == [15, 6, 9]
    write_csv(birds / "birds", header, table[::-1])
    assert rows(load(birds, LIST="list.csv"), "train_x") == rows(dataset, "train_x")  # whatever the order of the lines


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0, 1), (0, 1, 2)])
def test_csv_without_a_header(birds, order, caplog):
    parts = ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    table = [[f"{name}/{number}.jpg", name, part] for name in BIRDS for number, part in enumerate(parts)]
    header = ["path", "class", "split"]
    text = "".join(",".join(row[at] for at in order) + "\n" for row in table)
    (birds / "birds/list.csv").write_text(text)
    caplog.set_level("INFO")
    bare = load(birds, LIST="list.csv")
    assert f"has no header: its columns are taken to be {', '.join(header[at] for at in order)}" in caplog.text
    (birds / "birds/list.csv").write_text(",".join(header[at] for at in order) + "\n" + text)
    assert counts(bare) == ([15, 6, 9])
    assert [rows(load(birds, LIST="list.csv"), part) for part in ("train_x", "val", "test")] == [
        rows(bare, part) for part in ("train_x", "val", "test")
    ]


def test_csv_with_a_split_and_an_image_folder(tmp_path):
    class_folders(tmp_path / "birds/pictures", 4)
    parts = ["Train", "train", "validation", "TEST"]
    table = [[part, f"{name}/{number}.jpg", name] for name in BIRDS for number, part in enumerate(parts)]
    write_csv(tmp_path / "birds", ["split", "path", "class"], table)
    dataset = load(tmp_path, LIST="list.csv", IMAGES="pictures")
    assert counts(dataset) == [6, 3, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wren/1,wren\n", "the first line must be an image with its class, or name the columns"),
        ("wren/1.jpg,wren,robin\n", "or name the columns"),
        ("", "or name the columns"),
        ("wren/1.jpg,wren\nwren/2.jpg,\n", "list.csv, row 2: expected 2 cells"),
        ("path,class\n", "names no images"),
        ("path,class\nwren/1.jpg\n", "list.csv, row 2: expected 2 cells"),
        ("path,class\nwren/1.jpg,\n", "list.csv, row 2: expected 2 cells"),
        ("path,class,split\nwren/1.jpg,wren,dev\n", "row 2: the split must be train, val or test, found 'dev'"),
        ("path,class\nwren/1.jpg,wren\n", "class 'wren' has 1 image"),
    ],
)
def test_wrong_csv(birds, text, message):
    (birds / "birds/list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(birds, LIST="list.csv")


def test_csv_that_names_a_missing_image(birds):
    write_csv(birds / "birds", ["path", "class"], [["wren/0.jpg", "wren"], ["wren/99.jpg", "wren"]])
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are missing.*wren/99.jpg.*FOLDER, IMAGES and LIST"):
        load(birds, LIST="list.csv")


def test_split_file_of_ones_own(birds):
    content = {
        "train": [["wren/0.jpg", 0, "wren"], ["robin/0.jpg", 1, "robin"]],
        "val": [],
        "test": [["wren/1.jpg", 0, "wren"]],
    }
    (birds / "birds/split_mine.json").write_text(json.dumps(content))
    assert counts(load(birds, LIST="split_mine.json")) == [2, 0, 1]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.json", '{"blue_tit": "Eurasian blue tit"}'),
        ("names.csv", 'blue_tit,"Eurasian blue tit"\n'),
        ("names.csv", 'folder,class name\nblue_tit,"Eurasian blue tit"\n'),
        ("names.csv", "Class_Name,Class\nEurasian blue tit,blue_tit\n"),
    ],
)
def test_class_names(birds, file, text):
    (birds / "birds" / file).write_text(text)
    dataset = load(birds, CLASSNAMES=file)
    assert dataset.classnames == ["Eurasian blue tit", "robin", "wren"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("names.json", '{"blue_tits": "x"}', r"names 1 classes that there are not \(blue_tits\); there are: blue_tit"),
        ("names.json", "[", "is not JSON"),
        ("names.json", '["x"]', "must be an object"),
        ("names.csv", "blue_tit\n", "each line must be `folder,class name`"),
    ],
)
def test_wrong_class_names(birds, file, text, message):
    (birds / "birds" / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        load(birds, CLASSNAMES=file)


def test_a_class_that_is_called_as_a_column_is_no_header(tmp_path):
    for name in ("class", "bus"):
        put_images(tmp_path / "birds" / name, [f"{number}.jpg" for number in range(8)])
    (tmp_path / "birds/names.csv").write_text("class,name\nbus,omnibus\n")
    assert load(tmp_path, CLASSNAMES="names.csv").classnames == ["omnibus", "name"]


def test_files_that_are_not_there(birds):
    with pytest.raises(FileNotFoundError, match=r"DATASET.LIST: there is no file .*none.csv"):
        load(birds, LIST="none.csv")
    with pytest.raises(FileNotFoundError, match=r"DATASET.CLASSNAMES: there is no file .*none.csv"):
        load(birds, CLASSNAMES="none.csv")
    with pytest.raises(FileNotFoundError, match=r"OwnData: no image folder .*birds/nowhere"):
        load(birds, IMAGES="nowhere")


@pytest.mark.parametrize("template", ["a bird", "{} and {}", "a {name}", "{"])
def test_wrong_template(birds, template, capsys):
    with pytest.raises(ValueError, match=r"DATASET.TEMPLATE is .* must have \{\} once"):
        load(birds, TEMPLATE=template)
    capsys.readouterr()
    assert check.main([str(birds / "mine.yaml"), "--root", str(birds)]) == 1
    assert "WRONG: DATASET.TEMPLATE is" in capsys.readouterr().out
    (birds / "mine.yaml").write_text("DATASET:\n  NAME: OwnData\n  FOLDER: birds\n  TEMPLATE: [a, b]\n")
    assert check.main([str(birds / "mine.yaml"), "--root", str(birds)]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_check_of_a_folder_needs_no_yaml(birds, capsys, monkeypatch):
    monkeypatch.chdir(birds)
    assert check.main(["birds/"]) == 0
    assert re.search(r"^birds +3 +15 +6 +9 ", capsys.readouterr().out, re.M)
    with pytest.raises(SystemExit):
        check.main(["dtd"])
    assert "--root is missing" in capsys.readouterr().err


def test_names_that_are_paths_are_noted(birds, capsys):
    table = [[f"{name}/{number}.jpg", f"animals/{name}"] for name in BIRDS for number in range(10)]
    write_csv(birds / "birds", ["path", "class"], table)
    make_config(birds, FOLDER="birds", LIST="list.csv")
    assert check.main([str(birds / "mine.yaml"), "--root", str(birds)]) == 0
    assert "3 class names look like paths, such as 'animals/blue_tit'" in capsys.readouterr().out


def test_misspelt_key(birds):
    with pytest.raises(ValueError, match=r"mine.yaml.*CLASSNAME.*CLASSNAMES"):
        load(birds, CLASSNAME="names.csv")


def test_check_of_ones_own_data(birds, capsys):
    make_config(birds, FOLDER="birds", TEMPLATE="a photo of a {}, a type of bird.")
    assert check.main([str(birds / "mine.yaml"), "--root", str(birds)]) == 0
    out = capsys.readouterr().out
    assert "prompt: a photo of a blue tit, a type of bird." in out
    assert re.search(r"^mine +3 ", out, re.M), "a name, not a path"
    assert "published" not in out
    assert "  base classes (2): blue_tit, robin\n  new classes (1): wren\n" in out
    (birds / "birds/wren/3.jpg").write_bytes(jpeg()[:50])
    assert check.main([str(birds / "mine.yaml"), "--root", str(birds)]) == 1


def test_read_names_keeps_order(tmp_path):
    (tmp_path / "n.csv").write_text("b,two\na,one\n")
    assert list(own_data.read_names(str(tmp_path / "n.csv")).items()) == [("b", "two"), ("a", "one")]


# ---- the documentation ----


def section(text: str, title: str) -> str:
    """Text under a heading, up to the next heading."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"no section {title}"
    return match[1]


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_walk_through(repo_root, tmp_path, monkeypatch, capsys):
    """The pictures, the YAML file and the commands of docs/DATASETS.md, as they stand there."""
    text = section((repo_root / "docs/DATASETS.md").read_text(), "Your own data")
    tree, yaml, commands = blocks(text, "text")[0], blocks(text, "yaml")[0], blocks(text, "sh")[0]
    top, *lines = tree.split("\n")
    for line in filter(None, lines):
        folder = line.split("/")[0].strip()
        put_images(tmp_path / top / folder, [f"{number}.jpg" for number in range(10)])
    (tmp_path / "my_birds.yaml").write_text(yaml)
    (tmp_path / "configs").symlink_to(repo_root / "configs")
    monkeypatch.chdir(tmp_path)
    for line in commands.splitlines():
        words = line.split()
        if words[:3] == ["python", "-m", "datasets.check"]:
            assert check.main(words[3:]) == 0
            assert "prompt: a photo of a blue tit, a type of bird." in capsys.readouterr().out
        elif words[:3] == ["python", "-m", "sweep"]:
            assert cli.main(words[3:]) == 0
            assert "my_birds" in capsys.readouterr().out
        else:
            assert words[:2] == ["python", "train.py"]
            assert train.main(words[2:]) == 0
            assert "* accuracy:" in capsys.readouterr().out
    assert {path.parent.name for path in tmp_path.glob("output/my_birds/*/metrics.json")} == {"zeroshot", "coop"}


def test_keys_of_ones_own_data_are_documented(repo_root):
    text = (repo_root / "docs/DATASETS.md").read_text()
    for key in [*own_data.OwnData.CONFIG, "TEMPLATE"]:
        assert f"| `{key}` |" in text


@pytest.mark.parametrize("name", sorted(TREES))
def test_sections_of_the_benchmarks(repo_root, tmp_path, name, monkeypatch, capsys):
    """Each says the declared numbers, template and addresses, a layout that a made tree has, and commands that run."""
    text = section((repo_root / "docs/DATASETS.md").read_text(), name)
    kind = DATASET_REGISTRY.get(name)
    stem = re.search(r"configs/datasets/(\w+)\.yaml", text)[1]
    assert name == catalogue.configuration(stem, "data").DATASET.NAME
    numbers = kind.counts
    assert f"{numbers.classes} classes" in text
    shown = [f"{number:,}" if number else "-" for number in (numbers.train, numbers.val, numbers.test)]
    assert "train {}, val {}, test {}. Prompt: `{}`".format(*shown, kind.template) in text
    for part in kind.parts:
        assert f"- {part.what}: " in text
        for download in part.downloads:
            assert download.url.removeprefix("drive:") in text
    TREES[name](tmp_path / "data" if (tmp_path / "data").mkdir() is None else tmp_path)
    top, *lines = blocks(text, "text")[0].rstrip().split("\n")
    for line in lines:
        if "(optional)" not in line:
            for pattern in line.split(" (")[0].strip().split(", "):
                assert list(tmp_path.glob(f"{top}{pattern}")), f"{top}{pattern} is not in the made tree"
    prepare_line, check_line = blocks(text, "sh")[0].splitlines()
    assert prepare_line == f"python -m datasets.prepare {stem} --root data"
    assert check_line == f"python -m datasets.check {stem} --root data"
    monkeypatch.chdir(tmp_path)
    report = check.examine(stem, catalogue.configuration(stem, "data"), decode=False)
    monkeypatch.setattr(kind, "counts", Counts(report.classes, *report.images.values()))
    assert check.main(check_line.split()[3:]) == 0
    assert f"{report.classes}/{report.classes}" in capsys.readouterr().out


def test_yaml_blocks_of_the_documentation_merge(repo_root, tmp_path):
    for number, text in enumerate(blocks((repo_root / "docs/DATASETS.md").read_text(), "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        merge_file(catalogue.configuration("OwnData", "data"), str(path))
