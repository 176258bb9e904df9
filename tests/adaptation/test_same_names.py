"""Classes whose names are the same sentence to the model are refused by training and by the check, unless allowed."""

import json

import pytest
from dataset_trees import put_images
from hypothesis import given, settings
from hypothesis import strategies as st

import clip
import train
from adaptation.templates import DEFAULT, fill
from dassl.utils.tools import group_equal
from datasets import catalogue, check
from datasets.imagenet_family import SAME_NAMES, clip_classnames

pytestmark = pytest.mark.usefixtures("heard")

SAME = [
    ("boat", "boat"),
    ("Boat", "boat"),
    ("tea_cup", "tea cup"),
    ("tea  cup", "tea cup"),
    ("A320", "A 320"),
    ("café", "caf&eacute;"),
    ("café", "cafÃ©"),  # UTF-8 that was read as Latin-1
    ("ＢＯＡＴ", "boat"),  # full-width letters
]


def make_data(root, names, **keys) -> str:
    """Images in the folders 0, 1, ... with these class names; returns the path of the YAML file."""
    for number in range(len(names)):
        put_images(root / "mine" / str(number), [f"{number}-{image}.jpg" for image in range(6)])
    (root / "mine" / "names.json").write_text(json.dumps({str(n): name for n, name in enumerate(names)}))
    keys = {"NAME": "OwnData", "FOLDER": "mine", "CLASSNAMES": "names.json", **keys}
    path = root / "mine.yaml"
    path.write_text("DATASET:\n" + "".join(f"  {key}: {value}\n" for key, value in keys.items()))
    return str(path)


def start(root, names, *opts: str) -> float:
    argv = ["--root", str(root), "--seed", "1", "--trainer", "ZeroshotCLIP", "--backbone", "tiny-ViT", "--eval-only"]
    argv += ["--dataset-config-file", make_data(root, names), "--output-dir", str(root / "out"), *opts]
    return train.run(train.build_parser().parse_args([*argv, "DATALOADER.NUM_WORKERS", "0"]))


def found_by_check(root, names, **keys) -> check.Report:
    configurations = catalogue.configurations([make_data(root, names, **keys)], str(root))
    return check.examine("mine", next(iter(configurations.values())), decode=False)


@pytest.mark.parametrize("pair", SAME)
def test_refused_with_the_names_and_the_switch(tmp_path, caplog, pair):
    names = [pair[0], "horse", pair[1]]
    with pytest.raises(ValueError, match=r"same sentence to tiny-ViT.*ALLOW_SAME_NAMES True") as caught:
        start(tmp_path, names)
    assert f"{pair[0]!r} and {pair[1]!r}" in str(caught.value)
    assert not (tmp_path / "out" / "metrics.json").exists()
    report = found_by_check(tmp_path, names)
    assert not report.well
    assert any(repr(pair[0]) in text and repr(pair[1]) in text for text in report.problems)


def test_allowed_with_a_warning(tmp_path, caplog):
    names = ["Boat", "horse", "boat"]
    start(tmp_path, names, "DATASET.ALLOW_SAME_NAMES", "True")
    assert "['Boat', 'boat'] are the same sentence to tiny-ViT" in caplog.text
    report = found_by_check(tmp_path, names, ALLOW_SAME_NAMES=True)
    assert report.well
    assert any("'Boat' and 'boat'" in text for text in report.remarks)


def test_only_the_classes_of_the_run_count(tmp_path):
    names = ["boat", "horse", "Boat", "tree"]
    start(tmp_path, names, "DATASET.SUBSAMPLE_CLASSES", "base")
    with pytest.raises(ValueError, match="same sentence"):
        start(tmp_path, names, "OUTPUT_DIR", str(tmp_path / "all"))


def test_imagenets_published_list_is_taken(tmp_path, caplog):
    names = list(clip_classnames().values())
    rows = clip.tokenize(fill(DEFAULT, names)).tolist()
    groups = group_equal(names, map(tuple, rows))
    assert sorted(groups) == [[name, name] for name in sorted(SAME_NAMES)]


def respelled(name: str, draw) -> str:
    """The name in another spelling that CLIP's tokenizer does not tell apart."""
    spaces = draw(st.sampled_from([" ", "_", "  ", "__"]))
    return draw(st.sampled_from([str.upper, str.title, str.lower]))(name).replace(" ", spaces)


@st.composite
def two_spellings(draw) -> tuple[str, str]:
    words = draw(st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=6), min_size=1, max_size=3))
    return " ".join(words), respelled(" ".join(words), draw)


@given(two_spellings(), st.text("abcdefgh", min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_check_groups_what_the_tokenizer_cannot_tell_apart(pair, other):
    names = [*pair, other]
    rows = clip.tokenize(fill(DEFAULT, names)).tolist()
    expected = group_equal(names, map(tuple, rows))
    assert any(set(pair) <= set(group) for group in expected)

    class Plain:
        same_names = ()

    report = check.Report("mine")
    check._compare_names(Plain, names, report, allowed=False)
    assert len(report.problems) == len(expected)
    for text, group in zip(report.problems, expected, strict=True):
        assert " and ".join(map(repr, group)) in text
