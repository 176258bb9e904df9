"""Trees of one's own pictures for the tests, their YAML files and lists, and how they are loaded."""

import csv
from pathlib import Path

from dataset_trees import put_images, rows

from dassl.data.datasets import build_dataset
from datasets import catalogue

BIRDS = ["wren", "blue_tit", "robin"]


def make_config(root: Path, **keys: str):
    """The configuration of a YAML file with these keys."""
    lines = ["DATASET:", '  NAME: "OwnData"', *(f'  {key}: "{value}"' for key, value in keys.items())]
    (root / "mine.yaml").write_text("\n".join(lines) + "\n")
    return catalogue.configuration(str(root / "mine.yaml"), str(root))


def load(root: Path, **keys: str):
    return build_dataset(make_config(root, FOLDER="birds", **keys))


def class_folders(folder: Path, count: int = 10) -> None:
    for name in BIRDS:
        put_images(folder / name, [f"{number}.jpg" for number in range(count)])


def counts(dataset) -> list[int]:
    return [len(rows(dataset, part)) for part in ("train_x", "val", "test")]


def write_csv(folder: Path, header: list[str], table: list[list[str]]) -> None:
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *table])
