"""`python -m datasets.check` on whole and on damaged trees."""

import json
import logging
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import TREES, WNIDS, config, load
from PIL import Image

from dassl.data import DatasetWrapper
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.evidence import training_evidence
from datasets import catalogue, check, imagenet_family
from datasets.fewshot import Counts

pytestmark = pytest.mark.usefixtures("heard")


@pytest.fixture
def eurosat(tmp_path, monkeypatch) -> Path:
    """A tree whose numbers are the expected ones."""
    TREES["EuroSAT"](tmp_path)
    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "counts", Counts(3, 15, 6, 9))
    return tmp_path


def run(capsys, root: Path, *arguments: str, name: str = "eurosat") -> tuple[int, str]:
    status = check.main([name, "--root", str(root), "--workers", "2", *arguments])
    return status, capsys.readouterr().out


def an_image(root: Path, number: int = 0) -> Path:
    return sorted((root / "eurosat/2750").glob("*/*.jpg"))[number]


def test_whole_tree(eurosat, capsys):
    status, out = run(capsys, eurosat)
    assert status == 0
    assert "3/3      15/15  6/6  9/9   0        0" in out
    assert "ok" in out
    assert "prompt: a centered satellite photo of Annual Crop Land." in out
    assert not (eurosat / "eurosat/split_zhou_EuroSAT.json").exists()  # looking writes nothing
    assert "(made)" in out


def test_split_hash_and_origin(eurosat, capsys):
    load("EuroSAT", eurosat)
    status, out = run(capsys, eurosat)
    assert status == 0
    assert "this split was made from the raw files of EuroSAT" in out
    assert "(made)" not in out


def damage_truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])


def damage_bomb(path: Path) -> None:
    Image.new("1", (60, 60)).save(path, "PNG")


UNREADABLE = {
    "truncated": (damage_truncated, "truncated"),
    "zero bytes": (lambda path: path.write_bytes(b""), "empty file"),
    "another format": (lambda path: path.write_text("<html>moved</html>"), "cannot identify"),
    "far too large": (damage_bomb, "more than 2000 pixels"),
}


@pytest.mark.parametrize("kind", sorted(UNREADABLE))
def test_unreadable_image(eurosat, capsys, kind, monkeypatch):
    damage, reason = UNREADABLE[kind]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**8 if kind == "truncated" else 1000)
    damage(an_image(eurosat))
    status, out = run(capsys, eurosat)
    assert status == 1
    assert f"UNREADABLE: {an_image(eurosat)} (" in out
    assert reason in out
    assert run(capsys, eurosat, "--no-decode")[0] == 0


def test_unreadable_image_is_named_when_training_meets_it(eurosat):
    dataset = load("EuroSAT", eurosat)
    damage_truncated(Path(dataset.train_x[0].impath))
    with pytest.raises((OSError, ValueError), match=os.path.basename(dataset.train_x[0].impath)):
        DatasetWrapper(config("EuroSAT", eurosat), dataset.train_x)[0]


def test_missing_image(eurosat, capsys):
    load("EuroSAT", eurosat)
    gone = an_image(eurosat, 3)
    gone.unlink()
    status, out = run(capsys, eurosat)
    assert status == 1
    assert f"MISSING: {gone}" in out


def peculiar_cmyk(path: Path) -> None:
    Image.new("CMYK", (20, 20)).save(path, "JPEG")


def peculiar_palette(path: Path) -> None:
    Image.new("P", (20, 20)).save(path, "PNG")


def peculiar_deep(path: Path) -> None:
    Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16)).save(path, "PNG")


def peculiar_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[check.EXIF_ORIENTATION] = 6
    Image.new("RGB", (20, 30)).save(path, "JPEG", exif=exif)


def peculiar_huge(path: Path) -> None:
    Image.new("RGB", (40, 40)).save(path, "JPEG")


def peculiar_transparent(path: Path) -> None:
    Image.new("RGBA", (20, 20)).save(path, "PNG")


def deep_colours(path: Path, value: int) -> None:
    """A PNG of 20 x 20 pixels with 16 bits per channel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + struct.pack(">60H", *[value] * 60)) * 20
    head = struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def peculiar_turned(path: Path) -> None:
    Image.new("RGB", (20, 30)).save(path, "TIFF", tiffinfo={check.EXIF_ORIENTATION: 6})


PECULIAR = {
    "turned by Pillow as its orientation says": peculiar_turned,
    "16 bits per channel, of which the upper 8 are read": lambda path: deep_colours(path, 40000),
    "dark: no value in the upper 15/16": lambda path: deep_colours(path, 4000),
    "CMYK": peculiar_cmyk,
    "palette": peculiar_palette,
    "more than 8 bits, read from 0 (black) to 65535 (white)": peculiar_deep,
    "rotated by EXIF": peculiar_rotated,
    "huge, over 1000 pixels": peculiar_huge,
    "transparency": peculiar_transparent,
}


@pytest.mark.parametrize("kind", sorted(PECULIAR))
def test_peculiar_image_is_noted_and_usable(eurosat, capsys, kind, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    PECULIAR[kind](an_image(eurosat))
    status, out = run(capsys, eurosat)
    assert status == 0
    assert f"1 images: {kind}" in out
    assert str(an_image(eurosat)) in out


def test_fewer_images_and_classes_than_published(eurosat, capsys):
    for path in (eurosat / "eurosat/2750/Forest").iterdir():
        path.unlink()
    (eurosat / "eurosat/2750/Forest").rmdir()
    status, out = run(capsys, eurosat)
    assert status == 1
    assert "WRONG: 2 classes instead of 3" in out
    assert "WRONG: 20 images instead of 30: 10 are not there or not listed" in out


def test_other_division_than_published_is_a_note(eurosat, capsys, monkeypatch):
    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "counts", Counts(3, 14, 7, 9))
    status, out = run(capsys, eurosat)
    assert status == 0
    assert "note: other numbers than published: train 15 instead of 14, val 6 instead of 7" in out


def test_image_in_train_and_test(eurosat, capsys):
    path = Path(load("EuroSAT", eurosat).split_path)
    content = json.loads(path.read_text())
    content["test"][0] = content["train"][0]
    path.write_text(json.dumps(content))
    status, out = run(capsys, eurosat)
    assert status == 1
    assert f"1 training images are also in val or test, such as {content['train'][0][0]}" in out


def spell_anew(folder: Path, path: str) -> str:
    return f"./{path}"


def link(folder: Path, path: str) -> str:
    (folder / "Forest" / "link.jpg").symlink_to(folder / path)
    return "Forest/link.jpg"


def hard_link(folder: Path, path: str) -> str:
    os.link(folder / path, folder / "Forest" / "link.jpg")
    return "Forest/link.jpg"


def copy(folder: Path, path: str) -> str:
    shutil.copy(folder / path, folder / "Forest" / "copy.jpg")
    return "Forest/copy.jpg"


@pytest.mark.parametrize("again", [spell_anew, link, hard_link, copy])
@pytest.mark.parametrize("same_class", [True, False])
def test_a_picture_that_is_there_twice_is_found_whatever_its_path(eurosat, again, same_class, monkeypatch, caplog):
    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "counts", None)  # as of one's own data
    path = Path(load("EuroSAT", eurosat).split_path)
    content = json.loads(path.read_text())
    first = content["train"][0]
    row = first if same_class else next(row for row in content["test"] if row[1] != first[1])
    other = again(eurosat / "eurosat/2750", first[0])
    content["test"].append([other, row[1], row[2]])
    path.write_text(json.dumps(content))

    def found(decode: bool) -> list[str]:
        report = check.examine("eurosat", config("EuroSAT", eurosat), decode=decode)
        return [text for text in report.problems if first[0] in text]

    expected = [f"1 training images are also in val or test, such as {first[0]}, there {other}"]
    if not same_class:
        expected.append(f"1 images are in two classes, such as {first[0]} ({first[2]}) and {other} ({row[2]})")
    assert found(decode=True) == expected
    assert found(decode=False) == (expected if again is not copy else [])
    evidence = training_evidence(load("EuroSAT", eurosat))
    assert evidence["test_in_train"] == 1
    assert "1 of 10 test images are also trained on (same content)" in caplog.text


def test_copies_in_a_published_set_are_remarked(eurosat, monkeypatch):
    path = Path(load("EuroSAT", eurosat).split_path)
    content = json.loads(path.read_text())
    (train, *_), (*_, test) = content["train"], content["test"]
    shutil.copy(eurosat / "eurosat/2750" / train[0], eurosat / "eurosat/2750" / test[0])
    report = check.examine("eurosat", config("EuroSAT", eurosat))
    assert report.well
    assert any("also in val or test" in text for text in report.remarks)


def test_caches(eurosat, capsys):
    """A draw of another split and a foreign pickle are notes; a pickle that is more than data is not."""
    load("EuroSAT", eurosat, shots=1)
    folder = eurosat / "eurosat/split_fewshot"
    status, out = run(capsys, eurosat)
    assert status == 0
    assert "stale" not in out
    (folder / "shot_1-seed_1-0123456789ab.json").write_text("{}")
    (folder / "shot_1-seed_3.pkl").write_bytes(b"junk")
    status, out = run(capsys, eurosat)
    assert status == 0
    assert f"note: stale: {folder}/shot_1-seed_1-0123456789ab.json" in out
    assert f"note: Ignoring {folder}/shot_1-seed_3.pkl is damaged" in out
    (folder / "shot_1-seed_2.pkl").write_bytes(pickle.dumps({"train": [os.getcwd], "val": []}))
    status, out = run(capsys, eurosat)
    assert status == 1
    assert "shot_1-seed_2.pkl was not read: it asks for posix.getcwd" in out


def test_nothing_there(tmp_path, capsys):
    status, out = run(capsys, tmp_path)
    assert status == 1
    assert "WRONG: EuroSAT: no image folder" in out
    assert "0/10" not in out  # nothing is compared where nothing was found


def test_broken_split_file(eurosat, capsys):
    (eurosat / "eurosat/split_zhou_EuroSAT.json").write_text("{")
    status, out = run(capsys, eurosat)
    assert status == 1
    assert "split_zhou_EuroSAT.json is not JSON" in out


def test_flat_imagenet_val(tmp_path, capsys):
    TREES["ImageNet"](tmp_path)
    val = tmp_path / "imagenet/images/val"
    for path in sorted(val.glob("*/*")):
        path.rename(val / path.name)
    for wnid in WNIDS:
        (val / wnid).rmdir()
    status, out = run(capsys, tmp_path, name="imagenet")
    assert status == 1
    assert "images/val has no class folders but 12 loose images" in out


def rewrite_names(root: Path, lines: list[str]) -> None:
    (root / "imagenet/classnames.txt").write_text("\n".join(lines) + "\n")


def test_wrong_class_names(tmp_path, capsys, monkeypatch):
    TREES["ImageNet"](tmp_path)
    monkeypatch.setattr(DATASET_REGISTRY.get("ImageNet"), "counts", Counts(4, 80, 0, 12))
    assert run(capsys, tmp_path, name="ImageNet")[0] == 0
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark", "tiger shark"]
    rewrite_names(tmp_path, [f"{wnid} {name}" for wnid, name in zip(WNIDS, names, strict=True)])
    status, out = run(capsys, tmp_path, name="ImageNet")
    assert status == 1
    assert "does not hold CLIP's class names: 2 of 4 differ, for example n01440764 is 'tench, Tinca tinca'" in out


def test_class_names_in_another_order(tmp_path, capsys):
    TREES["ImageNet"](tmp_path)
    lines = (tmp_path / "imagenet/classnames.txt").read_text().splitlines()
    rewrite_names(tmp_path, lines[::-1])
    status, out = run(capsys, tmp_path, name="ImageNet")
    assert status == 1
    assert "is not sorted by WordNet id" in out


def test_names_of_the_installed_packages_are_clips():
    names = imagenet_family.clip_classnames()
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert [names[wnid] for wnid in WNIDS] == ["tench", "goldfish", "great white shark", "tiger shark"]


def test_every_finding_in_json_and_every_prompt(eurosat, capsys, tmp_path):
    for number in range(7):
        an_image(eurosat, number).write_bytes(b"")
    status, out = run(capsys, eurosat, "--json", str(tmp_path / "report.json"), "--prompts")
    assert status == 1
    assert "... and 2 more" in out
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert len(report["unreadable"]) == 7
    assert report["prompts"] == [
        "a centered satellite photo of Annual Crop Land.",
        "a centered satellite photo of Forest.",
        "a centered satellite photo of Sea or Lake.",
    ]


def test_names_of_data_sets(capsys):
    assert set(catalogue.benchmarks()) == set(catalogue.stems()) - {
        stem for stem, path in catalogue.stems().items() if "Drawn" in path.read_text() or "Digits" in path.read_text()
    }
    assert len(catalogue.benchmarks()) == 15
    with pytest.raises(SystemExit) as stop:
        check.main(["caltech_101", "--root", "data"])
    assert stop.value.code == 2
    assert "caltech101" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown data set"):
        catalogue.configuration("nothing", "data")


def test_as_a_command(eurosat, repo_root):
    an_image(eurosat).write_bytes(b"")
    command = [sys.executable, "-W", "error", "-m", "datasets.check", "eurosat", "--root", str(eurosat)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=repo_root)
    assert result.returncode == 1, result.stderr
    assert "UNREADABLE" in result.stdout
    assert "30/30" in result.stderr  # progress


def test_warnings_are_given_back(eurosat):
    """Looking leaves the logger as it was."""
    before = list(logging.getLogger("datasets").handlers)
    check.examine("eurosat", config("EuroSAT", eurosat))
    assert logging.getLogger("datasets").handlers == before
