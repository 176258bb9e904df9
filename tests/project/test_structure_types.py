"""Types, by mypy in its default mode (settings in pyproject.toml): no room has more wrong ones than it had."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# wrong types in each room, none where a room is not named; a number only falls
CEILINGS = {
    "benchmarks": 20,
    "datasets": 20,
    "lpclip": 4,
    "predict.py": 1,
    "protocols": 2,
    "results": 4,
    "sweep": 17,
    "synthetic": 12,
    "train.py": 3,
}
IGNORED = re.compile(r"#\s*type:\s*ignore(\[[\w, -]+\])?(.*)")


def _rooms() -> list[str]:
    """What pyproject.toml has mypy check."""
    settings = re.search(r"\[tool\.mypy\].*?files = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S)
    return re.findall(r'"([\w.]+)"', settings[1])


@pytest.fixture(scope="module")
def errors():
    """Lines of mypy's errors, by room."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


@pytest.mark.parametrize("room", _rooms())
def test_no_more_wrong_types_than_there_were(errors, room):
    wrong = [line for line in errors if re.split("[/:]", line)[0] == room]
    assert len(wrong) <= CEILINGS.get(room, 0), "\n".join(wrong)


def test_every_room_is_checked():
    there = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file() or path.suffix == ".py"}
    assert there - {"tests", "docs"} == set(_rooms())


def test_what_is_ignored_has_a_code_and_a_reason():
    assert "ignore_errors" not in (ROOT / "pyproject.toml").read_text()
    rooms = [ROOT / name for name in _rooms()]
    for path in (path for room in rooms for path in ([room] if room.suffix else sorted(room.rglob("*.py")))):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for code, reason in IGNORED.findall(line):
                assert code, f"{path}:{number} ignores every mistake in a type: name the kind"
                assert "#" in reason, f"{path}:{number} ignores a type without a reason"
            assert "mypy: ignore-errors" not in line, f"{path}:{number}"
