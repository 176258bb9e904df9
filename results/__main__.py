"""`python -m results DIRECTORY --table PROTOCOL --to FOLDER`: tables, figures and a report of a tree of runs."""

import argparse
import os
import sys
from collections.abc import Sequence

from dassl.utils import atomic_write
from results.cli import TABLES, Wanted
from results.formats import FORMATS
from results.paired import paired
from results.plots import draw, save
from results.records import read_records
from results.report import page

SUFFIXES = {"text": "txt", "markdown": "md", "latex": "tex"}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m results", description=__doc__)
    parser.add_argument("directory", help="folder of all results")
    parser.add_argument("--table", nargs="+", choices=TABLES, default=["base2new"], help="(default: base2new)")
    parser.add_argument("--to", default="report", help="folder to write to (default: %(default)s)")
    parser.add_argument("--paired", nargs=2, metavar=("A", "B"), help="test method B against A over seeds")
    parser.add_argument("--source", default="", help="trained on, for xd and dg (default: imagenet, or what is there)")
    parser.add_argument("--title", default="Results", help="of the report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write report.html, the figures (PNG, PDF) and the tables in every format; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        records = read_records(args.directory, from_logs=True)
        tables = {name: TABLES[name](records, Wanted(source=args.source)) for name in args.table}
        if args.paired:
            tables["paired"] = paired(records, *args.paired)
        figures = draw(records)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"results: {error}\n")
        return 2
    for name, table in tables.items():
        for form, write in FORMATS.items():
            with atomic_write(os.path.join(args.to, f"{name}.{SUFFIXES.get(form, form)}")) as file:
                file.write(write(table))
    save(figures, args.to)
    path = os.path.join(args.to, "report.html")
    with atomic_write(path) as file:
        file.write(page(args.title, list(tables.values()), figures, records))
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
