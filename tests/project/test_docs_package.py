"""docs/PYTHON.md, docs/CLUSTER.md, docs/MIGRATING.md, the tutorial and the files of adoption: executed or checked."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import apexvl
from apexvl.__main__ import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("CLUSTER", "MIGRATING", "PYTHON")
}
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _quick(code: str) -> str:
    """The same code with fewer epochs where it trains."""
    return re.sub(
        r"(apexvl\.(?:train|compare)\((?:[^()]|\([^()]*\))*?)\)$", r"\1, opts={'OPTIM.MAX_EPOCH': 1})", code, flags=re.M
    )


def test_the_python_of_the_page_runs(here, capsys):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save("photo.jpg")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGES["PYTHON"], re.M | re.S)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(compile(_quick(block).replace("model.onnx", "model.pt2"), "docs/PYTHON.md", "exec"), names)
    assert names["probabilities"].shape == (1, len(names["result"].per_class))
    assert len(names["table"]) == 3
    assert (here / "model.pt2").stat().st_size > 1e6
    assert "on which the run was trained" in capsys.readouterr().out


def test_the_tutorial_runs_in_an_empty_folder(here, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    pyplot.switch_backend("Agg")
    cells = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells)
    names: dict = {}
    for number, text in enumerate(code):
        exec(compile(text, f"cell {number}", "exec"), names)
        pyplot.close("all")
    assert names["new"].accuracy > 70
    assert names["probabilities"].shape == (8, 20)
    assert set(names["own"].per_class) == {"disc", "square"}
    said = capsys.readouterr().out
    assert re.search(r"ZeroshotCLIP\s+base \d+\.\d  new \d+\.\d  HM \d", said)


LINES = [
    (page, line) for page, text in PAGES.items() for line in re.findall(r"^apexvl .*$|`(apexvl \w.*?)`", text, re.M)
]
LINES = [(page, line) for page, text in PAGES.items()
         for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
         for line in block.splitlines() if line.startswith("apexvl ")]  # fmt: skip
LINES += [(page, line) for page, text in PAGES.items() for line in re.findall(r"`(apexvl [a-z]+ [^`]+)`", text)]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_lines_of_the_command_are_known_to_it(page, line):
    words = shlex.split(line)[1:]
    if words == ["--version"]:
        return
    args = build_parser().parse_args(words)
    module = importlib.import_module(COMMANDS[args.command][0].partition(":")[0])
    arguments = module.split_opts(args.arguments)[0] if args.command == "sweep" else args.arguments
    if "<METHOD>" not in line:
        module.build_parser().parse_args(arguments)


def test_every_command_is_in_the_table():
    assert len(LINES) > 5
    assert all(f"`apexvl {name}`" in PAGES["PYTHON"] for name in COMMANDS)


def test_the_table_of_variables_is_whole():
    """Every variable of the environment that the code reads is in the table, and no other, but those for PyTorch."""
    read = set()
    for path in ROOT.glob("*/**/*.py"):
        if (
            path.relative_to(ROOT).parts[0] in ("tests", "benchmarks", "docs", "build")
            or path.parts[len(ROOT.parts)][0] == "."
        ):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
        constants = {ast.unparse(node.targets[0]): node.value.value for node in assigned}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
                name = node.args[0]
                value = name.value if isinstance(name, ast.Constant) else constants.get(ast.unparse(name))
                read.add(value)
    table = PAGES["CLUSTER"].partition("## Folders")[0]
    said = set(
        re.findall(r"`([A-Z_]+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|")))
    )
    assert read - {None} <= said
    shell = {"PYTHON", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    assert said - read <= shell, "the table names a variable that nothing reads"


def test_the_dockerfile_names_what_is_there():
    lines = [line for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines() if line and not line.startswith("#")]
    known = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in lines} <= known
    assert next(line for line in lines if not line.startswith("ARG")).startswith("FROM python:")
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[1:-1])
        if line.startswith("RUN"):
            assert subprocess.run(["sh", "-n", "-c", line.removeprefix("RUN ")]).returncode == 0
        if line.startswith(("ENTRYPOINT", "CMD", "VOLUME")):
            assert json.loads(line.partition(" ")[2])
    assert json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).partition(" ")[2]) == ["apexvl"]
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
    assert set(re.findall(r"--build-arg (\w+)=", PAGES["CLUSTER"])) == arguments - {"PYTHON_VERSION"}
    pins = [
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if re.match(r"torch(vision)?==", line)
    ]
    assert len(pins) == 2, "the lines that the Dockerfile takes apart"
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", "output", "data"} <= set(ignored)
    assert not {"apexvl", "clip", "configs", "setup.py", "MANIFEST.in"} & set(ignored)


def test_the_devcontainer_installs_the_repository_s_requirements():
    settings = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert settings["image"].startswith("python:3.")
    for file in re.findall(r"-r (\S+)", settings["postCreateCommand"]):
        assert (ROOT / file).is_file()
    assert "pip install --no-deps -e ." in settings["postCreateCommand"]


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == apexvl.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", apexvl.__version__)
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert citation["preferred-citation"]["title"] in readme
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "apexvl.__version__"
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").startswith("# Changelog\n\n## ")


def test_old_results_are_read_as_the_page_says(here, capsys):
    from results import cli

    lines = [
        shlex.split(line) for line in PAGES["MIGRATING"].splitlines() if line.startswith("python parse_test_res.py")
    ]
    assert len(lines) == 2
    for role, dataset_accuracy in (("train_base", 80), ("test_new", 70)):
        for seed in (1, 2):
            folder = Path("old/output/base2new", role, "dtd/shots_16/MaPLe/vit_b16_c2_ep5_batch4_2ctx", f"seed{seed}")
            folder.mkdir(parents=True)
            (folder / "log.txt").write_text(f"Finish training\n=> result\n* accuracy: {dataset_accuracy + seed}.0%\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main(lines[0][2:]) == 0
        assert "81.5" in capsys.readouterr().out
        assert cli.main(lines[1][2:]) == 0
    assert re.search(r"MaPLe\s+2\s+81\.50.*71\.50", capsys.readouterr().out)


def test_the_first_screen_of_the_readme_is_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.partition("## Install and run\n\n")[2].partition("\n\n")[0]
    assert [line.split("#")[0].strip() for line in block.splitlines()] == [
        "bash scripts/quickstart.sh", "bash scripts/test.sh"]  # fmt: skip
