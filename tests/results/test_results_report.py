"""Figures and the HTML report of a made tree."""

import json
from html.parser import HTMLParser

import pytest
from results_trees import APEX, base2new_tree, write_run

from results.__main__ import main
from results.layout import RunDirectory
from results.tree import read_records

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from matplotlib.colors import to_hex
from matplotlib.markers import MarkerStyle

from results.plots import FIGURES, difficulty, draw


@pytest.fixture
def tree(tmp_path):
    """Base-to-new on two sets with APEX's alphas, few-shot on one, one failure."""
    base2new_tree(tmp_path / "out")
    values = {"classnames": ["a", "b"], "alpha": [0.4, 1.0], "d_nn": [0.1, 0.02], "d_avg": [0.23, 0.3]}
    place = RunDirectory("new", "dtd", "APEX", APEX, 16, 1)
    write_run(tmp_path / "out", place, 59.0, apex=values, config={"OPTIM": {"LR": 0.15}})
    for shots in (1, 2, 4):
        write_run(tmp_path / "out", RunDirectory("all", "dtd", "CoOp", "vit_b16", shots, 1), 40.0 + shots)
    failed = tmp_path / "out" / RunDirectory("new", "eurosat", "APEX", APEX, 16, 4).path()
    failed.mkdir(parents=True)
    (failed / "failed.json").write_text(json.dumps({"reason": "ValueError: <no> data"}))
    return tmp_path / "out"


def test_every_figure_is_drawn(tree):
    assert set(draw(read_records(tree))) == set(FIGURES)


def test_methods_with_other_numbers_of_shots_share_a_figure(tmp_path):
    for trainer, numbers in (("CoOp", (1, 2, 4)), ("APEX", (1, 16)), ("VPT", (16,))):
        for shots in numbers:
            write_run(tmp_path, RunDirectory("all", "dtd", trainer, "c", shots, 1), 40.0 + shots)
    write_run(tmp_path, RunDirectory("all", "eurosat", "CoOp", "c", 1, 1), 90.0)
    axes = draw(read_records(tmp_path))["accuracy_over_shots"].axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"APEX (1 set)": [41.0, 56.0], "CoOp (1 set)": [41.0, 42.0, 44.0]}


def test_nothing_is_drawn_of_nothing():
    assert draw([]) == {}


def _looks(figure):
    """Colour and marker of each entry of a figure's legend, by its first word."""
    (axes,) = figure.axes
    looks = {}
    for collection in axes.collections:
        if not collection.get_label().startswith("_"):
            face = to_hex(collection.get_facecolor()[0])
            looks[collection.get_label().split(" (")[0]] = face, collection.get_paths()[0].vertices.tobytes()
    for line in axes.lines:
        if not line.get_label().startswith("_"):
            marker = MarkerStyle(line.get_marker())
            shape = marker.get_path().transformed(marker.get_transform()).vertices.tobytes()
            looks[line.get_label().split(" (")[0]] = to_hex(line.get_color()), shape
    return looks


def test_a_method_looks_the_same_in_all_figures(tree):
    for seed in (1, 2):
        for role in ("base", "new"):
            write_run(tree, RunDirectory(role, "dtd", "CoOp", "usual", 16, seed), 55.0)
        for shots in (1, 4):
            write_run(tree, RunDirectory("all", "dtd", "APEX", APEX, shots, seed), 50.0 + shots)
    figures = draw(read_records(tree))
    looks = [_looks(figures[name]) for name in ("gain_over_difficulty", "accuracy_over_shots", "base_against_new")]
    for name in ("APEX", "CoOp"):
        assert len({look[name] for look in looks}) == 1
    assert looks[0]["APEX"] != looks[0]["CoOp"]
    assert figures["base_against_new"].get_supxlabel() == "1\N{NO-BREAK SPACE}dtd   2\N{NO-BREAK SPACE}eurosat"
    assert {text.get_text() for text in figures["base_against_new"].axes[0].texts} >= {"1", "2"}


def test_configurations_of_one_number_of_shots_are_lines_of_their_own(tree):
    for shots in (1, 2, 4):
        write_run(tree, RunDirectory("all", "dtd", "CoOp", "other", shots, 1), 20.0 + shots)
    (axes,) = draw(read_records(tree))["accuracy_over_shots"].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"CoOp (other) (1 set)": [21.0, 22.0, 24.0], "CoOp (vit_b16) (1 set)": [41.0, 42.0, 44.0]}
    assert len({line.get_marker() for line in axes.lines}) == 2


def test_difficulty_is_measured_before_it_is_looked_up(tree):
    records = read_records(tree)
    assert difficulty(records)["dtd"] == (0.0484, "published")
    write_run(tree, RunDirectory("zeroshot", "dtd", "ZeroshotCLIP", "vit_b16"), 44.0, num_classes=47)
    assert difficulty(read_records(tree))["dtd"] == (pytest.approx(1 / (47 * 0.44)), "all classes")


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what is loaded."""

    VOID = {"meta", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.count = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report(tree, tmp_path, capsys):
    to = tmp_path / "report"
    assert main([str(tree), "--table", "base2new", "fewshot", "--paired", "ZeroshotCLIP", "APEX", "--to", str(to)]) == 0
    assert capsys.readouterr().out.strip() == str(to / "report.html")
    names = {path.name for path in to.iterdir()}
    assert {"base2new.tex", "base2new.csv", "fewshot.md", "paired.json"} <= names
    assert {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")} <= names
    text = (to / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert (page.count["table"], page.count["img"]) == (3, len(FIGURES))
    assert all(source.startswith("data:") for source in page.sources)
    assert "ValueError: &lt;no&gt; data" in text
    assert "OPTIM.LR: 0.15" in text


def test_mistakes(tree, tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tree), "--paired", "APEX", "Nobody", "--to", str(tmp_path / "r")]) == 2
    assert "Nobody" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "--to", str(tmp_path / "r")]) == 2
    assert "no runs of base2new" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    (tmp_path / "file").write_text("")
    assert main([str(tree), "--to", str(tmp_path / "file" / "report")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_missing_seeds_are_named(tree, tmp_path):
    assert main([str(tree), "--seeds", "1-5", "--to", str(tmp_path / "r")]) == 0
    assert "dtd, APEX: no result of seeds 4-5" in (tmp_path / "r" / "report.html").read_text()


def test_a_table_for_each_source(tree, tmp_path):
    for source in ("dtd", "eurosat"):
        write_run(tree, RunDirectory("transfer", "food101", "APEX", "c", 16, 1, source=source), 50.0)
    assert main([str(tree), "--table", "xd", "--to", str(tmp_path / "r")]) == 0
    assert {"xd_from_dtd.md", "xd_from_eurosat.md"} < {path.name for path in (tmp_path / "r").iterdir()}
