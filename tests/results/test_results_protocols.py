"""Tables of transfer, few-shot and zero-shot; paired tests; tables out of logs of others."""

import json

import pytest
from results_trees import APEX, base2new_tree, write_run
from scipy import stats

from protocols.fewshot import few_shot
from protocols.xd import transfer, transfers
from protocols.zeroshot import zero_shot
from results import cli
from results.formats import cell
from results.layout import BENCHMARKS, RunDirectory
from results.paired import paired
from results.statistics import harmonic_mean, summarise
from results.tables import AVERAGE
from results.tree import read_records


def _transfer_tree(root, seeds=(1, 2)):
    for seed in seeds:
        write_run(root, RunDirectory("all", "imagenet", "APEX", "cross_eval", 16, seed), 70.0 + seed)
        write_run(root, RunDirectory("all", "dtd", "APEX", "other", 16, seed), 1.0)
        for i, dataset in enumerate(("caltech101", "dtd", "imagenetv2", "imagenet_a")):
            write_run(root, RunDirectory("transfer", dataset, "APEX", "cross_eval", 16, seed), 50.0 + i + seed)


def test_cross_dataset_and_domain_generalisation(tmp_path):
    _transfer_tree(tmp_path)
    records = read_records(tmp_path)
    xd, dg = transfers(records, "xd")["xd"], transfers(records, "dg")["dg"]
    assert "in the table xd: caltech101, dtd" in dg.notes
    assert xd.columns == ["method", "n", "imagenet", "caltech101", "dtd", AVERAGE]
    assert dg.columns == ["method", "n", "imagenet", "imagenetv2", "imagenet_a", AVERAGE]
    own, facts, differences = xd.rows
    assert own[:2] == ["APEX", 2]
    assert own[2] == summarise([71.0, 72.0])
    assert own[5].mean == pytest.approx(52.0)
    assert own[5].sd == pytest.approx(summarise([51.5, 52.5]).sd)
    assert facts == ["  published", 5, 72.0, 94.46, 45.7, pytest.approx((94.46 + 45.7) / 2)]
    assert cell(differences[3]) == f"{51.5 - 94.46:+.2f}"
    assert len(transfers(records, "xd", compare=False)["xd"].rows) == 1


def test_sources_are_not_mixed(tmp_path, capsys):
    _transfer_tree(tmp_path)
    for seed in (1, 2):
        write_run(tmp_path, RunDirectory("all", "dtd", "APEX", "cross_eval", 16, seed), 80.0)
        write_run(
            tmp_path, RunDirectory("transfer", "eurosat", "APEX", "cross_eval", 16, seed, source="dtd"), 30.0 + seed
        )
    records = read_records(tmp_path)
    tables = transfers(records, "xd")
    assert tables["xd"].columns == ["method", "n", "imagenet", "caltech101", "dtd", AVERAGE]
    assert tables["xd_from_dtd"].columns == ["method", "n", "dtd", "eurosat", AVERAGE]
    assert tables["xd_from_dtd"].title.endswith("trained on dtd")
    assert list(transfers(records, "xd", source="dtd")) == ["xd_from_dtd"]
    assert cli.main([str(tmp_path), "--table", "xd", "--format", "json"]) == 0
    assert [table["columns"] for table in json.loads(capsys.readouterr().out)] == [t.columns for t in tables.values()]
    assert cli.main([str(tmp_path), "--table", "xd", "--format", "csv"]) == 2
    assert "holds one table, and there are 2" in capsys.readouterr().err
    assert cli.main([str(tmp_path), "--table", "dg", "--source", "dtd"]) == 2
    assert "no runs of dg trained on dtd" in capsys.readouterr().err
    assert cli.main([str(tmp_path), "--table", "xd", "--source", "dtd", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("APEX,2,80.0,0.0,0.0,31.5")


def test_a_missing_target_leaves_no_average(tmp_path):
    _transfer_tree(tmp_path)
    for seed in (1, 2):
        path = tmp_path / RunDirectory("transfer", "dtd", "APEX", "cross_eval", 16, seed).path() / "metrics.json"
        path.unlink()
        path.with_name("failed.json").write_text(json.dumps({"reason": "ValueError: no data"}))
    table = transfers(read_records(tmp_path), "xd", compare=False)["xd"]
    assert table.rows[0][-2:] == [None, None]
    assert any("ValueError: no data" in note for note in table.notes)
    assert "dtd, APEX: no result of seeds 1-2" in table.notes


def test_every_set_that_was_run_is_shown_and_the_source_once(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path, RunDirectory("all", "dtd", "APEX", "c", 16, seed), 70.0 + seed)
        for dataset, accuracy in (("dtd", 70.0), ("eurosat", 30.0), ("imagenetv2", 40.0)):
            place = RunDirectory("transfer", dataset, "APEX", "c", 16, seed, source="dtd")
            if (dataset, seed) != ("imagenetv2", 3):
                write_run(tmp_path, place, accuracy + seed)
    for protocol in ("xd", "dg"):
        table = transfer(read_records(tmp_path), protocol=protocol, source="dtd")
        assert table.columns == ["method", "n", "dtd", "eurosat", "imagenetv2", AVERAGE]
        _, n, own, eurosat, imagenetv2, average = table.rows[0]
        assert (own.mean, eurosat.n, imagenetv2.n) == (72.0, 3, 2)
        assert n == "2 to 3"
        assert average == summarise([36.0, 37.0])  # of the seeds that both sets have
        assert "average, APEX: over seeds 1-2 alone, for not every data set has the others" in table.notes


def test_few_shot(tmp_path):
    for dataset, offset in (("dtd", 0), ("eurosat", 10)):
        for shots, cfg in ((1, "vit_b16_ep50"), (16, "vit_b16")):
            for seed in (1, 2):
                write_run(
                    tmp_path, RunDirectory("all", dataset, "CoOp", cfg, shots, seed), 40.0 + offset + shots + seed
                )
    table = few_shot(read_records(tmp_path))
    assert table.columns == ["data set", "method", "1 shot", "16 shots"]
    assert table.rows[0] == ["dtd", "CoOp", summarise([42.0, 43.0]), summarise([57.0, 58.0])]
    assert table.rows[-1][:2] == [AVERAGE, "CoOp"]
    assert table.rows[-1][3].mean == pytest.approx(62.5)


def test_few_shot_beside_published_numbers(tmp_path):
    """Averages where all benchmarks are there, single sets where their numbers are known."""
    for dataset in BENCHMARKS:
        for shots in (8, 16):
            for seed in (1, 2):
                place = RunDirectory("all", dataset, "LPPlusPlus", "vit_b16_ep300", shots, seed)
                write_run(tmp_path, place, 70.0 + seed)
    table = few_shot(read_records(tmp_path))
    rows = {tuple(row[:2]): row[2:] for row in table.rows}
    assert rows["dtd", "  published"] == [None, 71.9]
    assert rows["dtd", "  difference"] == [None, pytest.approx(71.5 - 71.9)]
    assert rows[AVERAGE, "  published"] == [77.94, 80.32]
    assert ("imagenet", "  published") not in rows
    assert any("CLIP-SVD" in note for note in table.notes)
    assert any("RVP paper" in note for note in table.notes)
    assert len(few_shot(read_records(tmp_path), compare=False).rows) == len(BENCHMARKS) + 1
    (tmp_path / "few").mkdir()
    for seed in (1, 2):
        write_run(tmp_path / "few", RunDirectory("all", "dtd", "TCP", "vit_b16", 16, seed), 70.0)
        write_run(tmp_path / "few", RunDirectory("all", "eurosat", "TCP", "vit_b16", 16, seed), 70.0)
    assert len(few_shot(read_records(tmp_path / "few")).rows) == 3  # an average over two sets is not the published one


def test_configurations_and_variants_of_one_number_of_shots_are_rows_of_their_own(tmp_path):
    for cfg, variant, accuracy in (("c", "", 50.0), ("c", "nctx16", 60.0), ("other", "mine", 70.0)):
        for seed in (1, 2):
            write_run(tmp_path, RunDirectory("all", "dtd", "CoOp", cfg, 1, seed, variant), accuracy + seed)
    write_run(tmp_path, RunDirectory("all", "dtd", "CoOp", "c", 2, 1), 55.0)
    write_run(tmp_path, RunDirectory("all", "dtd", "APEX", "a", 1, 1), 40.0)
    write_run(tmp_path, RunDirectory("all", "dtd", "APEX", "b", 2, 1), 41.0)
    rows = few_shot(read_records(tmp_path)).rows
    assert [(row[1], row[2] and row[2].mean, row[3] and row[3].mean) for row in rows] == [
        ("APEX", 40.0, 41.0),
        ("CoOp (c)", 51.5, 55.0),
        ("CoOp (c/nctx16)", 61.5, None),
        ("CoOp (other/mine)", 71.5, None),
    ]


def test_what_was_trained_for_other_sets_is_no_few_shot_result(tmp_path):
    _transfer_tree(tmp_path)
    write_run(tmp_path, RunDirectory("all", "imagenet", "APEX", "usual", 16, 1), 71.0)
    assert [row[:2] for row in few_shot(read_records(tmp_path)).rows] == [
        ["imagenet", "APEX"],
        ["dtd", "APEX"],
        [AVERAGE, "APEX"],
    ]
    assert few_shot(read_records(tmp_path)).rows[0][2].mean == 71.0


def test_zero_shot(tmp_path):
    for i, dataset in enumerate(("dtd", "eurosat")):
        write_run(tmp_path, RunDirectory("zeroshot", dataset, "ZeroshotCLIP", "vit_b16"), 44.0 + i)
    table = zero_shot(read_records(tmp_path))
    assert table.rows == [
        ["dtd", "ZeroshotCLIP", 1, summarise([44.0]), summarise([43.0])],
        ["eurosat", "ZeroshotCLIP", 1, summarise([45.0]), summarise([44.0])],
        [AVERAGE, "ZeroshotCLIP", 1, summarise([44.5]), summarise([43.5])],
    ]


def test_paired(tmp_path):
    base2new_tree(tmp_path)
    for dataset, offset in (("dtd", 0.0), ("eurosat", 1.0)):
        for seed in (1, 2, 3):
            write_run(tmp_path, RunDirectory("base", dataset, "CoOp", "c", 16, seed), 79.0 + offset + 2 * seed)
            write_run(tmp_path, RunDirectory("new", dataset, "CoOp", "c", 16, seed), 50.0)
    table = paired(read_records(tmp_path), "CoOp", "APEX")
    rows = {(row[0], row[1]): row for row in table.rows}
    row = rows["dtd", "base"]
    assert row[2:4] == [3, summarise([0.0, -1.0, -2.0])]
    assert row[4] == pytest.approx(stats.ttest_rel([81, 82, 83], [81, 83, 85]).pvalue)
    assert cell(row[5]) == f"{stats.wilcoxon([0.0, -1.0, -2.0]).pvalue:.3g}"
    assert rows["all", "base"][2] == 6
    own = [harmonic_mean(80 + s, 60 - s) - harmonic_mean(79 + 2 * s, 50) for s in (1, 2, 3)]
    assert rows["dtd", "HM"][3].mean == pytest.approx(sum(own) / 3)


def test_zero_shot_is_matched_with_every_seed(tmp_path):
    base2new_tree(tmp_path)
    table = paired(read_records(tmp_path), "ZeroshotCLIP", "APEX")
    assert table.rows[0][:4] == ["dtd", "base", 3, summarise([31.0, 32.0, 33.0])]
    with pytest.raises(ValueError, match="APEX, ZeroshotCLIP"):
        paired(read_records(tmp_path), "CoOp", "APEX")


def test_command_line_over_a_tree(tmp_path, capsys):
    base2new_tree(tmp_path)
    words = [str(tmp_path), "--table", "base2new"]
    assert cli.main(words) == 0
    assert "published base" in capsys.readouterr().out
    assert cli.main([*words, "--compare", "none", "--paired", "ZeroshotCLIP", "APEX", "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    assert "published" not in out
    assert "**APEX less ZeroshotCLIP" in out
    assert cli.main([*words, "--seeds", "1-4"]) == 1
    assert "no result of seeds 4" in capsys.readouterr().out
    assert cli.main([str(tmp_path), "--table", "xd"]) == 2
    assert "there are runs of: base2new" in capsys.readouterr().err
    assert cli.main([*words, "--paired", "ZeroshotCLIP", "APEX", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--table", "base2new", "--keyword", "macro_f1"],
        ["--table", "base2new", "--ci95"],
        ["--table", "base2new", "--test-log"],
        ["--table", "base2new", "--multi-exp"],
        ["--paired", "A", "B"],
        ["--compare", "none"],
        ["--source", "dtd"],
    ],
)
def test_options_of_the_other_way_to_read_results_are_refused(tmp_path, capsys, words):
    assert cli.main([str(tmp_path), *words]) == 2
    assert f"{words[-3 if words[0] == '--paired' else -2 if words[-1][0] != '-' else -1]}: " in capsys.readouterr().err


def test_logs_of_others_make_the_same_tables(tmp_path, capsys):
    config = "MODEL:\n  BACKBONE:\n    NAME: ViT-B/16\n    PRETRAINED: True\n"
    result = "=> result\n* total: 10\n* accuracy: {:.1f}%\n* macro_f1: 1.0%\n"
    for seed in (1, 2):
        base = tmp_path / RunDirectory("base", "dtd", "APEX", APEX, 16, seed).path()
        new = tmp_path / RunDirectory("new", "dtd", "APEX", APEX, 16, seed).path()
        for folder, text in ((base, f"{config}Finished training\n{result.format(82)}"), (new, result.format(60))):
            folder.mkdir(parents=True)
            (folder / "log.txt").write_text(text)
    assert cli.main([str(tmp_path), "--table", "base2new", "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["n"] == 2
    assert row["base"]["mean"] == 82.0
    assert row["published base"] == 82.45
    (new / "log.txt").write_text("Loading evaluator")
    assert cli.main([str(tmp_path), "--table", "base2new"]) == 1
    assert "seed 2, new classes" in capsys.readouterr().out
