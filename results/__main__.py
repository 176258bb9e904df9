"""`python -m results DIRECTORY --table PROTOCOL --to FOLDER`: tables, figures and a report of a tree of runs.

`python -m results --audit DIRECTORY` says what in the tree does not agree with what.
"""

import dassl.ctrl_c  # noqa: F401  # isort: skip - before what takes seconds

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dassl.output import clean, printable_streams
from dassl.utils import atomic_write
from protocols import PROTOCOLS
from results.answer_plots import answer_figures, confusion_figures
from results.audit import audit
from results.by_image import comparison, confusion_table, confusion_tables, confusions, differences
from results.cli import METRICS_HELP, metrics_table, tables_of
from results.contact_sheet import contact_sheet
from results.formats import FORMATS
from results.plots import CAPTIONS, draw, save
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
    parser.add_argument("--root", default="", help="folder of the data sets, for pictures on which A and B differ")
    parser.add_argument("--confusions", action="store_true", help="what is taken for what: pairs, matrices")
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
        path = write(args.to, args.title, *report_of(args))
    except (ValueError, OSError) as error:
        unwritable = getattr(error, "strerror", None)
        sys.stderr.write(f"results: {f'{error.filename}: {unwritable}' if unwritable else error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


def report_of(args: argparse.Namespace) -> "tuple[Report, list[Record]]":
    """What the report shows, as the arguments ask for it, and the runs. ValueError for what cannot be shown."""
    records = read_records(args.directory, from_logs=True)
    options = TableOptions(parse_seeds(args.seeds) if args.seeds else (), source=args.source)
    report = Report(draw(records))
    own: list[Record] = []
    for protocol in args.table:
        report.tables |= tables_of(records, protocol, options, args.directory)
        own += [record for record in PROTOCOLS[protocol].records_of(records) if record not in own]
        if args.metrics:
            report.tables[f"{protocol}_measures"] = metrics_table(records, protocol, args.metrics, options)
    if args.metrics:
        report.add_figures(answer_figures(own))
    if args.confusions:
        found, notes = confusions(own)
        report.tables["confusions"] = confusion_table(found, notes)
        report.unshown |= confusion_tables(found)
        report.add_figures(confusion_figures(found))
    if args.paired:
        first, second = args.paired
        tables, matched = comparison(own, first, second)
        report.tables |= tables
        if matched:
            report.unshown["differences"] = differences(matched, first, second)
            report.sections.append(contact_sheet(matched, first, second, args.root))
    return report, records


@dataclass
class Report:
    """What a report is made of.

    Attributes:
        figures: by names for their files.
        captions: of the figures.
        tables: by names for their files.
        unshown: tables that are written and not shown.
        sections: further parts, in HTML.
    """

    figures: "dict[str, Figure]"
    captions: dict[str, str] = field(default_factory=lambda: dict(CAPTIONS))
    tables: dict[str, Table] = field(default_factory=dict)
    unshown: dict[str, Table] = field(default_factory=dict)
    sections: list[str] = field(default_factory=list)

    def add_figures(self, made: "Mapping[str, tuple[Figure, str]]") -> None:
        """Add figures with their captions."""
        self.figures |= {name: figure for name, (figure, _) in made.items()}
        self.captions |= {name: caption for name, (_, caption) in made.items()}


def report_audit(directory: str) -> int:
    """Print what does not agree in a tree of results; returns the exit status."""
    found, runs, silent = audit(directory)
    sys.stdout.write("".join(f"{clean(line)}\n" for line in found))
    said = f"; {silent} of them do not say of which split and images they are" if silent else ""
    sys.stdout.write(f"{runs} results, {len(found)} disagreement{'' if len(found) == 1 else 's'}{said}\n")
    return 1 if found else 0


def write(folder: str, title: str, report: Report, records: Sequence[Record]) -> str:
    """Write tables, figures and the report; returns its path. OSError if the folder cannot be written to."""
    for name, table in {**report.tables, **report.unshown}.items():
        for form, make in FORMATS.items():
            text = make(table)
            with atomic_write(os.path.join(folder, f"{name}.{SUFFIXES.get(form, form)}")) as file:
                file.write(text)
    save(report.figures, folder)
    path, tables = os.path.join(folder, "report.html"), list(report.tables.values())
    text = page(title, tables, report.figures, records, report.captions, report.sections)
    with atomic_write(path) as file:
        file.write(text)
    return path


if __name__ == "__main__":
    sys.exit(main())
