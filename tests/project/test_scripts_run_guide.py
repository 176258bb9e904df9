"""docs/RUN.md and README.md: every shell line in them is executed, as a dry run where it would take long."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import dataset_trees
import pytest
from results_trees import base2new_tree, write_run
from test_scripts_lines import SCRIPTS, recorded  # noqa: F401 - a fixture

import predict
import train
from dassl.utils import log_to_stdout
from datasets import check, prepare
from results import __main__ as report
from results import cli as results_cli
from results.layout import RunDirectory
from sweep import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("docs/RUN.md", "README.md")}
COMMAND = re.compile(r"(python|bash|scripts/\S+\.sh)\s")


def shell_lines(text: str) -> list[str]:
    """The commands in a page's fenced and indented blocks and between backticks; `\\` joins lines, `#` ends them."""
    fenced = [line for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    indented = re.sub(r"\\\n\s+", "", text)
    indented = [line[4:] for line in indented.splitlines() if line.startswith("    ") and COMMAND.match(line[4:])]
    inline = [code for code in re.findall(r"`([^`\n]+)`", text) if COMMAND.match(code)]
    lines = [line.split(" #")[0].strip() for line in (*fenced, *indented, *inline)]
    return list(dict.fromkeys(lines))


LINES = [line for text in PAGES.values() for line in shell_lines(text)]
# not commands to be run but the names of commands, or what a reader has to complete
NAMES = {
    "python -m sweep PROTOCOL", "python -m sweep --help", "python -m results", "scripts/dev/slurm_local.sh COMMAND",
    "python -m pip install matplotlib", "python -m pip install submitit",
    "python train.py", "python -m pip install argcomplete", "python -m pip install wandb",
    "python -m pip install mlflow",
}  # fmt: skip


def _of(*beginnings: str) -> list[str]:
    return [line for line in LINES if line.startswith(beginnings) and line not in NAMES]


SWEEPS, OFFICIAL, TRAININGS = _of("python -m sweep "), _of("scripts/"), _of("python train.py ")
TABLES, REPORTS, PREDICTIONS = _of("python parse_test_res.py "), _of("python -m results "), _of("python predict.py ")
DATA, SETUP = _of("python -m datasets."), _of("bash scripts/")


def test_every_line_is_executed_by_a_test_below():
    kinds = (SWEEPS, OFFICIAL, TRAININGS, TABLES, REPORTS, PREDICTIONS, DATA, SETUP)
    assert set(LINES) - NAMES == {line for kind in kinds for line in kind}
    assert all(kinds)
    assert len(SWEEPS) > 10
    assert len(OFFICIAL) > 25


def _dry(words: list[str], capsys) -> None:
    assert cli.main(words) == 0, capsys.readouterr().err
    assert re.search(r"^[1-9]\d* runs to do", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("line", SWEEPS)
def test_sweeps(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)[3:]
    before, opts = cli.split_opts(words)
    _dry([*before, "--dry-run", "--output", "nowhere", *opts], capsys)


@pytest.mark.parametrize("line", OFFICIAL)
def test_scripts(line, recorded, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(ROOT)
    _dry(recorded(f"{line.removeprefix('scripts/')} --dry-run --output nowhere"), capsys)


def test_every_script_is_there():
    assert not [name for name in SCRIPTS if f"scripts/{name}" not in PAGES["docs/RUN.md"]]


@pytest.mark.parametrize("line", [line for line in TRAININGS if "--list" not in line])
def test_trainings(line, monkeypatch, tmp_path):
    """The configuration is built; `...` stands for the arguments of the line before."""
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[2:]
    if words[0] == "...":
        first = shlex.split(next(own for own in TRAININGS if "configs/datasets/dtd.yaml" in own))[2:]
        last = next(i for i, word in enumerate(first) if word == "--output-dir")
        words = [*first[:last], *words[1:]]
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    args = train.parse(words)
    train.check_args(args)
    cfg = train.build_config(args)
    assert cfg.TRAINER.NAME.lower() == words[words.index("--trainer") + 1].lower()


@pytest.mark.parametrize("line", [line for line in TRAININGS if "--list" in line])
def test_lists(line, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(shlex.split(line)[2:])
    assert ended.value.code == 0
    assert capsys.readouterr().out


@pytest.fixture
def results_tree(tmp_path, monkeypatch):
    """The current folder is one with an `output` that has something for every table."""
    output = tmp_path / "output"
    base2new_tree(output, seeds=range(1, 21))
    for seed in range(1, 21):
        for dataset, accuracy in (("dtd", 60.0), ("eurosat", 70.0)):
            write_run(output, RunDirectory("base", dataset, "CoOp", "vit_b16_ctxv1", 16, seed), accuracy + seed % 3)
            write_run(output, RunDirectory("new", dataset, "CoOp", "vit_b16_ctxv1", 16, seed), accuracy - seed % 5)
        write_run(output, RunDirectory("all", "imagenet", "APEX", "cross_eval", 16, seed), 70.0)
        for dataset in ("dtd", "imagenet_a"):
            write_run(output, RunDirectory("transfer", dataset, "APEX", "cross_eval", 16, seed), 45.0 + seed % 2)
    for shots in (1, 16):
        write_run(output, RunDirectory("all", "dtd", "CoOp", "vit_b16", shots, 1), 60.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", TABLES)
def test_tables(line, results_tree, capsys):
    words = shlex.split(line)[2:]
    if "--table" not in words:  # it is about logs alone
        shutil.rmtree("output")
        folder = results_tree / words[0] / ("dtd" if "--multi-exp" in words else "")
        for seed in (1, 2):
            (folder / f"seed{seed}").mkdir(parents=True, exist_ok=True)
            text = f"Finish training\n=> result\n* accuracy: {50 + seed}.0%\n"
            (folder / f"seed{seed}" / "log.txt").write_text(text)
    assert results_cli.main(words) == 0, capsys.readouterr().err
    assert len(capsys.readouterr().out.splitlines()) > 1


@pytest.mark.parametrize("line", REPORTS)
def test_reports(line, results_tree, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert report.main(shlex.split(line)[3:]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out.strip()
    assert said.endswith("do not say of which split and images they are") or Path(said).is_file()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a short run, its checkpoint, pictures and weights, by the names that the lines use."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["--root", str(folder / "data"), "--seed", "1", "--trainer", "CoOp", "--output-dir", str(folder / "RUN")]
    words += ["--dataset-config-file", str(ROOT / "configs/datasets/drawn_thermal.yaml")]
    words += ["--config-file", str(ROOT / "configs/trainers/CoOp/tiny_vit_ep50_ctxv1.yaml")]
    opts = ["DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1"]
    train.run(train.build_parser().parse_args([*words, *opts]))
    run = folder / "output/base2new/train_base/dtd/shots_16/APEX/CFG/seed1"
    for place in (run, folder / "output" / "dtd"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder / "RUN")
    shutil.copy(folder / "RUN/prompt_learner/model.pth.tar-1", folder / "checkpoint.pth")
    (folder / "folder").mkdir()
    picture = next((folder / "data/drawn_thermal/images").rglob("*.png"))
    for name in ("photo.jpg", "folder/other.png"):
        shutil.copy(picture, folder / name)
    shutil.copy(next((ROOT / "clip/checkpoints").iterdir()), folder / "weights.pt")
    return folder


@pytest.mark.parametrize("line", PREDICTIONS)
def test_predictions(line, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert predict.main(shlex.split(line)[2:]) == 0, capsys.readouterr().err
    assert "photo.jpg" in (out := capsys.readouterr().out) or "other.png" in out


@pytest.mark.parametrize("line", DATA)
def test_data_sets(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dataset_trees.dtd(tmp_path / "DATA")
    dataset_trees.eurosat(tmp_path / "DATA")
    words = shlex.split(line)[2:]
    assert words[0] in ("datasets.prepare", "datasets.check")
    log_to_stdout("datasets")
    if words[0] == "datasets.prepare":
        assert prepare.main([*words[1:], "--dry-run"]) == 1, "the split files are not there"
    else:
        assert check.main(words[1:]) == 1, "the made trees are smaller than the real ones"
    assert "eurosat" in capsys.readouterr().out


@pytest.mark.parametrize("line", SETUP)
def test_the_two_commands(line, tmp_path):
    """In a copy whose interpreter makes a stub of an environment and only dry runs of sweeps are done."""
    stub, journal = tmp_path / "stub", tmp_path / "journal"
    stub.write_text(
        "#!/bin/bash\n"
        f'echo "${{0##*/}} $*" >> {journal}\n'
        'case "$1 $2" in\n'
        '  "-c import sys; sys.exit"*) ;;\n'
        '  "-c import sys; print"*) echo 3.99 ;;\n'
        '  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/ruff" ;;\n'
        f'  "-m sweep") exec {shlex.quote(sys.executable)} "$@" --dry-run ;;\n'
        "esac\n"
    )
    stub.chmod(0o755)
    copy = tmp_path / "repository"
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    for path in ROOT.iterdir():
        if path.name not in ("scripts", "data") and not path.name.startswith("."):
            (copy / path.name).symlink_to(path)
    environment = {**os.environ, "PYTHON": str(stub)}
    done = subprocess.run(shlex.split(line), cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ran = journal.read_text()
    assert "python -m pip install" in ran
    if "quickstart" in line:
        assert "runs to do" in done.stdout
    else:
        assert {"ruff check .", "ruff format --check --quiet ."} < set(ran.splitlines())
        assert "python -m pytest" in ran
