"""Measures of stored answers in tables: over seeds, of every protocol, in every format; runs without are named."""

import csv
import io
import json
import statistics

import pytest
from answers import make_answers, write_answers
from results_trees import write_run

from results import cli
from results.__main__ import main as results_main
from results.answers import measures_table
from results.layout import RunDirectory
from results.measures import MEASURES, distance_aware_temperatures, image_scores
from results.predictions import predictions_of
from results.tables import TableOptions
from results.tree import read_records

SEEDS = (1, 2, 3)


def place(role, dataset, seed, trainer="CoOp", **more) -> RunDirectory:
    return RunDirectory(role, dataset, trainer, "vit_b16", 16, seed, **more)


def answers_of(role, dataset, seed):
    return make_answers(120, 5 if role == "base" else 4, seed=10 * len(dataset) + seed, names=role)


@pytest.fixture
def tree(tmp_path):
    """Base and new on two sets and three seeds, with answers, also to validation images of the base classes."""
    for dataset in ("dtd", "eurosat"):
        for seed in SEEDS:
            for role in ("base", "new"):
                val = make_answers(40, 5, seed=seed + 50, names="base") if role == "base" else None
                write_answers(tmp_path / "out", place(role, dataset, seed), answers_of(role, dataset, seed), val)
    return tmp_path / "out"


def table_of(root, *names):
    return measures_table(read_records(root), names, "Measures", TableOptions())


def test_a_row_for_each_set_and_list_of_classes(tree):
    table = table_of(tree, "accuracy", *MEASURES)
    assert table.columns[:5] == ["data set", "classes", "method", "n", "accuracy"]
    assert [row[:2] for row in table.rows] == [
        [dataset, role] for role in ("base", "new") for dataset in ("dtd", "eurosat", "average")
    ]
    for role, start in (("base", 0), ("new", 3)):
        scores = {(d, s): image_scores(answers_of(role, d, s)) for d in ("dtd", "eurosat") for s in SEEDS}
        for column, measure in enumerate(MEASURES.values(), 5):
            each = {key: measure.compute(own) for key, own in scores.items()}
            cell = table.rows[start][column]
            assert cell.mean == pytest.approx(statistics.fmean(each["dtd", seed] for seed in SEEDS))
            assert cell.sd == pytest.approx(statistics.stdev(each["dtd", seed] for seed in SEEDS))
            assert table.rows[start + 2][column].mean == pytest.approx(statistics.fmean(each.values()))
    assert table.complete
    assert not any("no measures" in note for note in table.notes)


def test_every_format_has_them(tree, capsys):
    words = [str(tree), "--table", "base2new", "--metrics", "accuracy", "ece", "auroc"]
    said = {}
    for form in ("text", "markdown", "csv", "latex", "json"):
        assert cli.main([*words, "--format", form]) == 0
        said[form] = capsys.readouterr().out
    rows = json.loads(said["json"])["rows"]
    assert set(rows[0]) == {"data set", "classes", "method", "n", "accuracy", "ECE", "AUROC"}
    ece = rows[0]["ECE"]
    assert next(csv.DictReader(io.StringIO(said["csv"])))["ECE"] == str(ece["mean"])
    assert f"{ece['mean']:.2f} ± {ece['sd']:.2f}" in said["text"]
    assert f"{ece['mean']:.2f} ± {ece['sd']:.2f}" in said["markdown"]
    assert f"${ece['mean']:.2f}_{{\\pm {ece['sd']:.2f}}}$" in said["latex"]
    assert results_main([*words, "--to", str(tree / "report")]) == 0
    assert json.loads((tree / "report" / "base2new_measures.json").read_text())["rows"] == rows
    assert {path.suffix for path in (tree / "report").glob("base2new_measures.*")} == {
        ".txt", ".md", ".csv", ".tex", ".json",
    }  # fmt: skip
    assert "Measures of base2new" in (tree / "report" / "report.html").read_text()


def test_runs_without_answers_are_named_and_not_dropped(tree):
    """Of seed 4 only old records are there, of another method nothing else."""
    for role in ("base", "new"):
        write_run(tree, place(role, "dtd", 4), 70.0)
        write_run(tree, place(role, "dtd", 1, "KgCoOp"), 60.0)
    write_run(tree, place("new", "dtd", 5), 70.0, predictions={"not_kept": "the model returns no scores"})
    write_run(tree, place("base", "dtd", 5), 70.0)
    table = table_of(tree, "accuracy", "ece")
    (own,) = (row for row in table.rows if row[:3] == ["dtd", "base", "CoOp"])
    assert own[3] == 5
    assert own[4].n == 5
    assert own[5].n == 3
    (old,) = (row for row in table.rows if row[:3] == ["dtd", "base", "KgCoOp"])
    assert old[4].mean == 60.0
    assert old[5] is None
    (note,) = (note for note in table.notes if "a version that kept none" in note)
    for whose in ("dtd, base, CoOp, seeds 4-5", "dtd, new, CoOp, seed 4", "dtd, base, KgCoOp, seed 1"):
        assert whose in note
    (other,) = (note for note in table.notes if "the model returns no scores" in note)
    assert other.endswith("dtd, new, CoOp, seed 5")


def test_stale_and_damaged_files_are_not_measured(tree, capsys):
    first, second = (tree / place("base", "dtd", seed).path() / "predictions.npz" for seed in (1, 2))
    first.write_bytes(second.read_bytes())
    second.write_bytes(second.read_bytes()[:-100])
    (tree / place("base", "dtd", 3).path() / "predictions.npz").unlink()
    table = table_of(tree, "ece")
    assert table.rows[0][:5] == ["dtd", "base", "CoOp", 3, None]
    reasons = " ".join(note for note in table.notes if "no measures" in note)
    for reason in ("of another evaluation than the metrics.json", "or is damaged", "is not there"):
        assert reason in reasons
    assert results_main(["--audit", str(tree)]) == 1
    found = capsys.readouterr().out
    assert found.count("no predictions (") == 3


def test_temperatures_by_validation_and_by_distance(tree):
    table = table_of(tree, "nll", "nll_ts", "nll_dac")
    records = {(r.place.role, r.place.dataset, r.place.seed): r for r in read_records(tree)}
    base, new = (predictions_of(records[role, "dtd", 1]) for role in ("base", "new"))
    expected = image_scores(new, distance_aware_temperatures(new, base)).nll.mean()
    one = measures_table([records["new", "dtd", 1], records["base", "dtd", 1]], ["nll_dac"], "", TableOptions())
    by_role = {row[1]: row[4].mean for row in one.rows}
    assert by_role["new"] == pytest.approx(expected)
    assert by_role["base"] == pytest.approx(image_scores(base).nll.mean())  # all of its classes were trained on
    nll, ts, dac = (table.rows[0][column].mean for column in (4, 5, 6))
    assert nll == pytest.approx(dac)
    assert nll != pytest.approx(ts)
    assert any("best on the validation images" in note for note in table.notes)


def test_without_validation_images_or_a_training(tree):
    write_answers(tree, place("new", "dtd", 9), make_answers(50, 4, names="new"))
    write_answers(tree, place("base", "dtd", 8), make_answers(50, 5, names="base"))
    notes = " ".join(table_of(tree, "ece_ts", "ece_dac").notes)
    assert "TEST.KEEP_VAL_PREDICTIONS True" in notes
    assert "no DAC measures (the training is not there): dtd, new, CoOp, seed 9" in notes


def test_of_other_protocols(tmp_path, capsys):
    """Cross-dataset runs and few-shot runs are kept apart, as in the protocols' own tables."""
    out = tmp_path / "out"
    for role, dataset, more in (("all", "imagenet", {}), ("transfer", "dtd", {}), ("transfer", "imagenet_a", {})):
        write_answers(out, place(role, dataset, 1, **more), make_answers(60, 4))
    write_answers(out, place("all", "dtd", 1), make_answers(60, 4))
    sets = {}
    for protocol in ("xd", "dg", "fewshot"):
        assert cli.main([str(out), "--table", protocol, "--metrics", "ece", "--format", "json"]) in (0, 1)
        sets[protocol] = [row["data set"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert sets == {"xd": ["imagenet", "dtd"], "dg": ["imagenet", "imagenet_a"], "fewshot": ["dtd"]}


def test_mistakes(tree, capsys):
    assert cli.main([str(tree), "--table", "base2new", "--metrics", "ecee"]) == 2
    assert "do you mean ['ece" in capsys.readouterr().err
    assert cli.main([str(tree), "--metrics", "ece"]) == 2
    assert "--metrics: only with --table" in capsys.readouterr().err
