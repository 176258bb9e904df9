"""Completion in a shell: what a line is completed with, as a shell asks for it."""

import subprocess
import sys

import pytest

pytest.importorskip("argcomplete", reason="argcomplete is not installed (tests/requirements.txt)")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train.py --trainer CoO", {"CoOp"}),
        ("train.py --dataset-config-file drawn_th", {"drawn_thermal"}),
        ("train.py --trainer coop --config-file vit_b16_ep1", {"vit_b16_ep100", "vit_b16_ep100_ctxv1"}),
        ("train.py --print", {"--print-config"}),
    ],
)
def test_completions(repo_root, tmp_path, line, expected):
    out = tmp_path / "answer"
    environment = {
        "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_IFS": "\n", "PYTHONPATH": str(repo_root),
    }  # fmt: skip
    subprocess.run([sys.executable, str(repo_root / "train.py")], cwd=tmp_path, env=environment, check=True)
    assert {word.strip() for word in out.read_text().split("\n")} - {""} == expected
