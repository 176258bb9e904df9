"""Numbers in documents are those of the files that they come from, and agree with each other."""

import json
import re
from pathlib import Path
from statistics import mean

import pytest

from benchmarks.carried import MEASURES, markdown
from benchmarks.choice import report

ROOT = Path(__file__).resolve().parents[2]
README, CARRIED, BENCHMARKS, RUN = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/CARRIED.md", "docs/BENCHMARKS.md", "docs/RUN.md")
)
MEASURED = {
    name: part["rows"]
    for name, part in json.loads((ROOT / "docs/benchmarks/cpu.json").read_text(encoding="utf-8"))["parts"].items()
}


def _rows(page: str, head: str) -> list[list[str]]:
    """The cells of the table whose first line begins so."""
    lines = page[page.index(f"\n{head}") + 1 :].splitlines()
    cells = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split("|")])
    assert cells
    return cells


def _same(shown: str, value: float) -> bool:
    """Whether a number as it is printed is this one, rounded to its digits."""
    digits = len(shown.partition(".")[2])
    return abs(float(shown) - value) <= 0.5 * 10**-digits + 1e-9


# the table of the carried data sets

TABLE = _rows(CARRIED, "| data set | method | n | base | new | HM |")
SETS = [row for row in TABLE if not row[0].startswith("average")]
SEVEN = {"drawn_easy", "drawn_thermal", "drawn_chalk", "drawn_clutter", "digits", "drawn_textures", "drawn_polystar"}
METHODS = ("ZeroshotCLIP", "CoOp", "APEX")


def _value(cell: str) -> float:
    return float(cell.split(" ")[0])


def test_every_set_and_method_is_in_the_table():
    assert sorted((name, method) for name, method, *_ in SETS) == sorted((s, m) for s in SEVEN for m in METHODS)
    assert len(TABLE) == 3 * 7 + 3 * 2
    assert {row[2] for row in TABLE if row[1] != "ZeroshotCLIP"} == {"3"}


@pytest.mark.parametrize("row", SETS, ids=lambda row: f"{row[0]} {row[1]}")
def test_hm_is_that_of_the_means(row):
    base, new, hm = map(_value, row[3:])
    assert hm == pytest.approx(2 * base * new / (base + new), abs=0.011)


@pytest.mark.parametrize("method", METHODS)
def test_averages_are_those_of_the_sets(method):
    of_sets = [list(map(_value, row[3:])) for row in SETS if row[1] == method]
    base, new, hm = map(mean, zip(*of_sets, strict=True))
    shown = {row[0].partition("HM = ")[2]: list(map(_value, row[3:])) for row in TABLE if row[1] == method}
    assert shown["mean of the sets' HMs"] == pytest.approx([base, new, hm], abs=0.011)
    assert shown["HM of the mean accuracies"] == pytest.approx([base, new, 2 * base * new / (base + new)], abs=0.011)


def test_the_readme_shows_rows_of_that_table():
    head = next(line for line in README.splitlines() if line.startswith("| method |"))
    columns = [cell.strip() for cell in head.strip("|").split("|")][1:]
    rows = {row[0]: row[1:] for row in _rows(README, "| method |")}
    assert tuple(rows) == METHODS
    assert len(columns) == 4
    for name, column in zip(columns, zip(*rows.values(), strict=True), strict=True):
        wanted = "average, HM = mean of the sets' HMs" if name.startswith("average") else name
        of_table = {row[1]: re.sub(r" \(.*\)", "", row[5]) for row in TABLE if row[0] == wanted}
        assert dict(zip(rows, column, strict=True)) == of_table


# the later methods on the carried data sets

LATER = json.loads((ROOT / "docs/benchmarks/carried.json").read_text(encoding="utf-8"))
NEW = {"APLe", "TCP", "MMA", "MMRL", "MMRLpp", "CLIP_CITE", "TwoSFS", "SkipTuning", "CoPrompt", "FullFineTuning",
       "LayerNormTuning", "BitFit"}  # fmt: skip
DEPT = {"CoOp + DePT", "KgCoOp + DePT", "MaPLe + DePT"}
OF_CLASSES = {"LPPlusPlus", "ZSLP", "CLAP"}  # their weights belong to the classes, so they have few-shot alone


@pytest.mark.parametrize(
    ("protocol", "methods", "sets"),
    [
        ("base2new", NEW | DEPT, SEVEN),
        ("fewshot", NEW | DEPT | OF_CLASSES, {"drawn_thermal", "digits"}),
    ],
)
def test_tables_of_the_later_methods_are_those_of_the_file(protocol, methods, sets):
    rows = LATER[protocol]
    assert {row["data set"] for row in rows if not row["data set"].startswith("average")} == sets
    assert methods <= {row["method"] for row in rows}
    assert {row["n"] for row in rows if row["method"] in methods} == {3}
    assert markdown(protocol, rows) in CARRIED


@pytest.mark.parametrize("protocol", ["base2new", "fewshot"])
def test_averages_of_the_later_methods_are_those_of_the_sets(protocol):
    for method in {row["method"] for row in LATER[protocol]}:
        own = [row for row in LATER[protocol] if row["method"] == method]
        (total,) = [row for row in own if row["data set"].startswith("average")]
        for measure in MEASURES[protocol]:
            of_sets = mean(row[measure][0] for row in own if row is not total)
            assert total[measure][0] == pytest.approx(of_sets, abs=1e-6), (method, measure)


def test_harmonic_means_of_the_later_methods():
    for row in LATER["base2new"]:
        if not row["data set"].startswith("average"):
            base, new, hm = (row[name][0] for name in MEASURES["base2new"])
            assert hm == pytest.approx(2 * base * new / (base + new), abs=1e-6)


# the choice of a method


def test_the_regrets_are_those_of_the_file():
    page = (ROOT / "docs/CHOICE.md").read_text(encoding="utf-8")
    tasks = json.loads((ROOT / "docs/benchmarks/choice.json").read_text(encoding="utf-8"))["tasks"]
    assert [task["task"] for task in tasks] == list(range(40))
    assert report(tasks) in page
    assert sum(bool(task["diverged"]) for task in tasks) == 2
    zero_shot = [task["accuracies"]["ZeroshotCLIP"] for task in tasks]
    shown = (*(task["classes"] for task in tasks), *zero_shot)
    low, high, least, most = map(float, _number(r"(\d+) to (\d+) classes, zero-shot accuracy (\d+) to (\d+)%", page))
    assert (min(shown[:40]), max(shown[:40])) == (low, high)
    assert (round(min(zero_shot)), round(max(zero_shot))) == (least, most)


# the benchmarks

HEADS = {
    "train": ("| classes | plain fp32, s |", ("classes", "plain fp32, s", "default fp32, s", "ratio fp32",
                                              "default bf16, s", "ratio bf16")),
    "seeds": ("| seeds | at once |", ("seeds", "at once", "separate fp32, s", "stacked fp32, s", "ratio",
                                      "ratio to plain fp32, seed after seed")),
    "memory": ("| configuration | classes | limit |", ("configuration", "classes", "limit", "in one piece",
                                                       "taken by the step")),
}  # fmt: skip


@pytest.mark.parametrize("part", ["train", "eval", "seeds", "memory"])
def test_tables_are_those_of_the_file(part):
    head, keys = HEADS.get(part, HEADS["train"])
    page = BENCHMARKS[BENCHMARKS.index(f"`--parts {part}") :]
    shown = _rows(page, head)
    assert len(shown) == len(MEASURED[part])
    for cells, row in zip(shown, MEASURED[part], strict=True):
        for cell, key in zip(cells, keys, strict=True):
            agrees = cell == row[key] if isinstance(row[key], str) else _same(cell, row[key])
            assert agrees, f"{part}: {key} is {cell} in the document, {row[key]} in the file"


def _number(pattern: str, page: str) -> list[str]:
    found = re.search(pattern, re.sub(r"\s+", " ", page))
    assert found, pattern
    return list(found.groups())


def test_sentences_are_about_the_file_s_numbers():
    last, number = MEASURED["train"][-1], r"(\d+(?:\.\d+)?)"
    pattern = rf"with {number} classes takes {number} s in float32 and {number} s in bfloat16.* code takes {number} s"
    wanted = [last[key] for key in ("classes", "default fp32, s", "default bf16, s", "plain fp32, s")]
    assert all(map(_same, _number(pattern, README), wanted))

    steps = [[row[f"default {precision}, s"] for row in MEASURED["train"]] for precision in ("fp32", "bf16")]
    shown = _number(rf"takes {number} to {number} s in float32 and {number} to {number} s in bfloat16", RUN)
    for low, high, seconds in ((*shown[:2], steps[0]), (*shown[2:], steps[1])):
        assert float(low) <= min(seconds) < max(seconds) <= float(high)

    low, high, bf16 = map(float, _number(r"reaches (\d+) to (\d+)% .* in bfloat16 (\d+)%", BENCHMARKS))
    shares = [100 * row["share of the fp32 rate"] for row in MEASURED["train"]]
    assert (round(min(shares)), round(max(shares))) == (low, high)
    assert round(100 * mean(row["share of the bf16 rate"] for row in MEASURED["train"])) == bf16

    (alone,) = map(float, _number(r"a single run already reaches (\d+)% of the core's rate", BENCHMARKS))
    assert round(100 * MEASURED["seeds"][0]["share of the fp32 rate"]) == alone


def test_start_up_is_that_of_the_file():
    helped, stepped = _number(r"--help` takes (\S+) s, .* first step after (\S+) s", BENCHMARKS)
    (row,) = MEASURED["start"]
    assert _same(helped, row["train.py --help, s"])
    assert _same(stepped, row["first training step, s"])
