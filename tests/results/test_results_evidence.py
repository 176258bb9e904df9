"""A run's number is held against what it says of itself: whatever disagrees in a tree is named and not averaged.

Trees are made, one record of each is changed, and tables and audit are looked at.
"""

import copy
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from results_trees import write_run

from protocols.base2new import base2new
from protocols.fewshot import few_shot
from results import cli
from results.__main__ import main as results_main
from results.audit import audit
from results.layout import RunDirectory
from results.records import read_metrics
from results.tree import read_records

SEEDS = (1, 2, 3)
SETS = {"dtd": "DescribableTextures", "eurosat": "EuroSAT"}


def _place(role, dataset, seed):
    return RunDirectory(role, dataset, "CoOp", "vit_b16_ctxv1", 16, seed)


def _record(place, correct):
    """What a run leaves, complete: the fields beside those of `write_run`."""
    digest = f"{place.dataset} {place.seed}"
    data = {"NAME": SETS[place.dataset], "SUBSAMPLE_CLASSES": place.role, "NUM_SHOTS": 16}
    trained = {"dataset": data["NAME"], "seed": place.seed, "shots": 16, "subsample_classes": "base"}
    return {
        "config": {
            "SEED": place.seed,
            "OUTPUT_DIR": f"output/{place.path()}",
            "DATASET": data,
            "OPTIM": {"LR": 0.002, "MAX_EPOCH": 5},
            "TRAINER": {"NAME": "CoOp"},
            "TEST": {"FINAL_MODEL": "last_step"},
        },
        "subsample_classes": place.role,
        "epoch": 5,
        "split": "test",
        "per_class": [{"label": i, "classname": f"c{i}", "total": 10, "correct": c} for i, c in enumerate(correct)],
        "num_test": 10 * len(correct),
        "num_classes": len(correct),
        "recipe": "1.1",
        "backbone_digest": "e" * 64,
        "full_split_hash": f"split of {place.dataset}",
        "test_images_hash": f"images of {place.dataset}, {place.role}",
        "checkpoint": {"files": {"prompt_learner/model.pth.tar-5": digest}, **trained},
    }


def _tree(root, correct):
    """Base and new on two sets and three seeds; `correct` are the right answers of 4 classes of 10 images each."""
    for dataset in SETS:
        for seed in SEEDS:
            for role in ("base", "new"):
                place, own = _place(role, dataset, seed), correct[dataset, role, seed]
                write_run(root, place, 100 * sum(own) / 40, **_record(place, own))


ANSWERS = st.fixed_dictionaries(
    {
        (dataset, role, seed): st.lists(st.integers(1, 10), min_size=4, max_size=4)
        for dataset in SETS
        for role in ("base", "new")
        for seed in SEEDS
    }
)
PLAIN = {(d, r, s): [5, 6, 7, s] for d in SETS for r in ("base", "new") for s in SEEDS}


def _fresh(folder: Path, correct=PLAIN) -> Path:
    """The tree in an empty folder: hypothesis calls a test many times with one folder."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    _tree(folder / "out", correct)
    return folder / "out"


QUIET = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUIET
@given(correct=ANSWERS)
def test_a_clean_tree_prints_exactly_the_right_means(tmp_path, correct):
    root = _fresh(tmp_path, correct)
    table = base2new(read_records(root), compare=False)
    assert table.complete
    assert audit(root) == ([], 12, 0)
    for row in table.rows[:2]:
        for role, cell in (("base", row[3]), ("new", row[4])):
            answers = [sum(correct[row[0], role, seed]) / 40 for seed in SEEDS]
            assert cell.mean == pytest.approx(100 * sum(answers) / 3, rel=1e-12)


def _set(*path, value):
    """A change of a record: a value at a path of keys."""

    def change(record):
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    return change


def _both(*changes):
    def change(record):
        for one in changes:
            one(record)

    return change


OUT_OF_RANGE = [-5, 10000, True, "50", float("nan"), float("inf"), None, [50], {"mean": 50}, 100.0001, 10**400]
ELSEWHERE = "output/" + _place("base", "dtd", 1).path().replace("vit_b16_ctxv1", "vit_b16_ep100_ctxv1")
CHANGES = {
    "seed": _set("seed", value=7),
    "seed everywhere": _both(_set("seed", value=7), _set("config", "SEED", value=7)),
    "shots": _both(_set("shots", value=2), _set("config", "DATASET", "NUM_SHOTS", value=2)),
    "classes": _both(
        _set("subsample_classes", value="all"), _set("config", "DATASET", "SUBSAMPLE_CLASSES", value="all")
    ),
    "data set": _both(_set("dataset", value="Food101"), _set("config", "DATASET", "NAME", value="Food101")),
    "trainer": _both(_set("trainer", value="KgCoOp"), _set("config", "TRAINER", "NAME", value="KgCoOp")),
    "split": _set("full_split_hash", value="another"),
    "images": _set("test_images_hash", value="another"),
    "number of test images": _set("num_test", value=39),
    "number of classes": _set("num_classes", value=5),
    "settings": _set("config", "OPTIM", "LR", value=0.1),
    "weights": _set("backbone_digest", value="another"),
    "recipe": _set("recipe", value="1.2"),
    "epoch": _set("epoch", value=3),
    "accuracy": _set("accuracy", value=12.34),
    "configuration file": _set(
        "config", "OUTPUT_DIR", value="out/" + _place("base", "dtd", 1).path().replace("ctx", "x")
    ),
    "checkpoint": _set("checkpoint", "files", "prompt_learner/model.pth.tar-5", value="another"),
    **{f"accuracy {value!r:.10}": _set("accuracy", value=value) for value in OUT_OF_RANGE},
    "macro F1": _set("macro_f1", value=-1.0),
    "history": _set("history", value="long"),
    "classes that are no list": _set("per_class", value=3),
}


@QUIET
@given(name=st.sampled_from(sorted(CHANGES)), dataset=st.sampled_from(sorted(SETS)), seed=st.sampled_from(SEEDS))
@pytest.mark.parametrize("role", ["base", "new"])
def test_whatever_is_wrong_in_one_record_is_named_and_not_averaged(tmp_path, role, name, dataset, seed):
    root = _fresh(tmp_path)
    path = root / _place(role, dataset, seed).path() / "metrics.json"
    record = json.loads(path.read_text())
    before = copy.deepcopy(record)
    CHANGES[name](record)
    assert record != before
    path.write_text(json.dumps(record))
    table = base2new(read_records(root), compare=False)
    assert not table.complete
    notes = " ".join(note for note in table.notes if note.startswith("left out: "))
    assert dataset in notes
    assert seed in {int(digit) for digit in "123" if digit in notes} or "seeds 1-3" in notes
    row = next(row for row in table.rows if row[0] == dataset)
    assert row[2] < 3, "it is not among the seeds that are averaged"
    found, runs, _ = audit(root)
    assert runs == 12
    assert any(str(root / _place(role, dataset, seed).path()) in line or dataset in line for line in found)


def test_a_changed_checkpoint_of_a_training_or_its_evaluation_is_of_another_run(tmp_path):
    root = _fresh(tmp_path)
    for wrong, value, right in (("seed", 2, 1), ("shots", 4, 16), ("dataset", "EuroSAT", "DescribableTextures")):
        path = root / _place("new", "dtd", 1).path() / "metrics.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"checkpoint": {**record["checkpoint"], wrong: value}}))
        (problem,) = [record.problem for record in read_records(root) if record.problem]
        said = f"its record disagrees with its directory: {wrong} {value} of the training that it evaluates, "
        assert problem == f"{said}{right} by the directory"
        path.write_text(json.dumps(record))


def test_three_folders_of_one_seed(tmp_path, capsys):
    root = _fresh(tmp_path)
    for seed in (2, 3):
        for role in ("base", "new"):
            folder = root / _place(role, "dtd", seed).path()
            shutil.rmtree(folder)
            shutil.copytree(root / _place(role, "dtd", 1).path(), folder)
    row = next(row for row in base2new(read_records(root), compare=False).rows if row[0] == "dtd")
    assert (row[2], row[3].sd) == (1, None)
    assert cli.main([str(root), "--table", "base2new"]) == 1
    assert (
        "seed 2, base classes: its record disagrees with its directory: seed 1 in the record, 2 by"
        in capsys.readouterr().out
    )


def test_a_run_of_one_seed_that_is_there_twice(tmp_path):
    root = _fresh(tmp_path)
    folder = root / _place("base", "dtd", 1).path()
    shutil.copytree(folder, root / "backup" / _place("base", "dtd", 1).path())
    assert base2new(read_records(root), compare=False).rows[0][2] == 3, "a copy says the same"
    path = folder / "metrics.json"
    record = json.loads(path.read_text())
    record["per_class"][0]["correct"] += 1
    path.write_text(json.dumps(record | {"accuracy": record["accuracy"] + 2.5}))
    assert base2new(read_records(root), compare=False).rows[0][2] == 2
    assert any("a seed has several runs" in record.problem for record in read_records(root))


def test_what_old_records_do_not_say_is_said(tmp_path):
    root = _fresh(tmp_path)
    for path in root.rglob("metrics.json"):
        record = json.loads(path.read_text())
        for field in ("full_split_hash", "test_images_hash", "checkpoint", "per_class", "num_test"):
            del record[field]
        path.write_text(json.dumps(record))
    table = base2new(read_records(root), compare=False)
    assert table.complete
    assert table.rows[0][2] == 3
    said = "whether these are of the same images their records (or logs) do not say: dtd, CoOp, seeds 1-3"
    assert any(note.startswith(said) for note in table.notes)
    assert audit(root) == ([], 12, 12)


def test_numbers_of_validation_images_are_called_so(tmp_path):
    place = RunDirectory("all", "dtd", "CoOp", "vit_b16", 16, 1)
    write_run(tmp_path, place, 50.0, split="val")
    notes = few_shot(read_records(tmp_path)).notes
    assert "measured on the validation images, not on the test images: dtd, CoOp, seed 1" in notes


@pytest.mark.parametrize(
    "text", ["[" * 100000, '{"a": ' * 200 + "1" + "}" * 200, "[]", "3", "", "\x00", '{"accuracy": 1e400}']
)
def test_what_is_no_record_is_refused_in_a_sentence(tmp_path, text):
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.json (is damaged|is no result)"):
        read_metrics(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        read_metrics(path)


def test_audit_of_files_beside_the_records(tmp_path, capsys):
    root = _fresh(tmp_path)
    assert results_main(["--audit", str(root)]) == 0
    assert "12 results, 0 disagreements" in capsys.readouterr().out
    folder = root / _place("base", "dtd", 1).path()
    (folder / "prompt_learner").mkdir()
    (folder / "prompt_learner/model.pth.tar-5").write_text("trained again")
    (folder / "log.txt").write_text("Evaluate on the *test* set\n=> result\n* accuracy: 99.9%\n")
    (folder / "sweep.json").write_text(json.dumps({"config": {"OPTIM": {"LR": 0.5}}}))
    shutil.copytree(folder, root / "elsewhere")
    assert results_main(["--audit", str(root)]) == 1
    out = capsys.readouterr().out
    for said in (
        f"{folder}: {folder}/prompt_learner/model.pth.tar-5 is not the checkpoint that was evaluated",
        f"{root / _place('new', 'dtd', 1).path()}: {folder}/prompt_learner/model.pth.tar-5 is not the checkpoint",
        "47.50 in the record, 99.90 in log.txt",
        "OPTIM.LR is 0.002 in the record, 0.5 in sweep.json",
        f"{root / 'elsewhere'}: no protocol has such a directory",
    ):
        assert said in out
    assert results_main(["--audit", str(root / "nowhere")]) == 2


def test_audit_of_what_all_runs_share(tmp_path):
    """Another method on other images and weights: no row of a table averages over them, but they are not comparable."""
    root = _fresh(tmp_path)
    for seed in SEEDS:
        place = RunDirectory("base", "dtd", "KgCoOp", "vit_b16_ep100_ctxv1", 16, seed)
        record = _record(place, PLAIN["dtd", "base", seed])
        record["config"]["TRAINER"]["NAME"] = "KgCoOp"
        record |= {"test_images_hash": "other images", "backbone_digest": "f" * 64}
        write_run(root, place, 100 * sum(PLAIN["dtd", "base", seed]) / 40, **record)
    found, _, _ = audit(root)
    assert len(found) == 2
    assert found[0].startswith("backbone ViT-B/16: the runs differ in weights: eeeeeeeeeeee in 12 (such as ")
    assert found[1].startswith("data set dtd, base, test: the runs differ in test images: images of dt in 3")
