"""train.py's command line: words as people write them, what it says and what a mistake leaves behind."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from dataset_trees import put_images

import train
from commands import names, words
from commands.listing import listing

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder that is not the project's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def coop(drawn_root, elsewhere, capsys):
    """Train CoOp on the carried CLIP from another folder; gives exit status, standard output and standard error."""

    def run(*flags: str, opts=()) -> tuple[int, str, str]:
        line = ["--root", str(drawn_root), "--trainer", "coop", "--dataset-config-file", "Drawn_Easy"]
        status = train.main([*line, "--config-file", "tiny_vit_ep50_ctxv1", *flags, *SMALL, *opts])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_names_stems_and_pairs_as_people_write_them(coop, elsewhere):
    status, _, err = coop("--seed", "1", "--output-dir", "out", opts=["OPTIM.LR=0.1", "OPTIM.MAX_EPOCH=2"])
    assert (status, err) == (0, "")
    record = json.loads((elsewhere / "out/metrics.json").read_text())
    config = record["config"]
    assert record["trainer"] == config["TRAINER"]["NAME"] == "CoOp"
    assert (config["OPTIM"]["LR"], config["OPTIM"]["MAX_EPOCH"]) == (0.1, 2)
    assert config["DATASET"]["NAME"] == "DrawnEasy"


def test_the_screen_has_what_differs_and_the_log_all(coop, elsewhere):
    _, out, _ = coop("--seed", "3", "--output-dir", "out", opts=["OPTIM.LR=0.1"])
    log = (elsewhere / "out/log.txt").read_text()
    shown = out.partition("Loading trainer")[0].splitlines()
    assert "CoOp on DrawnEasy, seed 3 -> out" in shown
    assert re.search(r"^  OPTIM.LR +0.1$", "\n".join(shown), re.M)
    assert len(shown) < 30
    assert not [line for line in shown if "APEX" in line or "WEIGHT_DECAY" in line], "other methods and defaults"
    assert "in force: device cpu, precision fp32, INPUT.SIZE (32, 32)" in out
    assert "** Arguments **" not in out
    for line in ("** Arguments **", "** Config **", "** System info **", "  WEIGHT_DECAY: 0.0005", "BACKBONE:"):
        assert line in log, line
    assert [line for line in log.splitlines()[-5:] if line.startswith("* accuracy:")], "where parsers look"
    assert log.endswith(out.partition("Loading trainer")[2]), "the log ends as the screen does"


def test_seeds_end_with_their_table_and_mean(coop, elsewhere):
    status, out, _ = coop("--seeds", "1-2", "--output-dir", "out", opts=["OPTIM.LR", "0.3"])
    results = [json.loads((elsewhere / f"out/seed{seed}/metrics.json").read_text()) for seed in (1, 2)]
    table = out.partition("Accuracy and macro F1 in percent")[2].splitlines()
    assert status == 0
    for seed, result in zip("12", results, strict=True):
        assert [seed, f"{result['accuracy']:.2f}", f"{result['macro_f1']:.2f}"] in [line.split() for line in table]
    mean = sum(result["accuracy"] for result in results) / 2
    assert next(line for line in table if line.startswith("mean")).split()[1] == f"{mean:.2f}"


def test_seeds_without_a_folder_do_not_share_one(coop, elsewhere):
    assert coop("--seeds", "1-2", opts=["OUTPUT_DIR", "out"])[0] == 2
    assert coop("--seeds", "1-2", "--no-train")[0] == 0
    assert not (elsewhere / "out").exists()
    assert sorted(path.name for path in (elsewhere / "output").iterdir()) == ["seed1", "seed2"]


@pytest.mark.parametrize(
    ("flags", "opts", "expected"),
    [
        (["--lr", "0.1"], [], "OPTIM.LR 0.1"),
        (["--lr=0.1"], [], "OPTIM.LR 0.1"),
        (["--batch-size", "8"], [], "DATALOADER.TRAIN_X.BATCH_SIZE 8"),
        (["--epochs", "3"], [], "OPTIM.MAX_EPOCH 3"),
        (["--shots", "4"], [], "DATASET.NUM_SHOTS 4"),
        (["--n-ctx", "8"], [], "here TRAINER.COOP.N_CTX 8"),
        (["--beta"], [], "TRAINER.APEX.BETA VALUE"),
        (["--model_dir", "x"], [], "do you mean --model-dir"),
        (["--strange-thing"], [], "there is no flag --strange-thing"),
        ([], ["lr", "0.1"], "do you mean ['OPTIM.LR']"),
        ([], ["lr=0.1"], "KEY=VALUE"),
        (["--config-file", "vit_b61"], [], "vit_b16"),
        (["--config-file", "CoCoOp/no_such"], [], 'no configuration file "CoCoOp/no_such"'),
        (["--dataset-config-file", "euro_sat"], [], "eurosat"),
        (["--trainer", "CopO"], [], "do you mean ['CoOp'"),
        (["--dataset-folder", "nowhere"], [], "exclude each other"),
        (["--root", "nowhere", "--dataset-config-file", "dtd"], [], "nowhere"),
        ([], ["MODEL.BACKBONE.PATH", "nowhere.pt"], "nowhere.pt"),
        ([], ["TRAINER.COOP.PREC", "fp8"], "PREC is 'fp8'"),
        (["--eval-only"], [], "--model-dir"),
    ],
)
def test_a_mistake_is_answered_and_leaves_nothing_behind(coop, elsewhere, flags, opts, expected):
    status, _, err = coop(*flags, "--output-dir", "out", opts=opts)
    assert status == 2
    assert expected in err
    assert "Traceback" not in err
    assert list(elsewhere.iterdir()) == []


def test_a_mistake_of_all_seeds_is_said_once(coop):
    status, _, err = coop("--seeds", "1-3", opts=["TRAINER.COOP.PREC", "fp8"])
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("train.py: seed 1, seed 2, seed 3: TRAINER.COOP.PREC is 'fp8'")


def test_print_config_can_be_given_back(coop, elsewhere):
    status, out, _ = coop("--print-config", "--output-dir", "out", opts=["OPTIM.LR", "0.1"])
    assert status == 0
    assert not (elsewhere / "out").exists()
    files = out.partition("# in what this differs from the files:\n")[2]
    assert "#   OPTIM.LR: 0.02 -> 0.1\n" in files
    assert "WARMUP_EPOCH:" not in files.partition("VERSION")[0], "the file says that"
    tree = yaml.safe_load(out)
    assert tree["OPTIM"]["LR"] == 0.1
    assert set(tree["TRAINER"]) == {"NAME", "COOP", "DEPT"}
    (elsewhere / "mine.yaml").write_text(out)
    again = train.build_config(train.parse(["--config-file", "mine.yaml"]))
    first = train.build_config(train.parse([
        "--trainer", "CoOp", "--config-file", "tiny_vit_ep50_ctxv1", "--dataset-config-file", "drawn_easy",
        "--root", tree["DATASET"]["ROOT"], "--output-dir", "out", *SMALL, "OPTIM.LR", "0.1",
    ]))  # fmt: skip
    assert again == first


def test_lists(capsys, elsewhere):
    for line, expected in (
        ("trainers", r"^APEX +Trains APEX"),
        ("configs coop", r"^CoOp/vit_b16_ep50 +CoOp on ViT-B/16, 50 epochs"),
        ("datasets", r"^dtd +47 classes, 1692 test images"),
    ):
        with pytest.raises(SystemExit) as ended:
            train.main(["--list", *line.split()])
        assert ended.value.code == 0
        assert re.search(expected, capsys.readouterr().out, re.M)
    assert "CoCoOp" not in listing("configs", "CoOp")
    for line, expected in (("trainer", "'trainers'"), ("runs nowhere", "there is no folder nowhere")):
        with pytest.raises(SystemExit) as ended:
            train.main(["--list", *line.split()])
        assert ended.value.code == 2
        assert expected in capsys.readouterr().err


def test_lists_of_runs_and_checkpoints(coop, elsewhere):
    assert coop("--seeds", "1", "--output-dir", "output/drawn_easy/CoOp/tiny_2shots")[0] == 0
    record = json.loads((elsewhere / "output/drawn_easy/CoOp/tiny_2shots/seed1/metrics.json").read_text())
    assert re.fullmatch(rf".*drawn_easy/CoOp/tiny_2shots/seed1  {record['accuracy']:.2f}%\n", listing("runs"))
    assert re.fullmatch(r"output/drawn_easy/.*/prompt_learner/model.pth.tar-1  0.0 MB\n", listing("checkpoints"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--seed 1 OPTIM.LR=0.1", "--seed 1 OPTIM.LR 0.1"),
        ("SEED=3", "SEED 3"),
        ("--output-dir OPTIM.LR=0.1", "--output-dir OPTIM.LR=0.1"),
        ("--transforms random_flip TRAINER.COOP.CTX_INIT=a=b", "--transforms random_flip TRAINER.COOP.CTX_INIT a=b"),
        ("--configs APEX=vit_b16", "--configs APEX=vit_b16"),
        ("--eval-only OPTIM.LR=", "--eval-only OPTIM.LR "),
    ],
)
def test_pairs_are_told_from_values(line, expected):
    assert " ".join(words.split_pairs(line.split(), train.build_parser())) == expected


def test_keys_that_a_word_may_mean():
    known = words.all_keys()
    assert words.keys_called("--lr", known) == ["OPTIM.LR"]
    assert words.keys_called("optim.lr", known) == ["OPTIM.LR"]
    assert words.keys_called("nonsense", known) == []
    assert set(words.ALIASES.values()) - {"PREC"} <= set(known)


def test_the_projects_configurations_are_found_from_anywhere(elsewhere, monkeypatch):
    assert names.configs() == ROOT / "configs"
    (elsewhere / "configs/trainers").mkdir(parents=True)
    assert names.configs() == ROOT / "configs", "those of another repository are not this one's"
    monkeypatch.chdir(ROOT)
    assert str(names.configs()) == "configs"
    assert names.config_file("DTD") == os.path.join("configs", "datasets", "dtd.yaml")


def test_pictures_in_class_folders_need_no_yaml(elsewhere, capsys):
    for name in ("boat", "horse"):
        put_images(elsewhere / "photos" / name, [f"{name}{number}.jpg" for number in range(8)])
    line = ["--dataset-folder", "photos/", "--trainer", "zeroshotclip", "--backbone", "tiny-ViT", "--seed", "1"]
    assert train.main([*line, "--output-dir", "out", "DATALOADER.NUM_WORKERS", "0"]) == 0
    record = json.loads((elsewhere / "out/metrics.json").read_text())
    assert [row["classname"] for row in record["per_class"]] == ["boat", "horse"]
    assert "in force: device cpu, precision fp32 (for fp16), INPUT.SIZE (32, 32)" in capsys.readouterr().out
    assert record["config"]["DATASET"]["FOLDER"] == "photos"
    assert record["config"]["DATASET"]["ROOT"] == str(elsewhere)
    assert train.main(["--dataset-folder", "fotos", "--trainer", "CoOp"]) == 2
    assert "--dataset-folder fotos: there is no such folder" in capsys.readouterr().err


def test_a_file_that_registers_no_trainer_is_named(coop, monkeypatch, tmp_path):
    import sys

    import trainers

    (tmp_path / "room").mkdir()
    file = tmp_path / "room" / "text_res.py"
    file.write_text("from dassl.engine import TrainerX\n\n\nclass TextRes(TrainerX):\n    pass\n")
    monkeypatch.setattr(trainers, "__path__", [*trainers.__path__, str(tmp_path / "room")])
    monkeypatch.delitem(sys.modules, "trainers.text_res", raising=False)
    __import__("trainers.text_res")
    status, _, err = coop("--trainer", "textres")
    assert status == 2
    assert "trainers/text_res.py, line 4: class TextRes is not registered" in err
    monkeypatch.setitem(trainers.LEFT_OUT, "broken", "SyntaxError: invalid syntax")
    assert "trainers/broken.py was left out: SyntaxError" in coop("--trainer", "Broken")[2]
    sys.modules.pop("trainers.text_res")
