"""Protocols that test on more than the trained classes, or on all images together: union, outliers, transduction."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score
from sweeps_here import metrics, planned, sweep_here

import predict
import trainers  # noqa: F401 - registers what is in the folder
from adaptation.transduction import transclip
from dassl.config import declared_cfg, merge_file
from dassl.data.datasets import build_dataset
from dassl.engine import TRAINER_REGISTRY
from results.__main__ import main as results_main
from results.audit import audit
from results.predictions import read_predictions
from sweep import cli

FAST = ["OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "-1"]
BASE = 10  # of the 20 classes
pytestmark = pytest.mark.usefixtures("heard")


@pytest.fixture(autouse=True)
def _in_the_repository(repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("open_world")


def words(place: Path, protocol: str, methods: str, *more: str, opts: tuple[str, ...] = ()) -> list[str]:
    line = [protocol, "--trainers", *methods.split(), "--seeds", "1", "--shots", "2"]
    line += more if "--datasets" in more else ["--datasets", "drawn_thermal", *more]
    return [*line, "--root", str(place / "data"), "--output", str(place / "out"), *FAST, *opts]


@pytest.fixture(scope="module")
def union(place, repo_root):
    """The runs of a union by trainer, and its table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo_root)
        runs, table = sweep_here(words(place, "union", "CoOp APEX ZeroshotCLIP"))
    return {run.place.trainer: run for run in runs if run.place.role == "union"}, table


def test_union_is_of_the_checkpoints_of_base_to_new(place, union):
    for run in union[0].values():
        found, trained = metrics(run), planned(words(place, "base2new", run.place.trainer))[0]
        assert (found["num_classes"], found["subsample_classes"]) == (2 * BASE, "all")
        if found["learns"]:
            assert run.needs == trained.output_dir
            assert found["checkpoint"]["files"] == metrics(trained)["checkpoint"]["files"]
            assert found["checkpoint"]["subsample_classes"] == "base"


@pytest.mark.parametrize("trainer", ["CoOp", "APEX", "ZeroshotCLIP"])
def test_union_against_the_stored_predictions(union, trainer):
    run = union[0][trainer]
    found, kept = metrics(run), read_predictions(Path(run.output_dir, "predictions.npz"))
    base = kept.labels < BASE
    assert found["base_accuracy"] == pytest.approx(100 * accuracy_score(kept.labels[base], kept.predicted[base]))
    assert found["new_accuracy"] == pytest.approx(100 * accuracy_score(kept.labels[~base], kept.predicted[~base]))
    score = kept.log_probabilities()[:, :BASE].max(axis=1)
    assert found["base_new_auroc"] == pytest.approx(100 * roc_auc_score(base, score), abs=0.05)
    logits = kept.logits
    own = np.where(base, logits[:, :BASE].argmax(1), BASE + logits[:, BASE:].argmax(1)) == kept.labels
    pairs = (score[base][:, None] > score[~base]) & own[base][:, None] & own[~base]
    assert found["openworld_auc"] == pytest.approx(100 * pairs.mean(), abs=0.2)
    rows = {row["label"]: row for row in found["per_class"]}
    counted = [sum(rows[label]["correct"] for label in range(a, b)) for a, b in ((0, BASE), (BASE, 2 * BASE))]
    assert counted == [int((kept.predicted == kept.labels)[kind].sum()) for kind in (base, ~base)]


def test_alpha_of_apex_is_that_of_each_class_of_the_union(union):
    """Alpha is 1 for the base classes and falls with the distance for the new ones, as in their own list."""
    found = metrics(union[0]["APEX"])["apex"]
    keys = metrics(union[0]["APEX"])["config"]["TRAINER"]["APEX"]
    assert found["alpha"][:BASE] == [1.0] * BASE
    assert found["d_nn"][:BASE] == [0.0] * BASE
    for alpha, nearest, mean in list(zip(found["alpha"], found["d_nn"], found["d_avg"], strict=True))[BASE:]:
        assert alpha == pytest.approx(math.exp(-keys["BETA"] * mean) if nearest > keys["EPS"] else 1.0, rel=1e-5)
    assert min(found["alpha"][BASE:]) < 1


def test_table_of_the_union(union):
    rows = {row["method"]: row for row in union[1]["rows"]}
    for trainer, run in union[0].items():
        found, row = metrics(run), rows[trainer]
        for column, name in (("base", "base_accuracy"), ("AUROC", "base_new_auroc"), ("OpenworldAUC", "openworld_auc")):
            assert row[column]["mean"] == pytest.approx(found[name])
        a, b = row["base"]["mean"], row["new"]["mean"]
        assert row["HM"]["mean"] == pytest.approx(2 * a * b / (a + b))


def test_every_method_that_takes_other_class_lists_has_a_union(place):
    """And an evaluation on outliers; the others refuse."""
    transfers = {name: kind.class_transfer(declared_cfg()) for name, kind in TRAINER_REGISTRY}
    ours = [name for name in transfers if Path("configs/trainers", name).is_dir()]
    assert {name for name in ours if transfers[name] != "any"} == {
        "TaskRes", "TipAdapter", "TipAdapterF", "LPPlusPlus", "ZSLP", "CLAP"
    }  # fmt: skip
    for name in ours:
        outliers = ("--source", "drawn_thermal", "--datasets", "digits")
        for line in (words(place, "union", name), words(place, "ood", name, *outliers)):
            if transfers[name] != "any":
                with pytest.raises(ValueError, match="belongs to its classes"):
                    planned(line)
                continue
            first, *others = planned(line)
            assert {run.needs for run in others} == {first.output_dir if first.trains else ""}


@pytest.mark.parametrize(
    ("protocol", "trainer", "what"),
    [("union", "TaskRes", "base and new classes together"), ("ood", "TipAdapter", "images of other classes")],
)
def test_methods_whose_state_belongs_to_their_classes_are_refused(place, capsys, protocol, trainer, what):
    source = ("--source", "drawn_thermal") if protocol == "ood" else ()
    assert cli.main(words(place, protocol, trainer, *source)) == 2
    assert f"what {trainer} learns belongs to its classes and cannot be tested on {what}" in capsys.readouterr().err


def test_per_class_contexts_are_refused(place, capsys):
    assert cli.main(words(place, "union", "CoOp", opts=("TRAINER.COOP.CSC", "True"))) == 2
    assert "CoOp learns with these settings belongs to its classes" in capsys.readouterr().err
    assert cli.main(words(place, "union", "CoOp", opts=("TEST.EVALUATOR", "Classification"))) == 2
    assert "TEST.EVALUATOR: the protocol gives each run its own value" in capsys.readouterr().err


@pytest.fixture(scope="module")
def outliers(place, union, repo_root):
    """Runs of zero-shot CLIP and CoOp by trainer and outliers, and the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo_root)
        more = ("--source", "drawn_thermal", "--datasets", "digits")
        runs, table = sweep_here(words(place, "ood", "CoOp ZeroshotCLIP", *more))
    return {(run.place.trainer, run.place.dataset): run for run in runs if run.place.role == "ood"}, table


def test_near_outliers_against_the_union_of_zero_shot_clip(union, outliers):
    """Zero-shot CLIP's logits of base classes do not depend on the other names: the union has them."""
    kept = read_predictions(Path(union[0]["ZeroshotCLIP"].output_dir, "predictions.npz"))
    found = metrics(outliers[0]["ZeroshotCLIP", "drawn_thermal"])
    base, logits = kept.labels < BASE, kept.logits[:, :BASE].astype(np.float64)
    cosines = logits / kept.logit_scale
    mcm = cosines.max(1) - np.log(np.exp(cosines).sum(1))
    energy = logits.max(1) + np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))
    assert found["mcm_auroc"] == pytest.approx(100 * roc_auc_score(base, mcm), abs=0.2)
    assert found["energy_auroc"] == pytest.approx(100 * roc_auc_score(base, energy), abs=0.2)
    for name, score in (("mcm", mcm), ("energy", energy)):
        threshold = np.sort(score[base])[int(0.05 * base.sum())]
        assert found[f"{name}_fpr95"] == pytest.approx(100 * (score[~base] >= threshold).mean(), abs=1.5)
    assert (found["num_ood"], found["num_test"]) == ((~base).sum(), len(base))


def test_outliers_are_beside_what_base_to_new_tests_on(place, outliers):
    for trainer in ("CoOp", "ZeroshotCLIP"):
        base = metrics(planned(words(place, "base2new", trainer))[0])
        for dataset, count in (("drawn_thermal", 500), ("digits", 899)):
            found = metrics(outliers[0][trainer, dataset])
            assert found["accuracy"] == pytest.approx(base["accuracy"])
            assert [row["correct"] for row in found["per_class"]] == [row["correct"] for row in base["per_class"]]
            assert found["num_test"] == base["num_test"] + found["num_ood"]
            assert found["num_ood"] == count
            assert found["predictions"] == {"not_kept": "TEST.KEEP_PREDICTIONS is False"}
            assert found["dataset"] == "DrawnThermal"
    assert [row["others"] for row in outliers[1]["rows"]] == [
        *2 * ["drawn_thermal, new classes"], *2 * ["digits"], *2 * ["average"]
    ]  # fmt: skip


def configured(place: Path, half: str, ood: str):
    cfg = declared_cfg()
    merge_file(cfg, "configs/datasets/drawn_thermal.yaml")
    cfg.DATASET.ROOT, cfg.DATASET.SUBSAMPLE_CLASSES, cfg.DATASET.OOD = str(place / "data"), half, ood
    return cfg


def test_classes_that_are_evaluated_are_no_outliers(place, caplog):
    """The chalk drawings show the same objects: those that are base classes are left out."""
    caplog.set_level(logging.WARNING)
    dataset = build_dataset(configured(place, "base", "drawn_chalk"))
    added = [item for item in dataset.test if item.label == -1]
    assert added
    assert not {item.classname for item in added} & set(dataset.classnames)
    assert "DATASET.OOD drawn_chalk: 9 classes are evaluated too and left out" in caplog.text
    with pytest.raises(ValueError, match="it has no test image of a class that is not evaluated"):
        build_dataset(configured(place, "all", "drawn_thermal"))
    with pytest.raises(ValueError, match=r'DATASET\.OOD is "new", but all classes are evaluated'):
        build_dataset(configured(place, "all", "new"))
    with pytest.raises(ValueError, match="drawn_thermal"):
        build_dataset(configured(place, "base", "drawn_termal"))
    folder = str(place / "data/drawn_chalk/images")
    own = build_dataset(configured(place, "base", folder)).test
    assert {item.impath.startswith(folder) for item in own if item.label == -1} == {True}


@pytest.fixture(scope="module")
def transductive(place, repo_root):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo_root)
        runs, table = sweep_here(words(place, "transductive", "CoOp ZeroshotCLIP"))
    return runs, table


def test_transductive_numbers_have_a_table_of_their_own(place, transductive):
    runs, table = transductive
    found = [metrics(run) for run in runs if run.place.role == "transductive"]
    assert [one["transductive"] for one in found] == ["TransCLIP"] * 2
    assert table["title"].startswith("TRANSDUCTIVE")
    assert {row["method"]: row["accuracy"]["mean"] for row in table["rows"]} == {
        one["trainer"]: pytest.approx(one["accuracy"]) for one in found
    }
    _, inductive = sweep_here(words(place, "fewshot", "CoOp ZeroshotCLIP"))
    shown = {row["method"]: row["2 shots"]["mean"] for row in inductive["rows"]}
    own = {run.place.trainer: metrics(run)["accuracy"] for run in runs if run.place.role == "all"}
    assert shown == {name: pytest.approx(value) for name, value in own.items()}


def test_transductive_answers_against_stored_features(place, transductive, tmp_path):
    """The features and probabilities that predict.py stores, through the block updates, give the run's accuracy."""
    run = next(run for run in transductive[0] if run.place.role == "transductive" and run.place.trainer == "CoOp")
    split = json.loads((place / "data/drawn_thermal/split.json").read_text())["test"]
    images = [str(place / "data/drawn_thermal/images" / row[0]) for row in split]
    stored = tmp_path / "features.npz"
    assert predict.main([run.needs, *images, "--features", str(stored), "--format", "csv"]) == 0
    with np.load(stored) as file:
        at = {path: index for index, path in enumerate(file["images"].tolist())}
        rows = [at[path] for path in images]
        made = transclip(torch.tensor(file["image_features"][rows]), torch.tensor(file["probabilities"][rows]))
    accuracy = 100 * accuracy_score([row[1] for row in split], made.argmax(1).numpy())
    assert metrics(run)["accuracy"] == pytest.approx(accuracy, abs=0.2)


def test_transductive_runs_are_in_no_other_table(place, transductive, capsys, tmp_path):
    assert cli.main(words(place, "fewshot", "CoOp", opts=("TEST.TRANSDUCTIVE", "TransCLIP"))) == 2
    assert "its settings have transductive TransCLIP, but the directory says no" in capsys.readouterr().err
    run = next(run for run in transductive[0] if run.place.role == "transductive")
    moved = Path(planned(words(tmp_path, "fewshot", run.place.trainer))[0].output_dir)
    moved.mkdir(parents=True)
    (moved / "metrics.json").write_bytes(Path(run.output_dir, "metrics.json").read_bytes())
    found, _, _ = audit(tmp_path / "out")
    assert any("transductive TransCLIP in the record, no by the directory" in line for line in found)


def test_audit_and_report_know_them(place, union, outliers, transductive, capsys):
    assert results_main(["--audit", str(place / "out")]) == 0, capsys.readouterr().out
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    tables = ["union", "ood", "transductive"]
    assert results_main([str(place / "out"), "--table", *tables, "--to", str(place / "report")]) == 0
    page = (place / "report/report.html").read_text()
    assert all(title in page for title in ("Base and new classes in one list", "Out-of-distribution", "TRANSDUCTIVE"))
    assert (place / "report/ood_from_drawn_thermal.csv").is_file()
