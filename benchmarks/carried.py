"""The tables of the later methods in docs/CARRIED.md: a row per method, a column per data set.

    python -m benchmarks.carried base2new output/later "output/dept= + DePT" --json docs/benchmarks/carried.json

reads finished sweeps of the protocol `base2new` or `fewshot` (what follows `=` is put behind the names of the methods
of a tree), keeps their numbers in a file, one part per protocol, and prints the table.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl.utils import write_json
from protocols import PROTOCOLS
from results.statistics import Summary
from results.tables import AVERAGE, TableOptions
from results.tree import read_records

MEASURES = {"base2new": ("base", "new", "HM"), "fewshot": ("accuracy",)}


def rows_of(protocol: str, tree: str, suffix: str = "") -> list[dict]:
    """A row per data set (averages included) and method: its name, the seeds, mean and spread of each measure."""
    table = PROTOCOLS[protocol].table(read_records(tree), TableOptions(compare=False))
    if not table.complete:
        raise ValueError(f"{tree} is not complete: {'; '.join(table.notes)}")
    found = []
    for dataset, method, *cells in table.rows:
        own = [cell for cell in cells if isinstance(cell, Summary)]
        values = {name: [cell.mean, cell.sd] for name, cell in zip(MEASURES[protocol], own, strict=True)}
        found.append({"data set": dataset, "method": f"{method}{suffix}", "n": own[0].n, **values})
    return [row for row in found if row["data set"] != "average, HM = HM of the mean accuracies"]


def markdown(protocol: str, rows: Sequence[dict]) -> str:
    """The table: per data set the last measure, mean and standard deviation over the seeds; the averages of all."""
    measures = MEASURES[protocol]
    last, sets = measures[-1], [name for name in dict.fromkeys(row["data set"] for row in rows) if AVERAGE not in name]
    heads = ["method", "n", *sets, *(f"average {name}" for name in measures)]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' --: |' * (len(heads) - 1)}"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {row["data set"]: row for row in rows if row["method"] == method}
        (total,) = [row for name, row in own.items() if AVERAGE in name]
        cells = [_cell(own[name][last]) for name in sets] + [_cell(total[name]) for name in measures]
        lines.append(f"| {' | '.join([method, str(total['n']), *cells])} |")
    return "\n".join(lines) + "\n"


def _cell(value: Sequence[float | None]) -> str:
    mean, sd = value
    return f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}"


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=sorted(MEASURES))
    parser.add_argument("trees", nargs="+", metavar="FOLDER[=SUFFIX]", help="outputs of sweeps")
    parser.add_argument("--json", type=Path, help="file for the numbers; other protocols in it stay")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the trees, keep the numbers, print the table."""
    args = build_parser().parse_args(argv)
    rows = [row for tree in args.trees for row in rows_of(args.protocol, *tree.split("=", 1))]
    if args.json:
        kept = json.loads(args.json.read_text(encoding="utf-8")) if args.json.is_file() else {}
        write_json({**kept, args.protocol: rows}, str(args.json))
    sys.stdout.write(markdown(args.protocol, rows))


if __name__ == "__main__":
    main()
