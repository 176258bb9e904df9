"""Types, by mypy in its default mode (settings in pyproject.toml): none wrong in the rooms that others build on,
elsewhere no more than there were."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLEAN = ("clip", "trainers")
CEILING = 181  # of all errors elsewhere; it only falls
IGNORED = re.compile(r"#\s*type:\s*ignore(\[[\w, -]+\])?(.*)")


def _sources() -> list[Path]:
    names = [ROOT / name for name in re.findall(r'"([\w.]+)"', _listed())]
    return [path for name in names for path in ([name] if name.suffix else sorted(name.rglob("*.py")))]


def _listed() -> str:
    return re.search(r"\[tool\.mypy\]\s+files = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S)[1]


@pytest.fixture(scope="module")
def errors():
    """Lines of mypy's errors, by room."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


@pytest.mark.parametrize("room", CLEAN)
def test_no_wrong_types(errors, room):
    wrong = [line for line in errors if line.startswith(f"{room}/")]
    assert not wrong, "\n".join(wrong)


def test_no_more_wrong_types_elsewhere(errors):
    others = [line for line in errors if not line.startswith(tuple(f"{room}/" for room in CLEAN))]
    rooms = Counter(re.split("[/:]", line)[0] for line in others)
    assert len(others) <= CEILING, f"{len(others)}: {dict(rooms)}\n" + "\n".join(others)


def test_every_room_is_checked():
    there = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file() or path.suffix == ".py"}
    assert there - {"tests", "docs"} == set(re.findall(r'"([\w.]+)"', _listed()))


def test_what_is_ignored_has_a_code_and_a_reason():
    assert "ignore_errors" not in (ROOT / "pyproject.toml").read_text()
    for path in _sources():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for code, reason in IGNORED.findall(line):
                assert code, f"{path}:{number} ignores every mistake in a type: name the kind"
                assert "#" in reason, f"{path}:{number} ignores a type without a reason"
            assert "mypy: ignore-errors" not in line, f"{path}:{number}"
