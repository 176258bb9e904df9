"""`python -m sweep choose`: folds, the answer, and the training of the chosen method."""

import json

import pytest
import torch

from protocols.choose import follow, plan, table
from results.layout import RunDirectory, recognise
from results.tables import TableOptions
from results.tree import read_records
from sweep.cli import main
from sweep.plan import SweepConfig
from tests.helpers.results_trees import write_run
from trainers.zsclip import class_distances


def config(**fields) -> SweepConfig:
    return SweepConfig(
        **{"root": "data", "output": "out", "shots": 4, "seeds": (1,), "folds": 2, "repeats": 2, **fields}
    )


def test_folds_are_planned_for_all_methods_and_zero_shot():
    runs = plan(config(), ["CoOp"], ["drawn_easy"])
    assert [run.place.trainer for run in runs] == ["ZeroshotCLIP"] * 4 + ["CoOp"] * 4
    folds = [run.argv[run.argv.index("DATASET.FOLD") + 1] for run in runs]
    assert folds == ["1/2@1", "2/2@1", "1/2@2", "2/2@2"] * 2
    assert all(recognise(f"/x/{run.output_dir}") == run.place for run in runs)
    assert [run.trains for run in runs] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("folds", [1, 5])
def test_as_many_folds_as_there_are_shots(folds):
    with pytest.raises(ValueError, match=f"--folds {folds}: of 4 shots there can be 2 to 4 folds"):
        plan(config(folds=folds), ["CoOp"], ["drawn_easy"])


def tree(root, **accuracies) -> None:
    """Two folds, dealt twice, of each method."""
    for trainer, own in accuracies.items():
        for index, accuracy in enumerate(own):
            level = f"fold{index % 2 + 1}of2_repeat{index // 2 + 1}"
            place = RunDirectory("fold", "drawn_easy", trainer, "tiny_vit", 4, 1, level)
            more = {"text_distances": {"d_nn": 0.1, "d_avg": 0.25}} if trainer == "ZeroshotCLIP" else {}
            seconds = {"ZeroshotCLIP": 0.0, "CoOp": 9.0}.get(trainer, 3.0)
            write_run(root, place, accuracy, num_test=40, train_seconds=seconds, **more)


def test_the_table_has_the_answer_and_how_hard_the_transfer_is(tmp_path):
    tree(tmp_path, ZeroshotCLIP=[50, 40, 50, 40], CoOp=[80, 82, 79, 83], APEX=[79, 82, 80, 82.5])
    made = table(read_records(tmp_path), TableOptions(order=["CoOp", "APEX"]))
    rows = {row[2]: row for row in made.rows}
    assert [row[-1] for row in made.rows] == ["chosen", "", ""]
    assert (rows["CoOp"][3], rows["CoOp"][4].mean, rows["CoOp"][7]) == (4, 81.0, 9.0)
    assert (float(rows["APEX"][5]), rows["APEX"][6]) == (-0.125, "yes")
    assert (float(rows["ZeroshotCLIP"][5]), rows["ZeroshotCLIP"][6]) == (-36.0, "")
    assert any("no difference; the cheaper is APEX (CoOp 9.0 s, APEX 3.0 s a training)" in note for note in made.notes)
    told = "zero-shot accuracy on the 80 support images 45.00, relative transfer difficulty 0.222, mean d_nn 0.100"
    assert any(told in note for note in made.notes)
    assert made.complete
    (run,) = follow(config(), read_records(tmp_path))
    assert run.output_dir == "out/drawn_easy/CoOp/tiny_vit_ep50_ctxv1_4shots/seed1"
    assert "DATASET.FOLD" not in run.argv


def test_a_method_without_all_folds_is_named_and_not_chosen(tmp_path):
    tree(tmp_path, ZeroshotCLIP=[50, 40, 50, 40], CoOp=[90, 92, 99])
    made = table(read_records(tmp_path), TableOptions())
    assert {row[2]: row[-1] for row in made.rows} == {"ZeroshotCLIP": "chosen", "CoOp": ""}
    assert not made.complete


def test_class_distances_are_those_to_the_other_classes():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = class_distances(features)
    assert found["d_nn"] == pytest.approx((0.4 + 0.2 + 0.2) / 3)
    assert found["d_avg"] == pytest.approx((0.7 + 0.6 + 0.3) / 3)
    assert class_distances(features[:1]) == {}


def test_it_chooses_trains_and_goes_on(tmp_path, capsys):
    words = ["choose", "--trainers", "TipAdapter", "--datasets", "drawn_easy", "--shots", "2", "--folds", "2"]
    words += ["--repeats", "1", "--jobs", "1", "--root", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "2 trainings of folds, together about as much as 1 on all support images" in said.err
    rows = [line.split() for line in said.out.splitlines() if line.startswith("drawn_easy")]
    chosen = next(row[2] for row in rows if row[-1] == "chosen")
    tested = list((tmp_path / "out/drawn_easy").rglob("metrics.json"))
    assert [json.loads(path.read_text())["trainer"] for path in tested] == [chosen]
    assert json.loads(tested[0].read_text())["num_test"] == 1000
    assert main(words) == 0
    assert "4 runs complete, 0 to do" in capsys.readouterr().err


def test_other_protocols_have_no_folds(capsys):
    assert main(["fewshot", "--trainers", "CoOp", "--folds", "2"]) == 2
    assert "fewshot deals no support images in folds" in capsys.readouterr().err
