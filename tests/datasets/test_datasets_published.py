"""The published split files, the draws that another repository stored from them, and class names as CLIP sees them."""

import gzip
import json
from pathlib import Path

import pytest
from dataset_trees import config

import clip
from adaptation.templates import DEFAULT, fill
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils.tools import group_equal
from datasets import catalogue
from datasets.fewshot import FewShotDataset
from datasets.split_lists import listed_images, write_list
from datasets.splits import Split, half_labels, read_split_file

SETS = ("Caltech101", "DescribableTextures", "EuroSAT", "OxfordFlowers", "OxfordPets", "UCF101")
SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)


@pytest.fixture(scope="module")
def splits(real_dir) -> dict[str, Split]:
    return {name: read_split_file(str(real_dir / "splits" / f"split_zhou_{name}.json")) for name in SETS}


@pytest.fixture(scope="module")
def draws(real_dir) -> dict[str, dict[str, dict[str, list[str]]]]:
    with gzip.open(real_dir / "draws" / "draws.json.gz") as file:
        return json.load(file)


def located(name: str, root: Path) -> FewShotDataset:
    return catalogue.located(config(name, root))


@pytest.mark.parametrize("name", SETS)
def test_split_files_have_the_published_counts(splits, name):
    split, published = splits[name], DATASET_REGISTRY.get(name).counts
    found = [len(split.class_names()), *(len(part) for part in split.parts().values())]
    assert found == [published.classes, published.train, published.val, published.test]
    assert len({item.impath for item in split.items()}) == sum(found[1:])
    base, new = (half_labels((item.label for item in split.train), half) for half in ("base", "new"))
    assert len(base) - len(new) == published.classes % 2


@pytest.mark.parametrize("name", SETS)
def test_stored_draws_agree_item_by_item(splits, draws, name, tmp_path):
    dataset = located(name, Path("data"))
    folder = f"{dataset.image_dir}/"
    root = f"{dataset.root}/"
    assert len(draws[name]) == len(SHOTS) * len(SEEDS)
    for shots in SHOTS:
        for seed in SEEDS:
            drawn = dataset.draw(splits[name], shots, seed)
            stored = draws[name][f"shot_{shots}-seed_{seed}"]
            for items, paths in zip(drawn, (stored["train"], stored["val"]), strict=True):
                prefix = f"./data/{folder.removeprefix(root)}"
                assert [f"{prefix}{item.impath}" for item in items] == paths


@pytest.mark.parametrize("name", SETS)
def test_the_stored_draws_serve_as_lists(splits, draws, name, tmp_path):
    """As JSON lines with the paths of the repository that stored them, which begin with its folders."""
    dataset, split = located(name, Path("data")), splits[name]
    for shots in (1, 16):
        drawn, stored = dataset.rule_draw(split, shots, 1)[0], draws[name][f"shot_{shots}-seed_1"]["train"]
        rows = [item._replace(impath=path) for item, path in zip(drawn, stored, strict=True)]
        path = tmp_path / f"shot_{shots}-seed_1_train.jsonl"
        write_list(str(path), rows)
        assert listed_images(str(path), split, shots, Path(dataset.image_dir).name) == drawn
    with pytest.raises(ValueError, match=r"but DATASET\.NUM_SHOTS is 8 and the split has"):
        listed_images(str(path), split, 8, Path(dataset.image_dir).name)


@pytest.mark.parametrize("name", SETS)
def test_no_two_classes_are_the_same_sentence(splits, name):
    names = splits[name].class_names()
    assert group_equal(names, map(tuple, clip.tokenize(fill(DEFAULT, names)).tolist())) == []
