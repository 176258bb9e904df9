"""`python -m results DIRECTORY --table PROTOCOL --to FOLDER`: tables, figures and a report of a tree of runs.

`python -m results --audit DIRECTORY` says what in the tree does not agree with what.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dassl.output import clean, printable_streams
from dassl.utils import atomic_write
from protocols import PROTOCOLS
from results.audit import audit
from results.cli import METRICS_HELP, metrics_table, tables_of
from results.formats import FORMATS
from results.paired import paired
from results.plots import draw, save
from results.records import Record
from results.report import page
from results.seeds import parse_seeds
from results.tables import Table, TableOptions
from results.tree import read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = {"text": "txt", "markdown": "md", "latex": "tex"}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m results", description=__doc__)
    parser.add_argument("directory", help="folder of all results")
    parser.add_argument("--table", nargs="+", choices=PROTOCOLS, default=["base2new"], help="(default: base2new)")
    parser.add_argument("--to", default="report", help="folder to write to (default: %(default)s)")
    parser.add_argument("--paired", nargs=2, metavar=("A", "B"), help="test method B against A over seeds")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", default=(), help=METRICS_HELP)
    parser.add_argument(
        "--source", default="", help="trained on, for xd and dg (default: a table for each that there is)"
    )
    parser.add_argument(
        "--seeds", default="", help="seeds that are expected, such as 1-20; others are named as missing"
    )
    audit_help = "only say what does not agree with what (exit status 1 if anything does not)"
    parser.add_argument("--audit", action="store_true", help=audit_help)
    parser.add_argument("--title", default="Results", help="of the report")
    return parser


@printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Write report.html, the figures (PNG, PDF) and the tables in every format; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        if args.audit:
            return report_audit(args.directory)
        records = read_records(args.directory, from_logs=True)
        options = TableOptions(parse_seeds(args.seeds) if args.seeds else (), source=args.source)
        tables: dict[str, Table] = {}
        for protocol in args.table:
            tables |= tables_of(records, protocol, options, args.directory)
            if args.metrics:
                tables[f"{protocol}_measures"] = metrics_table(records, protocol, args.metrics, options)
        if args.paired:
            tables["paired"] = paired(records, *args.paired)
        figures = draw(records)
        path = write(args.to, args.title, tables, figures, records)
    except (ValueError, OSError) as error:
        unwritable = getattr(error, "strerror", None)
        sys.stderr.write(f"results: {f'{error.filename}: {unwritable}' if unwritable else error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


def report_audit(directory: str) -> int:
    """Print what does not agree in a tree of results; returns the exit status."""
    found, runs, silent = audit(directory)
    sys.stdout.write("".join(f"{clean(line)}\n" for line in found))
    said = f"; {silent} of them do not say of which split and images they are" if silent else ""
    sys.stdout.write(f"{runs} results, {len(found)} disagreement{'' if len(found) == 1 else 's'}{said}\n")
    return 1 if found else 0


def write(
    folder: str, title: str, tables: Mapping[str, Table], figures: "Mapping[str, Figure]", records: Sequence[Record]
) -> str:
    """Write tables, figures and the report; returns the report's path. OSError if the folder cannot be written to."""
    for name, table in tables.items():
        for form, make in FORMATS.items():
            with atomic_write(os.path.join(folder, f"{name}.{SUFFIXES.get(form, form)}")) as file:
                file.write(make(table))
    save(figures, folder)
    path = os.path.join(folder, "report.html")
    with atomic_write(path) as file:
        file.write(page(title, list(tables.values()), figures, records))
    return path


if __name__ == "__main__":
    sys.exit(main())
