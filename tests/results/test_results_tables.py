"""Trees of metrics.json -> records -> tables in every format."""

import csv
import io
import json
import math
import re
import shutil
import statistics
import subprocess
from dataclasses import replace

import pytest
from results_trees import APEX, base2new_tree, write_run
from scipy.special import stdtr

from protocols import PROTOCOLS
from protocols.base2new import AVERAGE_OF_HMS, HM_OF_AVERAGES, base2new
from results.formats import FORMATS, to_csv, to_json, to_latex, to_markdown, to_text
from results.layout import BENCHMARKS, IMAGENET_VARIANTS, RunDirectory, known_roles, recognise
from results.paired import paired
from results.published import facts, published
from results.records import divergence
from results.rows import method_names
from results.seeds import numbers
from results.statistics import harmonic_mean, paired_test, population_ci95, summarise, t_quantile
from results.tables import TableOptions
from results.tree import read_records


def _rows(table):
    return {(row[0], row[1]): dict(zip(table.columns, row, strict=True)) for row in table.rows}


@pytest.mark.parametrize("role", sorted(known_roles()))
def test_a_path_is_recognised_as_the_place_that_made_it(role):
    zero = role == "zeroshot"
    place = RunDirectory(role, "dtd", "ZeroshotCLIP" if zero else "APEX", APEX, 0 if zero else 16, 0 if zero else 12)
    assert recognise(f"/somewhere/output/{place.path()}") == place
    if role in ("all", "transfer"):
        place = replace(place, variant="any name")
        assert recognise(f"/somewhere/output/{place.path()}") == place


def test_a_method_that_learns_nothing_says_so_in_its_metrics(tmp_path):
    own = RunDirectory("zeroshot", "dtd", "Guessing", "usual")
    write_run(tmp_path, own, 40.0, learns=False)
    write_run(tmp_path, RunDirectory("zeroshot", "dtd", "ZeroshotCLIP", "vit_b16"), 41.0)
    write_run(tmp_path, RunDirectory("base", "dtd", "CoOp", "c", 16, 1), 42.0)
    (tmp_path / "dtd_test").mkdir()
    (tmp_path / "dtd_test" / "metrics.json").write_text("{}")
    found = {record.place.trainer: record for record in read_records(tmp_path)}
    assert found["Guessing"].place == own
    assert {name: record.learns for name, record in found.items()} == {
        "Guessing": False,
        "ZeroshotCLIP": False,
        "CoOp": True,
    }


def test_directories_are_those_of_the_official_scripts():
    assert RunDirectory("base", "dtd", "APEX", "c", 16, 3).path() == "base2new/train_base/dtd/shots_16/APEX/c/seed3"
    assert RunDirectory("new", "dtd", "APEX", "c", 16, 3).path() == "base2new/test_new/dtd/shots_16/APEX/c/seed3"
    assert RunDirectory("all", "imagenet", "APEX", "c", 16, 3).path() == "imagenet/APEX/c_16shots/seed3"
    assert RunDirectory("transfer", "dtd", "APEX", "c", 16, 3).path() == "evaluation/APEX/c_16shots/dtd/seed3"
    coop = RunDirectory("all", "dtd", "CoOp", "rn50", 16, 1, variant="nctx16_cscFalse_ctpend")
    assert coop.path() == "dtd/CoOp/rn50_16shots/nctx16_cscFalse_ctpend/seed1"
    assert recognise(f"/x/{coop.path()}") == coop
    other = RunDirectory("transfer", "dtd", "APEX", "c", 16, 3, source="drawn_easy")
    assert recognise(f"/x/{other.path()}") == other
    assert RunDirectory("zeroshot", "dtd", "ZeroshotCLIP", "c").path() == "ZeroshotCLIP/c/dtd"


def test_statistics():
    summary = summarise([1.0, 2.0, 4.0])
    assert summary.mean == pytest.approx(7 / 3)
    assert summary.sd == pytest.approx(statistics.stdev([1, 2, 4]))
    assert summary.ci95 == pytest.approx(4.302652730 * summary.sd / math.sqrt(3))
    assert t_quantile(19) == pytest.approx(2.093024054)
    assert summarise([5.0]).sd is None
    assert population_ci95([1.0, 3.0]) == pytest.approx(1.96 / math.sqrt(2))
    assert harmonic_mean(92.83, 79.89) == pytest.approx(85.88, abs=0.005)
    assert harmonic_mean(0.0, 50.0) == 0.0


def test_paired_tests_say_nothing_where_there_is_nothing_to_say():
    test = paired_test([1.0, 2.0, 3.0, 4.0], [2.0, 2.5, 4.0, 6.0])
    assert test.difference.mean == pytest.approx(1.125)
    statistic = 1.125 / (statistics.stdev([1, 0.5, 1, 2]) / 2)
    assert test.t_p == pytest.approx(2 * (1 - stdtr(3, statistic)))
    assert test.wilcoxon_p == pytest.approx(0.125)
    same = paired_test([1.0, 2.0], [1.0, 2.0])
    assert (same.t_p, same.wilcoxon_p) == (None, None)
    assert paired_test([1.0], [2.0]).t_p is None


def test_base_to_new_table(tmp_path):
    base2new_tree(tmp_path)
    rows = _rows(base2new(read_records(tmp_path), compare=False))
    dtd = rows["dtd", "APEX"]
    assert dtd["n"] == 3
    assert (dtd["base"].mean, dtd["base"].sd) == (82.0, 1.0)
    assert dtd["HM"].mean == pytest.approx(harmonic_mean(82, 58))
    assert dtd["HM"].sd == pytest.approx(statistics.stdev(harmonic_mean(80 + s, 60 - s) for s in (1, 2, 3)))
    assert rows["eurosat", "ZeroshotCLIP"]["base"] == summarise([50.0])
    first, second = rows[AVERAGE_OF_HMS, "APEX"], rows[HM_OF_AVERAGES, "APEX"]
    assert first["HM"].mean == pytest.approx((harmonic_mean(82, 58) + harmonic_mean(83, 59)) / 2)
    assert second["HM"].mean == pytest.approx(harmonic_mean(82.5, 58.5))
    assert first["base"] == second["base"]
    assert first["base"].sd == pytest.approx(1.0)


def test_averages_are_over_the_seeds_that_every_set_has(tmp_path):
    base2new_tree(tmp_path)
    place = RunDirectory("new", "eurosat", "APEX", APEX, 16, 3)
    (tmp_path / place.path() / "metrics.json").unlink()
    table = base2new(read_records(tmp_path), compare=False)
    rows = _rows(table)
    assert rows["dtd", "APEX"]["base"].mean == 82.0
    for name in (AVERAGE_OF_HMS, HM_OF_AVERAGES):
        row = rows[name, "APEX"]
        assert row["n"] == row["base"].n == row["HM"].n == 2
        assert row["base"] == summarise([81.5, 82.5])
        assert row["new"] == summarise([59.5, 58.5])
    assert rows[HM_OF_AVERAGES, "APEX"]["HM"].mean == pytest.approx(harmonic_mean(82, 59))
    assert "average, APEX: over seeds 1-2 alone, for not every data set has the others" in table.notes
    assert not table.complete


def test_missing_failed_and_diverged_seeds_are_named_and_left_out(tmp_path):
    base2new_tree(tmp_path, datasets=("dtd",))
    write_run(tmp_path, RunDirectory("new", "dtd", "APEX", APEX, 16, 2), 58.0).joinpath("metrics.json").unlink()
    write_run(
        tmp_path, RunDirectory("base", "dtd", "APEX", APEX, 16, 3), 3.0, history=[{"loss": 2.0}, {"loss": float("nan")}]
    )
    folder = tmp_path / RunDirectory("new", "dtd", "APEX", APEX, 16, 2).path()
    (folder / "failed.json").write_text(json.dumps({"reason": "OutOfMemoryError: CUDA"}))
    table = base2new(read_records(tmp_path), seeds=(1, 2, 3, 4))
    assert _rows(table)["dtd", "APEX"]["n"] == 1
    notes = "\n".join(table.notes)
    assert "dtd, APEX: no result of seeds 2-4" in notes
    assert "seed 2, new classes: failed: OutOfMemoryError: CUDA" in notes
    assert "seed 3, base classes: diverged: the loss of epoch 2 is not finite" in notes
    assert "ZeroshotCLIP: nothing is learned" in notes


def test_a_damaged_result_is_a_failed_run(tmp_path):
    base2new_tree(tmp_path, datasets=("dtd",))
    path = tmp_path / RunDirectory("new", "dtd", "APEX", APEX, 16, 2).path() / "metrics.json"
    path.write_text('{"accuracy": 5')
    problems = [record.problem for record in read_records(tmp_path) if record.problem]
    assert len(problems) == 1
    assert str(path) in problems[0]


def test_divergence_is_a_loss_that_rose_well_above_its_start():
    assert not divergence({"num_classes": 10, "history": [{"loss": 0.01}, {"loss": 0.04}]})
    assert "rose" in divergence({"num_classes": 10, "history": [{"loss": 2.0}, {"loss": 7.0}]})


def test_published_numbers_stand_beside_with_the_difference(tmp_path):
    base2new_tree(tmp_path)
    table = base2new(read_records(tmp_path))
    row = _rows(table)["eurosat", "APEX"]
    assert (row["published base"], row["published new"]) == (92.83, 79.89)
    assert row["published HM"] == pytest.approx(85.88, abs=0.005)
    assert row["difference base"] == pytest.approx(83 - 92.83)
    assert any("EMNLP 2024" in note for note in table.notes)
    assert row["difference HM"] == pytest.approx(harmonic_mean(83, 59) - harmonic_mean(92.83, 79.89))


def test_published_averages_follow_the_paper():
    (entry,) = published("base2new", "APEX", APEX, "ViT-B/16", 16)
    sets = [pair for name, pair in entry["results"].items() if name != "average"]
    assert len(sets) == 11
    assert statistics.fmean(harmonic_mean(*pair) for pair in sets) == pytest.approx(80.04, abs=0.006)
    for name, numbers_ in entry["results"].items():
        assert len(numbers_) == 2, name
    assert harmonic_mean(*entry["results"]["average"]) == pytest.approx(80.21, abs=0.006)


def test_published_numbers_belong_to_recipe_backbone_and_shots():
    assert not published("base2new", "APEX", APEX, "tiny-ViT", 16)
    assert not published("base2new", "APEX", APEX, "ViT-B/16", 4)
    (own,) = published("base2new", "MaPLe", "vit_b16_c2_ep5_batch4_2ctx", "ViT-B/16", 16)
    (adadelta,) = published("base2new", "MaPLe", "vit_b16_c2_ep5_batch4_2ctx_adadelta", "ViT-B/16", 16)
    (dept,) = published("base2new", "MaPLe", "vit_b16_dept_maple_ep10_ctxv1_bs4_lr35", "ViT-B/16", 16)
    assert dept["results"]["dtd"] == [83.87, 59.93]
    assert own["results"]["dtd"] == [80.36, 59.18]
    assert adadelta["results"]["dtd"] == [79.34, 56.64]
    assert all(entry["source"] for entry in facts()["tables"])


def test_published_entries_are_whole():
    """Known data sets, pairs where both halves are tested, averages that are those of the rows."""
    for entry in facts()["tables"]:
        known = {*BENCHMARKS, *IMAGENET_VARIANTS, "average"}
        assert set(entry.get("notes", {})) <= known | {"all"}, entry["name"]
        for trainer, found in entry["results"].items():
            assert set(found) <= known, (entry["name"], trainer)
            for name, value in found.items():
                assert isinstance(value, list) is (entry["protocol"] == "base2new"), (entry["name"], trainer, name)
            rows = [found[name] for name in BENCHMARKS if name in found]
            if entry["protocol"] == "base2new" and len(rows) == len(BENCHMARKS) and "average" in found:
                for half in (0, 1):
                    # to 0.05, but for the two that a note names
                    loose = 0.15 if "average" in entry.get("notes", {}) else 0.05
                    if found["average"][half] is not None:
                        mean = statistics.fmean(pair[half] for pair in rows)
                        assert mean == pytest.approx(found["average"][half], abs=loose), (entry["name"], trainer)


@pytest.mark.parametrize(
    ("trainer", "dataset", "words"),
    [
        ("MMA", "ucf101", "the harmonic mean printed beside it (82.20) and the printed average imply 78.53"),
        ("MMRL", "dtd", "the printed harmonic mean is 73.82, that of the printed pair 73.92"),
        ("MMRL", "eurosat", "was not reproduced by others: issue 14 of yunncheng/MMRL"),
    ],
)
def test_doubts_about_published_numbers_stand_below_the_tables_that_show_them(
    tmp_path, monkeypatch, trainer, dataset, words
):
    monkeypatch.setattr("results.tables.departures", lambda record, free: [])  # whatever configuration there is
    for name in (dataset, "food101"):
        for seed in (1, 2):
            write_run(tmp_path / name, RunDirectory("base", name, trainer, "c", 16, seed), 80.0)
            write_run(tmp_path / name, RunDirectory("new", name, trainer, "c", 16, seed), 70.0)
    table = base2new(read_records(tmp_path / dataset))
    (row,) = _rows(table).values()
    base, new = facts_of(trainer)[dataset]
    assert (row["published base"], row["published new"]) == (base, new)
    assert any(words in note and dataset in note for note in table.notes)
    assert not any(words in note for note in base2new(read_records(tmp_path / "food101")).notes)
    assert not any(words in note for note in base2new(read_records(tmp_path / dataset), compare=False).notes)


def facts_of(trainer: str) -> dict:
    """The base-to-new results of a trainer."""
    return published("base2new", trainer, "c", "ViT-B/16", 16)[0]["results"]


def test_methods_are_told_apart_by_configuration_and_shots():
    names = method_names([("CoOp", "a", 16), ("CoOp", "b", 16), ("APEX", "c", 16)])
    assert list(names.values()) == ["CoOp (a)", "CoOp (b)", "APEX"]
    assert numbers([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"


def _table(tmp_path):
    base2new_tree(tmp_path)
    return base2new(read_records(tmp_path))


def test_text_and_markdown_show_rounded_numbers(tmp_path):
    table = _table(tmp_path)
    assert "82.00 ± 1.00 (2.48)" in to_text(table)
    lines = to_markdown(table).splitlines()
    assert {line.count("|") for line in lines if line.startswith("|")} == {len(table.columns) + 1}


def test_csv_and_json_hold_everything_unrounded(tmp_path):
    table = _table(tmp_path)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    row = next(row for row in rows if row["data set"] == "dtd" and row["method"] == "APEX")
    assert float(row["HM"]) == harmonic_mean(82, 58)
    assert float(row["base_sd"]) == 1.0
    parsed = json.loads(to_json(table))
    assert parsed["rows"][1]["HM"]["mean"] == harmonic_mean(82, 58)
    assert set(parsed) == {"title", "columns", "rows", "notes"}


def _all_tables(root):
    """Every kind of table, with names and reasons that LaTeX would trip over."""
    base2new_tree(root)
    for seed in (1, 2, 3):
        for role in ("base", "new"):
            write_run(root, RunDirectory(role, "50%_of #1 & {a}", "Mine_~^<x>|$", "c\\fg_1", 16, seed), 40.0 + seed)
            write_run(root, RunDirectory(role, "dtd", "Mine_~^<x>|$", "c\\fg_1", 16, seed), 40.0 - seed**2)
        write_run(root, RunDirectory("all", "imagenet", "APEX", "cross_eval", 16, seed), 70.0 + seed)
        for dataset in ("dtd", "imagenet_a"):
            write_run(root, RunDirectory("transfer", dataset, "APEX", "cross_eval", 16, seed), 40.0 + seed)
    write_run(root, RunDirectory("all", "dtd", "Mine_~^<x>|$", "c", 1, 1), 41.0)
    write_run(root, RunDirectory("zeroshot", "dtd", "ZeroshotCLIP", "vit_b16"), 44.0)
    write_run(root, RunDirectory("all", "dtd", "CoOp", "vit_b16", 1), 45.0)
    roles = {"all2all": "", "imbalance": "power_law_1.0", "noise": "sym_0.5", "fold": "fold1of2_repeat1"}
    for role, variant in {**roles, "union": "", "ood": "", "transductive": ""}.items():
        more = {"transductive": "TransCLIP"} if role == "transductive" else {}
        write_run(root, RunDirectory(role, "dtd", "Mine_~^<x>|$", "c", 4, 1, variant), 46.0, **more)
    failed = root / RunDirectory("new", "dtd", "APEX", APEX, 16, 4).path()
    failed.mkdir(parents=True)
    (failed / "failed.json").write_text(json.dumps({"reason": "ValueError: 100% wrong\n\\end{tabular} & more"}))
    records = read_records(root)
    tables = [table for made in PROTOCOLS.values() for table in made.tables_of(records, TableOptions()).values()]
    return [*tables, paired(records, "APEX", "Mine_~^<x>|$")]


def test_latex_holds_no_loose_letters_and_as_many_cells_as_columns(tmp_path):
    tables = _all_tables(tmp_path)
    assert all(table.rows for table in tables)
    for table in tables:
        lines = to_latex(table).splitlines()
        code = "\n".join(line for line in lines if not line.startswith("%"))
        spec = re.search(r"\\begin\{tabular\}\{([lr]+)\}", code)[1]
        assert len(spec) == len(table.columns)
        assert re.findall(r"\\(?:begin|end)\{(\w+)\}", code) == ["tabular", "tabular"]
        bare = re.sub(r"\\(?:[&%$#_{}\\]|[a-z]+)", "", code)  # without escapes and commands
        rows = [line for line in code.splitlines() if line.endswith(r"\\")]
        assert len(rows) == len(table.rows) + 1
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(spec) - 1, row
        assert bare.count("{") == bare.count("}")
        assert not re.search("[%#~]", bare)
        outside = re.sub(r"\$[^$]*\$", "", bare)
        assert not re.search(r"[$_^<>|]", outside), outside


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    body = "\n\n".join(to_latex(table) for table in _all_tables(tmp_path / "runs"))
    page = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\tiny\n" + body + "\\end{document}\n"
    (tmp_path / "tables.tex").write_text(page, encoding="utf-8")
    line = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing" not in done.stdout


def test_every_format_takes_an_empty_table(tmp_path):
    table = base2new([])
    for make in FORMATS.values():
        assert make(table)


def test_stored_draws_are_named_below_the_table(tmp_path):
    base2new_tree(tmp_path)
    assert not any("stored few-shot draws" in note for note in base2new(read_records(tmp_path)).notes)
    for seed in (1, 2, 3):
        place = RunDirectory("base", "dtd", "APEX", APEX, 16, seed)
        write_run(tmp_path, place, 80.0 + seed, draw_source="stored")
    (note,) = (note for note in base2new(read_records(tmp_path)).notes if "stored few-shot draws" in note)
    assert note == "trained on stored few-shot draws, not on those of the rule: dtd, APEX, seeds 1-3"
