"""docs/RUN.md: every command in it is executed as a dry run, every script is in it."""

import re
import shlex
from pathlib import Path

import pytest
from results_trees import base2new_tree
from test_scripts_lines import SCRIPTS, recorded  # noqa: F401 - a fixture

from results import cli as results_cli
from sweep import cli

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "RUN.md").read_text(encoding="utf-8")
BLOCKS = [line for block in re.findall(r"^```\n(.*?)^```", GUIDE, re.M | re.S) for line in block.splitlines()]
CODE = [*BLOCKS, *re.findall(r"`(scripts/(?!dev/)[^`]*\.sh [^`]+)`", GUIDE)]
SWEEPS = [line for line in CODE if line.startswith("python -m sweep ")]
OFFICIAL = [line for line in CODE if line.startswith("scripts/")]
TABLES = [line for line in CODE if line.startswith(("python parse_test_res.py", "python -m results"))]


def test_there_is_something_to_test():
    assert len(SWEEPS) > 8
    assert len(OFFICIAL) > 25
    assert {*SWEEPS, *OFFICIAL, *TABLES} == set(CODE)


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
    assert not [name for name in SCRIPTS if f"scripts/{name}" not in GUIDE]


@pytest.mark.parametrize(
    "line", [line for line in TABLES if "--table base2new" in line and "results" not in line.split()]
)
def test_tables(line, tmp_path, capsys):
    base2new_tree(tmp_path / "output", seeds=range(1, 21))
    words = [str(tmp_path / word) if word == "output" else word for word in shlex.split(line)[2:]]
    words = ["ZeroshotCLIP" if word == "CoOp" else word for word in words]
    assert results_cli.main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("line", [line for line in TABLES if "parse_test_res.py" in line])
def test_options_of_the_parser_exist(line):
    results_cli.build_parser().parse_args(shlex.split(line)[2:])
