"""Protocols that change what is trained on: validation-free all-to-all, unbalanced support, label noise."""

import json
from collections import Counter
from pathlib import Path

import pytest
from results_trees import write_run
from sweeps_here import metrics, planned, sweep_here

import train
from datasets import write_split_lists
from protocols import PROTOCOLS
from results.__main__ import main as results_main
from results.audit import audit
from results.layout import BENCHMARKS, RunDirectory
from results.tables import TableOptions
from results.tree import read_records
from sweep import cli
from sweep.method_configs import config_of
from sweep.plan import variant_settings

FAST = ["OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "-1"]


@pytest.fixture(autouse=True)
def _in_the_repository(repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("protocols")


def words(
    place: Path, protocol: str, trainers: str, *more: str, opts: tuple[str, ...] = (), seeds: str = "1"
) -> list[str]:
    line = [protocol, "--trainers", *trainers.split(), "--datasets", "drawn_thermal", "--seeds", seeds, "--shots", "2"]
    return [*line, *more, "--root", str(place / "data"), "--output", str(place / "out"), *FAST, *opts]


def test_all_to_all_has_no_validation_images_and_says_so(place):
    runs, table = sweep_here(words(place, "all2all", "CoOp TipAdapter ZeroshotCLIP"))
    found = [metrics(run) for run in runs]
    assert [one["selection"] for one in found] == ["none"] * 3
    assert [one["config"]["DATASET"]["VAL_SHOTS"] for one in found] == [0] * 3
    assert [one["support"] for one in found[:2]] == ["balanced"] * 2
    assert "support" not in {name for name, value in found[2].items() if value is not None}, "nothing is learned"
    rows = {row["method"]: row["2 shots"]["mean"] for row in table["rows"]}
    assert rows == {one["trainer"]: pytest.approx(one["accuracy"]) for one in found}
    assert any("nothing was chosen on images that were not trained on" in note for note in table["notes"])
    assert not any("was chosen by the result" in note for note in table["notes"])


def test_all_to_all_on_given_lists(place, tmp_path, capsys):
    assert (
        write_split_lists.main(
            [
                "drawn_thermal",
                "--root",
                str(place / "data"),
                "--shots",
                "2",
                "--seeds",
                "7",
                "--to",
                str(place / "lists"),
            ]
        )
        == 0
    )
    line = words(tmp_path, "all2all", "CoOp", opts=("DATASET.SPLIT_LIST", str(place / "lists")), seeds="7")
    (run,), table = sweep_here(line)
    assert (metrics(run)["support"], metrics(run)["draw_source"]) == ("list", "list")
    assert any("1 of 1 runs were trained on given lists" in note for note in table["notes"])
    assert cli.main(words(tmp_path, "all2all", "CoOp", seeds="7")) == 2, "the rule's draw is another run"
    assert "DATASET.SPLIT_LIST: " in capsys.readouterr().err


def test_one_configuration_for_all_sets(place, capsys):
    assert config_of("CoOp", "base2new", "imagenet", 16) != config_of("CoOp", "base2new", "dtd", 16)
    assert config_of("CoOp", "base2new", "imagenet", 16, one_for_all=True) == config_of("CoOp", "base2new", "dtd", 16)
    for opts, sentence in (
        (("TEST.FINAL_MODEL", "best_val"), "best_val of CoOp chooses by images that are not trained on"),
        (("DATASET.VAL_SHOTS", "4"), "DATASET.VAL_SHOTS: the protocol gives each run its own value"),
    ):
        assert cli.main(words(place, "all2all", "CoOp", opts=opts)) == 2
        assert sentence in capsys.readouterr().err


def test_choices_on_validation_images_are_in_every_table(place, capsys):
    _, table = sweep_here(words(place, "fewshot", "TipAdapter CoOp"))
    sentence = "something was chosen by the result on validation images: drawn_thermal, TipAdapter, seed 1"
    assert sentence in table["notes"]
    runs, table = sweep_here(words(place, "base2new", "CoOp", opts=("TEST.FINAL_MODEL", "best_val")))
    assert [metrics(run)["selection"] for run in runs] == ["validation"] * 2, (
        "the evaluation has it from the checkpoint"
    )
    assert "something was chosen by the result on validation images: drawn_thermal, CoOp, seed 1" in table["notes"]


def test_a_choice_on_test_images_is_recorded_as_one(place):
    """Without validation images the engine lets the test images stand for them, as Dassl does."""
    opts = ("TEST.FINAL_MODEL", "best_val", "DATASET.VAL_SHOTS", "0")
    (run,), table = sweep_here(words(place, "fewshot", "CLIP_Adapter", opts=opts))
    assert metrics(run)["selection"] == "test"
    assert any(note.startswith("SOMETHING WAS CHOSEN BY THE RESULT ON TEST IMAGES") for note in table["notes"])


def test_unbalanced_support(place):
    runs, table = sweep_here(words(place, "imbalance", "CoOp CLIP_Adapter ZeroshotCLIP"))
    found = {Path(run.output_dir).parent.name: metrics(run) for run in runs if run.place.trainer == "CoOp"}
    assert {name: one["support"] for name, one in found.items()} == {
        "balanced": "balanced", "power_law_1.0": "power law 1.0", "Dirichlet_1.0": "Dirichlet 1.0"
    }  # fmt: skip
    for name, one in found.items():
        shots = one["shots_per_class"]
        assert shots is None if name == "balanced" else (sum(shots), min(shots) >= 1) == (2 * 20, True)
        other = next(metrics(r) for r in runs if r.place.trainer == "CLIP_Adapter" and r.place.variant == name)
        assert other["split_hash"] == one["split_hash"], "the same images for every method"
        assert other["shots_per_class"] == shots
    assert found["power_law_1.0"]["split_hash"] != found["Dirichlet_1.0"]["split_hash"]
    assert [row["method"].rpartition("/")[2] for row in table["rows"]] == [
        *2 * ["Dirichlet_1.0)", "balanced)", "power_law_1.0)"], "ZeroshotCLIP",
    ]  # fmt: skip


def test_label_noise(place):
    runs, table = sweep_here(words(place, "noise", "CoOp"))
    found = {run.place.variant: metrics(run) for run in runs}
    assert {name: (one["label_noise"], one["wrong_labels"]) for name, one in found.items()} == {
        "none": ("none", 0), "sym_0.25": ("sym 0.25", 10), "sym_0.5": ("sym 0.5", 20),
        "asym_0.25": ("asym 0.25", 10), "asym_0.5": ("asym 0.5", 20),
    }  # fmt: skip
    assert len({one["train_images_hash"] for one in found.values()}) == 1, "the images are the same"
    assert len({one["split_hash"] for one in found.values()}) == 5, "their labels are not"
    assert len({one["test_images_hash"] for one in found.values()}) == 1
    assert len({json.dumps(one["history"]) for one in found.values()}) == 5, "and are what is trained on"
    assert len(table["rows"]) == 5


def test_runs_that_differ_in_noise_are_never_averaged(place, tmp_path, capsys):
    """In a protocol that does not know of it, by the records or, where these are older, by what they could not have."""
    both = [
        *planned(words(tmp_path, "fewshot", "CoOp", seeds="1")),
        *planned(words(tmp_path, "fewshot", "CoOp", seeds="2", opts=("DATASET.NOISE_RATE", "0.5"))),
    ]
    for run, source in zip(both, ("none", "sym_0.5"), strict=True):
        made = place / f"out/noise/drawn_thermal/shots_2/CoOp/tiny_vit_ep50_ctxv1/{source}/seed1"
        record = json.loads((made / "metrics.json").read_text())
        record["seed"] = record["config"]["SEED"] = run.place.seed
        record["config"]["OUTPUT_DIR"] = run.output_dir
        if source == "none":  # as a version wrote it that knew nothing of noise
            del record["label_noise"], record["support"]
            for key in ("NOISE_RATE", "NOISE_TYPE", "SPLIT_LIST", "SHOTS_PER_CLASS"):
                del record["config"]["DATASET"][key]
        Path(run.output_dir).mkdir(parents=True)
        Path(run.output_dir, "metrics.json").write_text(json.dumps(record))
    found, _, _ = audit(tmp_path / "out")
    assert any("label noise: none (seed 1), sym 0.5 (seed 2)" in line for line in found)
    assert cli.main(words(tmp_path, "fewshot", "CoOp", seeds="1", opts=("DATASET.NOISE_RATE", "0.5"))) == 2
    assert "DATASET.NOISE_RATE: 0.0 there, 0.5 wanted" in capsys.readouterr().err


def test_a_run_in_the_directory_of_another_variant_is_named(place, tmp_path):
    (run,) = planned(words(tmp_path, "noise", "CoOp", "--variant", "asym_0.25"))
    made = place / "out/noise/drawn_thermal/shots_2/CoOp/tiny_vit_ep50_ctxv1/sym_0.5/seed1/metrics.json"
    Path(run.output_dir).mkdir(parents=True)
    Path(run.output_dir, "metrics.json").write_bytes(made.read_bytes())
    found, _, _ = audit(tmp_path / "out")
    assert any("label_noise sym 0.5 in the record, asym 0.25 by the directory" in line for line in found)


def test_audit_and_report_know_them(place, capsys):
    assert results_main(["--audit", str(place / "out")]) == 0, capsys.readouterr().out
    tables = ["all2all", "imbalance", "noise"]
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert results_main([str(place / "out"), "--table", *tables, "--to", str(place / "report")]) == 0
    page = (place / "report/report.html").read_text()
    assert all(title in page for title in ("Validation-free all-to-all", "Unbalanced support", "Label noise"))


@pytest.mark.parametrize("wrong", ["sym", "sym_", "sym_0", "sym_0.0", "sym_0.50", "sym_1", "other_0.5", "sym_nan"])
def test_variants_that_there_are_not(place, capsys, wrong):
    assert cli.main(words(place, "noise", "CoOp", "--variant", wrong)) == 2
    assert f"--variant {wrong}: write none or sym_0.5 or asym_0.5" in capsys.readouterr().err
    assert variant_settings("sym_0.75", {"sym": ("K",)}, "none") == ("K", "0.75")


@pytest.mark.parametrize("opts", [("DATASET.NOISE_RATE", "0.5"), ("DATASET.SHOTS_DIRICHLET", "0.5")])
def test_the_same_over_workers_and_seeds_in_one_process(place, tmp_path, opts):
    def run(name: str, *more: str) -> list[dict]:
        line = ["--root", str(place / "data"), "--trainer", "CoOp", "--output-dir", str(tmp_path / name)]
        line += ["--dataset-config-file", "configs/datasets/drawn_thermal.yaml"]
        line += ["--config-file", "configs/trainers/CoOp/tiny_vit_ep50_ctxv1.yaml"]
        both = more if "--seeds" in more else ("--seed", "2", *more)
        pairs = [*FAST, "DATASET.NUM_SHOTS", "2", *opts]
        assert train.main([*line, *both[:2], *pairs, *both[2:]]) == 0
        return [json.loads(path.read_text()) for path in sorted((tmp_path / name).rglob("metrics.json"))]

    (alone,) = run("alone")
    (workers,) = run("workers", "DATALOADER.NUM_WORKERS", "2")
    together = run("together", "--seeds", "1,2")
    assert workers["history"] == alone["history"]
    for other in (workers, together[1]):
        assert [other[key] for key in ("split_hash", "shots_per_class", "wrong_labels")] == [
            alone[key] for key in ("split_hash", "shots_per_class", "wrong_labels")
        ]
        assert other["accuracy"] == pytest.approx(alone["accuracy"], abs=0.5)
    assert together[0]["split_hash"] != alone["split_hash"]
    assert Counter(one["seed"] for one in together) == {1: 1, 2: 1}


def test_published_averages_stand_beside_all_to_all(tmp_path):
    """Though it has no validation images, which the shipped configuration files have; not beside other settings."""
    shipped = {"TRAINER": {"NAME": "CoOp"}, "MODEL": {"BACKBONE": {"NAME": "ViT-B/16"}}, "OPTIM": {"MAX_EPOCH": 50}}
    for dataset in BENCHMARKS:
        data = {"VAL_SHOTS": 0, "SPLIT_LIST": "split_fewshot"}
        place = RunDirectory("all2all", dataset, "CoOp", "vit_b16_ep50", 1, 1)
        write_run(tmp_path, place, 70.0, config={**shipped, "DATASET": data})
    options = TableOptions()
    table = PROTOCOLS["all2all"].table(read_records(tmp_path), options)
    published = next(row for row in table.rows if row[:2] == ["average", "  published"])
    assert published[2] == 68.09
    assert any("HealthX-Lab/CLIP-SVD" in note for note in table.notes)
    for path in tmp_path.rglob("metrics.json"):
        path.write_text(path.read_text().replace('"MAX_EPOCH": 50', '"MAX_EPOCH": 51'))
    table = PROTOCOLS["all2all"].table(read_records(tmp_path), options)
    assert not any(row[1] == "  published" for row in table.rows)
    assert any("OPTIM.MAX_EPOCH 50 -> 51" in note for note in table.notes)
