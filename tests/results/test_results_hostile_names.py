"""Tables, reports and predictions of names that control terminals, pages or spreadsheets."""

import csv
import html.parser
import json

import numpy as np
import pytest
from results_trees import write_run

from dassl.output import UNSAFE
from results import __main__ as command
from results import cli
from results.formats import FORMATS
from results.layout import RunDirectory
from results.prediction_files import Writer
from results.statistics import summarise
from results.tables import Table

NAMES = [
    "=HYPERLINK(1)",
    "\x1b[2Jgone",
    "gpj.\u202eexe",
    "a\nb|c",
    "<script>x</script>",
    "$\\frac$",
    "![p](h://x)",
    "half\udce9",
]


def hostile_table() -> Table:
    rows = [[name, summarise([50.0, 60.0]), -1.5] for name in NAMES]
    return Table("a \x1b title", ["name", "acc", "=1+1"], rows, notes=[f"left out: {name}" for name in NAMES])


@pytest.mark.parametrize("form", FORMATS)
def test_tables_are_clean(form):
    text = FORMATS[form](hostile_table())
    assert not UNSAFE.search(text.replace("\n", ""))
    text.encode("utf-8")
    notes = [line for line in text.splitlines() if "left out" in line]
    assert len(notes) == (0 if form == "csv" else len(NAMES))  # no name begins a line of its own


def test_json_keeps_the_names():
    assert [row["name"] for row in json.loads(FORMATS["json"](hostile_table()))["rows"]] == NAMES


def test_csv_holds_no_formula_and_numbers_stay():
    header, *rows = csv.reader(FORMATS["csv"](hostile_table()).splitlines())
    assert header == ["name", "acc", "acc_sd", "acc_ci95", "'=1+1"]
    assert all(float(row[-1]) == -1.5 for row in rows)
    assert rows[0][0] == "'=HYPERLINK(1)"


def test_markdown_has_no_html_links_or_pictures():
    text = FORMATS["markdown"](hostile_table())
    assert "\\<script>" in text
    assert "!\\[p](h" in text
    assert len({line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")}) == 1


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_report_of_hostile_folders(tmp_path, capsys):
    for name in ("\x1b[2Jgone", "gpj.\u202eexe", "<script>x<", "$\\frac$", "=1"):
        for role, accuracy in (("base", 50.0), ("new", 40.0)):
            for trainer in ("APEX", "ZeroshotCLIP"):
                config = {"DATASET": {"NAME": name}}
                write_run(tmp_path / "o", RunDirectory(role, name, trainer, "c", 16, 1), accuracy, config=config)
    assert command.main([str(tmp_path / "o"), "--to", str(tmp_path / "report"), "--title", "<b>\x1b"]) == 0
    written = sorted(
        path
        for path in (tmp_path / "report").iterdir()
        if path.suffix in (".html", ".csv", ".txt", ".md", ".tex", ".json")
    )
    assert len(written) == 6
    for path in written:
        assert not UNSAFE.search(path.read_text(encoding="utf-8").replace("\n", "")), path
    reader = Tags()
    reader.feed((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert not reader.tags & {"script", "b"}
    cli.main([str(tmp_path / "o"), "--table", "base2new"])
    command.main(["--audit", str(tmp_path / "o")])
    captured = capsys.readouterr()
    assert not UNSAFE.search((captured.out + captured.err).replace("\n", "").replace("\t", ""))


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_predictions_of_hostile_names(form):
    writer = Writer(form, ["\x1b[2J.jpg", "=1.jpg"], NAMES, 2)
    text = writer.text(np.full((1, len(NAMES)), 0.125)) + writer.text(np.full((1, len(NAMES)), 0.125)) + writer.end()
    assert not UNSAFE.search(text.replace("\n", ""))
    if form == "csv":
        header, *rows = csv.reader(text.splitlines())
        assert [row[0] for row in rows] == ["\\x1b[2J.jpg", "'=1.jpg"]
        assert not any(name.startswith("=") for name in header)
    if form == "json":
        assert set(json.loads(text)[0]["probabilities"]) == set(NAMES)
