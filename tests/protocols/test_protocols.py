"""A protocol is one file: dropped into the folder, it is planned, run and tabulated; rules for configurations."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from protocols import PROTOCOLS
from results.layout import Role, RunDirectory, declare_roles, recognise
from sweep.method_configs import config_of, settings_of
from sweep.protocol import Protocol, register

EXAMPLE = Path("docs/extending/protocols/base2all.py")


@pytest.fixture(scope="module")
def house(tmp_path_factory, repo_root):
    """The repository with one more file in protocols/; everything else is a link."""
    copy = tmp_path_factory.mktemp("house")
    for path in repo_root.iterdir():
        if path.name not in ("protocols", "data", "output") and not path.name.startswith("."):
            (copy / path.name).symlink_to(path)
    shutil.copytree(repo_root / "protocols", copy / "protocols", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repo_root / EXAMPLE, copy / "protocols")
    return copy


DRIVER = """
import json, sys
from contextlib import redirect_stdout
from io import StringIO
from results import __main__ as report, cli as tables
from sweep import cli as sweeps
said = []
if __name__ == "__main__":  # a worker process imports this file
    for name, words in json.loads(sys.argv[1]):
        with redirect_stdout(StringIO()) as out:
            assert {"sweep": sweeps, "parse_test_res": tables, "results": report}[name].main(words) == 0, words
        said.append(out.getvalue())
    print(json.dumps(said))
"""


def test_a_dropped_in_protocol_runs(house):
    """`python -m sweep` (dry, then in earnest), `parse_test_res.py` and `python -m results`, in one process."""
    words = [
        "base2all",
        "--trainers",
        "CoOp",
        "--datasets",
        "drawn_thermal",
        "--seeds",
        "1-2",
        "--jobs",
        "1",
        "--shots",
        "1",
    ]
    words += ["--root", "data_here", "--output", "out"]
    opts = ["OPTIM.MAX_EPOCH", "1"]
    table = ["out", "--table", "base2all"]
    lines = [("sweep", [*words, "--dry-run", *opts]), ("sweep", [*words, *opts])]
    lines += [("parse_test_res", [*table, "--format", "json"])]
    lines += [("results", table)] if find_spec("matplotlib") else []
    (house / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(house)}
    line = [sys.executable, "driver.py", json.dumps(lines)]
    done = subprocess.run(line, cwd=house, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dry, swept, tabulated = json.loads(done.stdout)[:3]
    assert "4 runs to do (2 trainings, 2 evaluations)" in dry
    assert dry.count("--eval-only") == dry.count(" DATASET.SUBSAMPLE_CLASSES all") == 2
    row = next(line for line in swept.splitlines() if line.startswith("drawn_thermal"))
    assert row.split()[:3] == ["drawn_thermal", "CoOp", "2"]
    files = sorted((house / "out/base2new/test_all").rglob("metrics.json"))
    found = [json.loads(path.read_text()) for path in files]
    assert [(one["seed"], one["num_classes"]) for one in found] == [(1, 20), (2, 20)]
    mean = sum(one["accuracy"] for one in found) / 2
    assert json.loads(tabulated)["rows"][0]["accuracy"]["mean"] == pytest.approx(mean)
    assert not find_spec("matplotlib") or "Base-to-all" in (house / "report/base2all.md").read_text()


def test_names_and_directories_are_told_apart():
    known = PROTOCOLS["fewshot"]
    with pytest.raises(ValueError, match="two protocols are called 'fewshot'"):
        register(Protocol("fewshot", known.plan, known.table, known.roles, ("dtd",)))
    with pytest.raises(ValueError, match="role 'base' is declared twice"):
        declare_roles({"base": Role("elsewhere/{dataset}/{trainer}/{cfg}/seed{seed}")})


def test_a_learnless_trainers_base_classes_are_no_zero_shot_run():
    base = RunDirectory("base", "dtd", "Guessing", "usual", 16, 1)
    assert recognise(f"/x/{base.path()}", learnless="Guessing") == base
    zero = RunDirectory("zeroshot", "dtd", "Guessing", "usual")
    assert recognise(f"/x/{zero.path()}", learnless="Guessing") == zero


@pytest.fixture
def rules(tmp_path, monkeypatch):
    """A folder of configurations for one method; returns what writes its rules."""
    folder = tmp_path / "configs/trainers/Mine"
    folder.mkdir(parents=True)
    for name in ("small", "large_1", "large_2"):
        (folder / f"{name}.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("commands.names.OWN", tmp_path / "configs")
    return (folder / "sweep.yaml").write_text


def test_the_first_rule_that_holds_gives_the_file(rules):
    rules(
        "configs:\n"
        '  - {file: "large*"}\n'
        "  - {file: large_1, training: [all, transfer], shots: [1, 2]}\n"
        '  - {file: large_2, datasets: ["my_*", dtd]}\n'
        "  - {file: small, training: base2new}\n"
        "settings:\n"
        '  - {file: "large*", datasets: [dtd], set: {OPTIM.LR: 1e-3, OPTIM.NAME: sgd}}\n'
    )
    assert config_of("Mine", "transfer", "dtd", 2) == "Mine/large_1"
    assert config_of("Mine", "all", "my_birds", 16) == "Mine/large_2"
    assert config_of("Mine", "base2new", "eurosat", 1) == "Mine/small"
    with pytest.raises(ValueError, match="large_1, large_2, small"):
        config_of("Mine", "all", "eurosat", 16)
    assert settings_of("Mine", "large_2", "dtd") == ("OPTIM.LR", "1e-3", "OPTIM.NAME", "sgd")
    assert settings_of("Mine", "small", "dtd") == settings_of("Mine", "large_2", "eurosat") == ()


@pytest.mark.parametrize("text", ["configs: [", "- a", "config: []", "configs: [{training: all}]", "configs: [x]"])
def test_rules_that_are_none_are_refused(rules, text):
    rules(text)
    with pytest.raises(ValueError, match=r"sweep\.yaml"):
        config_of("Mine", "all", "dtd", 1)


@pytest.mark.parametrize("room", ["sweep", "protocols"])
def test_no_method_is_named_outside_its_room(room, repo_root):
    methods = [path.name for path in (repo_root / "configs/trainers").iterdir() if path.is_dir()]
    for path in (repo_root / room).glob("*.py"):
        text = path.read_text()
        code = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
        assert not [name for name in methods if re.search(rf"\b{name}\b", code)], path
