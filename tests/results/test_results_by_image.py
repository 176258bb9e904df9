"""Two methods on the same images, what is taken for what, and the report that shows it."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from answers import make_answers, write_answers
from PIL import Image
from results_trees import write_run
from scipy.stats import binom
from sklearn.metrics import confusion_matrix

from dassl.evaluation.predictions import Predictions
from results import cli
from results.__main__ import main as results_main
from results.by_image import comparison, confusion_counts, confusions, differences, differing, match, mcnemar
from results.contact_sheet import contact_sheet
from results.layout import RunDirectory
from results.tree import read_records


def place(role, dataset, seed, trainer) -> RunDirectory:
    return RunDirectory(role, dataset, trainer, "usual", 16, seed)


def answering(predicted, labels=(0, 0, 0, 1, 1, 1, 2, 2, 2, 2), names=("cat", "dog", "cow")) -> Predictions:
    """Ten images with these answers, of which all are certain."""
    predicted, labels = np.array(predicted), np.array(labels)
    relative = np.full((len(labels), len(names)), -5, np.float16)
    relative[np.arange(len(labels)), predicted] = 0
    return Predictions(
        paths=np.array([f"{names[label]}/{number}.png" for number, label in enumerate(labels)]),
        labels=labels.astype(np.int32),
        classnames=np.array(names),
        predicted=predicted.astype(np.int32),
        largest=np.full(len(labels), 5, np.float32),
        relative=relative,
    )


A = {1: [0, 0, 1, 1, 1, 0, 2, 2, 0, 0], 2: [0, 0, 1, 1, 0, 0, 2, 2, 0, 2]}
B = {1: [0, 0, 0, 1, 1, 1, 2, 2, 0, 1], 2: [0, 1, 0, 1, 1, 1, 2, 2, 0, 2]}


@pytest.fixture
def tree(tmp_path):
    """Two methods on base and new classes of one set, two seeds; ten images each."""
    for role in ("base", "new"):
        for trainer, own in (("CoOp", A), ("APEX", B)):
            for seed, predicted in own.items():
                config = {"DATASET": {"ROOT": str(tmp_path / "data")}}
                write_answers(tmp_path / "out", place(role, "dtd", seed, trainer), answering(predicted), config=config)
    return tmp_path / "out"


def test_one_seed_is_mcnemars_test():
    """Against the binomial distribution, from the table of right and wrong."""
    first, second = make_answers(300, 5, seed=1, skill=1.0), make_answers(300, 5, seed=2, skill=1.6)
    table = confusion_matrix(first.correct, second.correct)
    only_second, only_first = int(table[0, 1]), int(table[1, 0])
    lead = second.correct.astype(int) - first.correct.astype(int)
    low = min(only_first, only_second)
    expected = min(1.0, 2 * binom.cdf(low, only_first + only_second, 0.5))
    assert mcnemar(lead) == (only_first, only_second, pytest.approx(expected))
    assert mcnemar(np.zeros(5, int)) == (0, 0, None)


def test_ten_images_and_two_seeds_by_hand(tree):
    """B is right with more seeds on images 2, 4 and 5, A on image 1: p = 2 * (1 + 4) / 16."""
    tables, (own, _) = comparison(read_records(tree), "CoOp", "APEX")
    assert own.lead.tolist() == [0, -1, 2, 0, 1, 2, 0, 0, 0, 0]
    row = dict(zip(tables["paired_images"].columns, tables["paired_images"].rows[0], strict=True))
    assert (row["data set"], row["classes"], row["n"], row["images"]) == ("dtd", "base", 2, 10)
    assert (row["for CoOp"], row["for APEX"]) == (1, 3)
    assert row["p (McNemar)"] == pytest.approx(2 * 5 / 16)
    assert row["difference"] == pytest.approx(100 * (15 - 11) / 20)
    base = next(r for r in tables["paired"].rows if r[1] == "base")
    assert base[3].mean == pytest.approx(row["difference"])  # the two tests look at the same difference


def test_images_that_differ(tree):
    """The usual answer of A on image 4 is the first of dog and cat."""
    matched, _ = match(read_records(tree), "CoOp", "APEX")
    rows = differences(matched, "CoOp", "APEX").rows
    assert [row[2:] for row in rows if row[1] == "base"] == [
        ["cat/2.png", "cat", "dog", "cat", 2],
        ["dog/5.png", "dog", "cat", "dog", 2],
        ["dog/4.png", "dog", "cat", "dog", 1],
        ["cow/9.png", "cow", "cat", "dog", 0],
    ]
    assert differing(matched[0]).tolist() == [2, 5, 4, 9]


def test_over_data_sets(tree):
    for trainer, own in (("CoOp", A), ("APEX", B)):
        for seed in own:
            write_answers(tree, place("base", "eurosat", seed, trainer), answering(own[seed]))
    tables, matched = comparison(read_records(tree), "CoOp", "APEX")
    assert len(matched) == 3
    (everything,) = (row for row in tables["paired_images"].rows if row[0] == "all")
    assert everything[1:6] == ["base", None, 20, 2, 6]
    assert everything[7] == pytest.approx(2 * binom.cdf(2, 8, 0.5))


def test_a_method_that_learns_nothing_is_matched_with_every_seed(tree):
    write_answers(tree, place("base", "dtd", 1, "ZeroshotCLIP"), answering([0] * 10), learns=False)
    matched, _ = match(read_records(tree), "ZeroshotCLIP", "APEX")
    assert matched[0].seeds == ((1, 1), (1, 2))
    assert matched[0].lead.tolist() == [0, -1, 0, 2, 2, 2, 2, 2, 0, 1]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (answering(A[2], labels=(0, 0, 0, 1, 1, 1, 2, 2, 2, 1)), "of other images"),
        (answering(A[2], names=("cat", "dog", "emu")), "of other images"),
        (Predictions(**{**vars(answering(A[2])), "classnames": np.array(["cat", "dog", "ox"])}), "of other classes"),
        (None, r"for a run has no predictions: dtd, base, seed 2"),
    ],
)
def test_runs_that_cannot_be_matched_are_named(tree, other, reason):
    where = place("base", "dtd", 2, "CoOp")
    if other is None:
        write_run(tree, where, 60.0)
    else:
        write_answers(tree, where, other)
    tables, matched = comparison(read_records(tree), "CoOp", "APEX")
    assert any(re.search(reason, note) for note in tables["paired_images"].notes)
    assert [len(own.seeds) for own in matched] == ([1, 2] if other is None else [2])


def test_without_any_predictions(tmp_path, capsys):
    """The table over seeds says so; there is no table by image."""
    for trainer in ("CoOp", "APEX"):
        for role in ("base", "new"):
            write_run(tmp_path / "out", place(role, "dtd", 1, trainer), 60.0)
    tables, matched = comparison(read_records(tmp_path / "out"), "CoOp", "APEX")
    assert list(tables) == ["paired"]
    assert not matched
    assert "has no predictions: dtd, base, seed 1; dtd, new, seed 1" in tables["paired"].notes[-1]
    assert cli.main([str(tmp_path / "out"), "--table", "base2new", "--paired", "CoOp", "Nobody"]) == 2
    assert "no method 'Nobody'" in capsys.readouterr().err


def test_other_protocols_are_compared_by_image(tmp_path, capsys):
    for trainer, own in (("CoOp", A), ("APEX", B)):
        write_answers(tmp_path / "out", place("all", "dtd", 1, trainer), answering(own[1]))
    assert cli.main([str(tmp_path / "out"), "--table", "fewshot", "--paired", "CoOp", "APEX"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"dtd +all +1 +10 +0 +2 +\+20\.00 +0\.5", said)


# -- confusions


def test_confusions_are_those_of_scikit_learn():
    answers = make_answers(400, 6, skill=0.5)
    expected = confusion_matrix(answers.labels, answers.predicted, labels=range(6))
    assert np.array_equal(confusion_counts(answers), expected)


def test_most_confused_pairs_by_hand(tree):
    """Over both seeds of A: cows for cats 3 of 8, cats for dogs 2 of 6, dogs for cats 3 of 6."""
    found, notes = confusions(read_records(tree))
    assert not notes
    (own,) = (value for key, value in found.items() if key[0] == "base" and key[2][0] == "CoOp")
    assert own.counts.tolist() == [[4, 2, 0], [3, 3, 0], [3, 0, 5]]
    assert own.pairs() == [("dog", "cat", 3, 50.0), ("cow", "cat", 3, 37.5), ("cat", "dog", 2, pytest.approx(100 / 3))]
    assert own.pairs(1) == own.pairs()[:1]


# -- pictures


@pytest.fixture
def pictures(tree, tmp_path):
    """The ten images, each of a colour of its own."""
    for number, path in enumerate(answering(A[1]).paths):
        file = tmp_path / "data" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 200), (20 * number, 0, 0)).save(file)
    return tmp_path / "data"


def test_contact_sheet(tree, pictures):
    matched, _ = match(read_records(tree), "CoOp", "APEX")
    page = contact_sheet(matched, "CoOp", "APEX", "")
    assert page.count("<figure>") == page.count("data:image/jpeg;base64,") == 8
    assert "base classes: 4 of 4 images" in page
    assert "CoOp: <span class=wrong>dog</span><br>APEX: <span class=right>cat</span>" in page
    assert "left out" not in page


def test_pictures_that_are_not_there(tree, pictures, tmp_path):
    """They are counted; nothing above the folder is read, whatever the predictions say."""
    (pictures / "cat/2.png").unlink()
    (pictures / "dog/5.png").write_bytes(b"no picture")
    matched, _ = match(read_records(tree), "CoOp", "APEX")
    page = contact_sheet(matched, "CoOp", "APEX", "")
    assert page.count("<figure>") == 4
    assert f"2 pictures are left out: they are not in {pictures} (--root names it)" in page
    assert "8 pictures" not in contact_sheet(matched, "CoOp", "APEX", str(pictures))
    assert "4 pictures are left out" in contact_sheet(matched, "CoOp", "APEX", str(tmp_path / "elsewhere"))
    outside = np.array([f"../data/{path}" for path in matched[0].paths])
    strange = [replace(own, paths=outside) for own in matched]
    assert "<figure>" not in contact_sheet(strange, "CoOp", "APEX", str(pictures))


def test_names_in_the_sheet_are_text(tree, pictures):
    matched, _ = match(read_records(tree), "CoOp", "APEX")
    names = np.array(["<b>cat", "dog\x1b[2J", 'cow"'])
    page = contact_sheet([replace(own, classnames=names) for own in matched], "CoOp", "<i>", "")
    assert "&lt;b&gt;cat" in page
    assert "\x1b" not in page
    assert "<i>" not in page


def test_the_report_shows_it(tree, pictures, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    words = [str(tree), "--to", str(tree / "r"), "--metrics", "accuracy", "ece", "--paired", "CoOp", "APEX"]
    assert results_main([*words, "--confusions"]) == 0
    page = (tree / "r" / "report.html").read_text()
    for shown in ("Measures of base2new", "APEX less CoOp, by image", "Most confused classes", "McNemar"):
        assert shown in page
    for name in ("reliability_base", "reliability_new", "risk_coverage_base", "confusions_1"):
        assert (tree / "r" / f"{name}.png").is_file()
    assert page.count("data:image/png;base64,") == len(list((tree / "r").glob("*.png")))
    assert page.count("data:image/jpeg;base64,") == 8
    assert not re.search(r"(src|href)=.(?!data:)", page)
    rows = list(csv.reader(io.StringIO((tree / "r" / "confusions/base_dtd_CoOp_usual_16shots.csv").read_text())))
    assert rows == [
        ["true class", "cat", "dog", "cow"],
        ["cat", "4", "2", "0"],
        ["dog", "3", "3", "0"],
        ["cow", "3", "0", "5"],
    ]
    listed = json.loads((tree / "r" / "differences.json").read_text())["rows"]
    assert len(listed) == 8
    assert listed[0]["image"] == "cat/2.png"
