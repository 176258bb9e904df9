"""Small made image trees in the layout of each benchmark, with its raw annotation files; how the tests load them."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from yacs.config import CfgNode

import datasets  # noqa: F401 - registers what is in the folder
from dassl.config import declared_cfg
from dassl.data.datasets import DatasetBase, build_dataset

PER_CLASS = 10

# class folders of the trees: renamed ones, ignored ones and plain ones
FOLDERS = {
    "Caltech101": ["BACKGROUND_Google", "Faces", "Faces_easy", "accordion", "airplanes", "yin_yang"],
    "EuroSAT": ["AnnualCrop", "Forest", "SeaLake"],
    "DescribableTextures": ["banded", "blotchy", "zigzagged"],
    "Food101": ["apple_pie", "baby_back_ribs", "waffles"],
}
WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]
NAMES = ["tench", "goldfish", "great white shark", "tiger shark"]


def config(name: str, root: Path, shots: int = -1, seed: int = 1, subsample: str = "all") -> CfgNode:
    cfg = declared_cfg()
    cfg.DATASET.NAME = name
    cfg.DATASET.ROOT = str(root)
    cfg.DATASET.NUM_SHOTS = shots
    cfg.DATASET.SUBSAMPLE_CLASSES = subsample
    cfg.SEED = seed
    return cfg


def load(*args, **kwargs) -> DatasetBase:
    return build_dataset(config(*args, **kwargs))


def rows(dataset: DatasetBase, part: str) -> list[tuple[str, int, str]]:
    return [(datum.impath, datum.label, datum.classname) for datum in getattr(dataset, part) or []]


def jpeg(level: int = 0) -> bytes:
    """A small JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level % 256, 90, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def put_images(folder: Path, names: list[str]) -> None:
    """Write image files; names that sort otherwise than they were written, as file systems have it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(reversed(names)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number) + str(folder / name).encode())  # no two files are the same


def _folders(root: Path, images: str, kind: str) -> None:
    for folder in reversed(FOLDERS[kind]):
        put_images(root / images / folder, [f"{folder}_{number:04d}.jpg" for number in range(1, PER_CLASS + 1)])
    (root / images / ".DS_Store").write_text("")


def caltech101(root: Path) -> None:
    _folders(root, "caltech-101/101_ObjectCategories", "Caltech101")


def eurosat(root: Path) -> None:
    _folders(root, "eurosat/2750", "EuroSAT")


def dtd(root: Path) -> None:
    _folders(root, "dtd/images", "DescribableTextures")


def food101(root: Path) -> None:
    _folders(root, "food-101/images", "Food101")


def oxford_pets(root: Path) -> None:
    breeds = ["Abyssinian", "american_bulldog", "Egyptian_Mau"]
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, breed in enumerate(breeds, 1):
        names = [f"{breed}_{number}" for number in range(1, 2 * PER_CLASS + 1)]
        put_images(root / "oxford_pets/images", [f"{name}.jpg" for name in names])
        for number, name in enumerate(names):
            lists["test" if number % 2 else "trainval"].append(f"{name} {label} 1 {label}")
    (root / "oxford_pets/annotations").mkdir()
    for part, lines in lists.items():
        (root / f"oxford_pets/annotations/{part}.txt").write_text("\n".join(lines) + "\n")


def stanford_cars(root: Path) -> None:
    folder = root / "stanford_cars"
    names = ["AM General Hummer SUV 2000", "Audi TT Hatchback 2011", "Ram C/V Cargo Van Minivan 2012"]
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([[name] for name in names], dtype=object).T})
    box = [(f"bbox_{corner}", object) for corner in ("x1", "y1", "x2", "y2")]
    kind = np.dtype([*box, ("class", object), ("fname", object)])
    for part, target in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        files = [f"{number:05d}.jpg" for number in range(1, 3 * PER_CLASS + 1)]
        put_images(folder / f"cars_{part}", files)
        rows = [(1, 2, 3, 4, number % 3 + 1, file) for number, file in enumerate(files)]
        savemat(folder / target, {"annotations": np.array([rows], dtype=kind)})


def oxford_flowers(root: Path) -> None:
    folder = root / "oxford_flowers"
    labels = [3, 1, 2] * PER_CLASS
    put_images(folder / "jpg", [f"image_{number:05d}.jpg" for number in range(1, len(labels) + 1)])
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    names = {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "canterbury bells"}
    (folder / "cat_to_name.json").write_text(json.dumps(names))


def fgvc_aircraft(root: Path) -> None:
    folder = root / "fgvc_aircraft"
    variants = ["707-320", "Boeing 717", "A300B4"]
    folder.mkdir()
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    number = 0
    for part in ("train", "val", "test"):
        lines = []
        for variant in variants * 5:
            number += 1
            put_images(folder / "images", [f"{number:07d}.jpg"])
            lines.append(f"{number:07d} {variant}")
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")


def sun397(root: Path) -> None:
    folder = root / "sun397"
    classes = ["/a/abbey", "/a/apartment_building/outdoor", "/y/yard"]
    lists: dict[str, list[str]] = {"Training": [], "Testing": []}
    for name in classes:
        files = [f"sun_{number:08d}.jpg" for number in range(2 * PER_CLASS)]
        put_images(folder / "SUN397" / name[1:], files)
        for number, file in enumerate(files):
            lists["Testing" if number % 2 else "Training"].append(f"{name}/{file}")
    (folder / "ClassName.txt").write_text("\n".join(classes) + "\n")
    for part, lines in lists.items():
        (folder / f"{part}_01.txt").write_text("\n".join(lines) + "\n")


def ucf101(root: Path) -> None:
    folder = root / "ucf101"
    actions = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "Archery": "Archery", "YoYo": "Yo_Yo"}
    (folder / "ucfTrainTestlist").mkdir(parents=True)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, (action, frames) in enumerate(actions.items(), 1):
        for number in range(2 * PER_CLASS):
            video = f"v_{action}_g{number:02d}_c01"
            put_images(folder / "UCF-101-midframes" / frames, [f"{video}.jpg"])
            lists["test" if number % 2 else "train"].append(
                f"{action}/{video}.avi" + ("" if number % 2 else f" {label}")
            )
    index = "\n".join(f"{label} {action}" for label, action in enumerate(actions, 1))
    (folder / "ucfTrainTestlist/classInd.txt").write_text(index + "\n")
    for part, lines in lists.items():
        (folder / f"ucfTrainTestlist/{part}list01.txt").write_text("\n".join(lines) + "\n")


def classnames(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{wnid} {name}" for wnid, name in zip(WNIDS, NAMES, strict=True)]
    (folder / "classnames.txt").write_text("\n".join(lines) + "\n")


def imagenet(root: Path) -> None:
    classnames(root / "imagenet")
    for part, count in (("train", 20), ("val", 3)):
        for wnid in reversed(WNIDS):
            put_images(root / "imagenet/images" / part / wnid, [f"{wnid}_{number}.JPEG" for number in range(count)])


def imagenetv2(root: Path) -> None:
    classnames(root / "imagenetv2")
    for label in range(4):
        put_images(root / "imagenetv2/imagenetv2-matched-frequency-format-val" / str(label), ["a.jpeg", "b.jpeg"])


def imagenet_sketch(root: Path) -> None:
    classnames(root / "imagenet-sketch")
    for wnid in WNIDS:
        put_images(root / "imagenet-sketch/images" / wnid, ["sketch_0.JPEG", "sketch_1.JPEG"])


def _some_classes(root: Path, folder: str, images: str) -> None:
    classnames(root / folder)
    for wnid in WNIDS[1::2]:
        put_images(root / folder / images / wnid, ["x.jpg", "y.jpg"])
    (root / folder / images / "README.txt").write_text("not a class")


def imagenet_a(root: Path) -> None:
    _some_classes(root, "imagenet-adversarial", "imagenet-a")


def imagenet_r(root: Path) -> None:
    _some_classes(root, "imagenet-rendition", "imagenet-r")


TREES: dict[str, Callable[[Path], None]] = {
    "Caltech101": caltech101,
    "OxfordPets": oxford_pets,
    "EuroSAT": eurosat,
    "DescribableTextures": dtd,
    "ImageNet": imagenet,
    "StanfordCars": stanford_cars,
    "OxfordFlowers": oxford_flowers,
    "Food101": food101,
    "FGVCAircraft": fgvc_aircraft,
    "SUN397": sun397,
    "UCF101": ucf101,
    "ImageNetV2": imagenetv2,
    "ImageNetSketch": imagenet_sketch,
    "ImageNetA": imagenet_a,
    "ImageNetR": imagenet_r,
}
