"""What documents, docstrings and messages refer to is there: files, sections, commands and their arguments."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (".md", ".py", ".sh", ".yaml", ".toml")
MADE = ("output/", "data/", "datasets/FOLDER")  # made by commands, not part of the repository
LINK = re.compile(r"\[[^]\[]*\]\(([^)\s]+)\)")
FILE = re.compile(r"`([\w.-]+(?:/[\w.+{}*-]+)*(?:\.(?:py|md|sh|yaml|json|log|pt|toml|txt)|/))(?:::[\w]+)?`")
SECTION = re.compile(r"(docs/[A-Z]+\.md|[A-Z]+\.md), section ([A-Z][\w' -]*\w)")


def _tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        return [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and not p.parts[0].startswith(".")]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


FILES = _tracked()
ROOMS = {name.split("/")[0] for name in FILES if "/" in name}
PAGES = [name for name in FILES if name.endswith(".md")]


def _prose(page: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def _anchors(page: Path) -> set[str]:
    """What `#...` may be after a link to this page: its headings, as GitHub writes them."""
    heads = re.findall(r"^#+ (.*)$", _prose(str(page)), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in LINK.findall(_prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        assert not anchor or anchor in _anchors(path.relative_to(ROOT)), f"{page}: {target} has no such heading"


def _is_there(name: str, page: str) -> bool:
    """Whether a file or folder is called that, seen from the root, the page, or by its own name in any room."""
    places = [ROOT, (ROOT / page).parent, *(ROOT / room for room in ROOMS)]
    return any(place.glob(name) and list(place.glob(name)) for place in places)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    for name in FILE.findall(_prose(page)):
        if name.split("/")[0] in ROOMS and "/" in name and not name.startswith(MADE):
            assert _is_there(name.rstrip("/"), page), f"{page} names {name}"


def test_tests_and_documents_that_are_named_anywhere_are_there():
    for file in FILES:
        if file.endswith(TEXTS) and not file.startswith("tests/"):
            text = (ROOT / file).read_text(encoding="utf-8")
            for name in re.findall(r"(?<![\w/.-])((?:docs|tests)/[\w/]+\.(?:md|py|json))", text):
                assert (ROOT / name).is_file(), f"{file} names {name}"


def test_sections_that_are_named_are_there():
    named = []
    for file in FILES:
        if file.endswith(TEXTS) and file != "tests/project/test_docs_references.py":
            for page, section in SECTION.findall((ROOT / file).read_text(encoding="utf-8")):
                name = page if page.startswith("docs/") else f"docs/{page}"
                anchor = section.lower().replace(" ", "-")
                assert anchor in _anchors(Path(name)), f"{file}: {name} has no section {section!r}"
                named.append(section)
    assert "Your own data" in named


EXECUTED = ("docs/RUN.md", "README.md")  # line by line, in test_scripts_run_guide
EXAMPLES = {path.stem for path in (ROOT / "docs/extending/protocols").glob("*.py")}  # run in a test of their own
PARSERS = {"sweep": "sweep.cli", "results": "results.__main__", "lpclip": "lpclip.__main__",
           "parse_test_res": "results.cli"}  # fmt: skip


def _commands(page: str) -> list[str]:
    """The commands of a page's shell blocks, indented blocks and backticks; `\\` joins lines, `#` ends them."""
    text = re.sub(r"\\\n\s+", "", (ROOT / page).read_text(encoding="utf-8"))
    lines = [line for block in re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines += re.findall(r"^    (\S.*)$", prose, re.M) + re.findall(r"`([^`\n]+)`", prose)
    lines = [re.sub(r"^([A-Z_]+=\S+ )+", "", line).split(" #")[0].strip() for line in lines]
    return [line for line in dict.fromkeys(lines) if re.match(r"(python|bash|scripts/\S+\.sh)\s", line)]


COMMANDS = [(page, line) for page in PAGES if page not in (*EXECUTED, "CHANGELOG.md") for line in _commands(page)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line[:60] for _, line in COMMANDS])
def test_commands_are_there_and_know_their_arguments(page, line):
    words = shlex.split(line)
    if words[0] != "python" or words[1] == "-c":
        script = words[1] if words[0] == "bash" else words[0]
        assert words[1] == "-c" or (ROOT / script).is_file(), f"{page}: {line}"
        return
    name, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1].removesuffix(".py"), words[2:])
    for word in arguments:
        if word.startswith(("tests/", "configs/", "scripts/")):
            file = word.split("::")[0]
            assert (ROOT / file).exists() or (ROOT / "docs/extending" / file).exists(), f"{page}: {line}"
    if name in ("pytest", "pip", "sphinx") or "--help" in arguments:
        return
    module = importlib.import_module(PARSERS.get(name, name))
    arguments = module.split_opts(arguments)[0] if name == "sweep" else arguments
    if arguments:
        arguments = ["base2new" if word in EXAMPLES else word for word in arguments]
        module.build_parser().parse_args(arguments)  # ends the process, and fails the test, if it does not know them


def test_commands_are_found():
    said = [line for _, line in COMMANDS]
    for beginning in ("python -m benchmarks.speed", "python -m datasets.check", "python train.py", "bash scripts/"):
        assert any(line.startswith(beginning) for line in said), beginning
