"""Names that control terminals, turn text around or are formulas are shown as text, wherever text leaves us."""

import ast
import csv
import io
import json
import logging
import sys

import pytest
from tqdm import tqdm

from dassl.output import UNSAFE, clean, csv_cell, json_text, log_to_stdout, printable, printable_streams

HOSTILE = [
    "\x1b[2J\x1b]0;title\x07", "back\x08space", "car\rriage", "new\nline", "tab\tbed", "nul\0", "\x9b31m", "del\x7f",
    "gpj.\u202eexe", "\u2066isolate\u2069", "\u200fmark", "arabic\u061cmark", "zero\u200bwidth", "line\u2028separator",
    "\ufeffbom", "tag\U000e0041", "half\udce9",
]  # fmt: skip
HARMLESS = ["café", "日本語", "naïve ± 3", "שלום", "مرحبا", "👩‍🔬", "a_b-c", "$x^2$", "می‌خواهم"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_escaped(name):
    shown = clean(name)
    assert shown.isprintable()
    assert ast.literal_eval(f"'{shown}'") == name  # one sees what it is


@pytest.mark.parametrize("name", HARMLESS)
def test_letters_of_all_scripts_stay(name):
    assert clean(name) == name
    assert csv_cell(name) == name
    assert printable(name, io.StringIO()) == name


@pytest.mark.parametrize("name", [*HOSTILE, *HARMLESS, "=1+1"])
def test_json_says_what_it_is_told(name):
    text = json_text({name: [name, 1.5]})
    assert json.loads(text) == {name: [name, 1.5]}
    assert not UNSAFE.search(text.replace("\n", ""))
    text.encode("utf-8")


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1"])
def test_formulas_are_text_to_spreadsheets(text):
    assert not csv_cell(text).lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))


@pytest.mark.parametrize("value", [-5, -0.25, 1e-9, None, "-5", "+0.31", "-.5", "1e5", "-1.5E-3"])
def test_numbers_stay_numbers(value):
    assert csv_cell(value) == value
    out = io.StringIO()
    csv.writer(out).writerow([csv_cell(value), "x"])
    assert next(csv.reader([out.getvalue()]))[0] == ("" if value is None else str(value))


def test_whatever_a_program_writes_is_printable(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    log_to_stdout("test_output")

    @printable_streams()
    def main(name):
        sys.stdout.write(f"{name}\n\tmore\n")
        sys.stderr.write(f"error: {name}\n")
        logging.getLogger("test_output").info("logged %s", name)
        logging.getLogger("unheard").warning("warned %s", name)
        return 3

    assert main("\x1b[31mred\rover\u202e") == 3
    shown = "\\x1b[31mred\\rover\\u202e"
    assert out.getvalue() == f"{shown}\n\tmore\nlogged {shown}\n"
    assert f"error: {shown}\n" in err.getvalue()
    assert not UNSAFE.search(err.getvalue().replace("\n", ""))
    assert (sys.stdout, sys.stderr) == (out, err)


def test_bars_are_drawn(monkeypatch):
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with printable_streams(), tqdm(total=2, mininterval=0) as bar:
        bar.update(1)
        bar.write("said", file=sys.stderr)
        bar.update(1)
    assert "\\r" not in err.getvalue()
    assert "\r" in err.getvalue()
    assert "2/2" in err.getvalue()


def test_every_program_writes_clean_text(repo_root):
    """What users start; benchmarks and the script that made the carried CLIP read no data of others."""
    found = []
    for path in [*repo_root.glob("*.py"), *repo_root.glob("[a-z]*/*.py")]:
        if path.parent.name in ("benchmarks", "synthetic", "tests", "docs"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == "main":
                found.append(path.name)
                assert "printable_streams()" in map(ast.unparse, node.decorator_list), f"{path}: main"
    assert {"train.py", "predict.py", "cli.py", "check.py", "prepare.py", "__main__.py"} <= set(found)
