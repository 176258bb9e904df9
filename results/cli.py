"""The command line of results: logs or stored runs in, tables out."""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from dassl.output import json_text, printable_streams
from protocols import PROTOCOLS
from results import logs
from results.answers import NAMES, measures_table
from results.by_image import comparison
from results.formats import FORMATS
from results.records import Record
from results.seeds import numbers, parse_seeds
from results.statistics import population_ci95
from results.tables import Table, TableOptions
from results.tree import read_records

DESCRIPTION = """Results of runs.

  parse_test_res.py output/base2new/train_base/dtd/shots_16/APEX/CFG     mean over the seeds of one experiment
  parse_test_res.py output --table base2new --format markdown           base, new, HM over data sets and methods

Without --table the log.txt of the sub-folders are read, of this project's runs or of any Dassl project's. With it,
stored results (metrics.json) of the whole tree, and the logs of runs that have none."""


METRICS_HELP = f"""a table of these of the protocol's runs, from their records and predictions: {", ".join(NAMES)}"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments; the first four options are those of the code family's parser."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="folder of seed folders; with --multi-exp or --table, one above")
    parser.add_argument("--ci95", action="store_true", help="1.96 standard deviations over root n instead of one")
    parser.add_argument("--test-log", action="store_true", help="logs of evaluations, not of trainings")
    parser.add_argument("--multi-exp", action="store_true", help="the sub-folders are experiments")
    parser.add_argument("--keyword", help="what to read from logs: accuracy, error, macro_f1 (default: accuracy)")
    parser.add_argument("--format", choices=FORMATS, default=None, help="of tables (default: text)")
    parser.add_argument("--table", choices=PROTOCOLS, help="a protocol's table over the whole tree")
    parser.add_argument(
        "--seeds", default="", help="seeds that are expected, such as 1-20; others are named as missing"
    )
    parser.add_argument("--compare", choices=("published", "none"), help="numbers to put beside (default: published)")
    parser.add_argument("--paired", nargs=2, metavar=("A", "B"), help="test B against A over seeds, after the table")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help=METRICS_HELP)
    parser.add_argument(
        "--source", default="", help="trained on, for xd and dg (default: a table for each that there is)"
    )
    return parser


def tables_of(records: Sequence[Record], protocol: str, options: TableOptions, directory: str) -> dict[str, Table]:
    """The tables of a protocol, by names for their files: one, or for a transfer one per data set trained on.

    Raises:
        ValueError: there is nothing to show; the sentence says of what there are runs below the directory.
    """
    made = PROTOCOLS[protocol].tables_of(records, options)
    tables = {name: table for name, table in made.items() if table.rows}
    if not tables:
        every = {name: other.tables_of(records, TableOptions()) for name, other in PROTOCOLS.items()}
        there = [name for name, made in every.items() if any(table.rows for table in made.values())]
        source = f" trained on {options.source}" if options.source and PROTOCOLS[protocol].has_source else ""
        raise ValueError(
            f"no runs of {protocol}{source} below {directory}; there are runs of: {', '.join(there) or 'none'}"
        )
    return tables


def metrics_table(records: Sequence[Record], protocol: str, names: Sequence[str], options: TableOptions) -> Table:
    """The measures of a protocol's runs; ValueError for a measure that there is not."""
    own = PROTOCOLS[protocol].records_of(records)
    if options.source:
        own = [record for record in own if record.place.trained_on == options.source]
    return measures_table(own, names, f"Measures of {protocol}", options)


def log_report(args: argparse.Namespace, seeds: Sequence[int]) -> tuple[str, int]:
    """What the family's parser prints, and the exit status: 1 if some run has no result.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
    """
    signals = logs.END_OF_TEST if args.test_log else logs.END_OF_TRAINING
    top = Path(args.directory)
    folders = [top]
    if args.multi_exp and top.is_dir():
        folders = sorted((p for p in top.iterdir() if p.is_dir()), key=lambda path: logs.natural(path.name))
    experiments = [logs.read_experiment(folder, args.keyword, signals, seeds) for folder in folders]
    if not any(experiment.results for experiment in experiments):
        raise FileNotFoundError(f"no runs in the sub-folders of {top}; for a tree of stored results give --table")
    if args.format:
        report = FORMATS[args.format](log_table(experiments, args))
    else:
        report = "\n".join(line for experiment in experiments for line in _lines(experiment, args))
        if args.multi_exp:
            report += "\n" + _average_line(experiments, args)
        report += "\n"
    sound = all(not result.problem for e in experiments for result in e.results) and not any(
        e.missing for e in experiments
    )
    return report, 0 if sound else 1


def _spread(values: Sequence[float], args: argparse.Namespace) -> float:
    """Population standard deviation, or what --ci95 asks for."""
    return population_ci95(values) if args.ci95 else statistics.pstdev(values)


def _lines(experiment: logs.Experiment, args: argparse.Namespace) -> list[str]:
    """A line per run, the problems, the mean with its spread."""
    lines = [f"Parsing files in {experiment.directory}"]
    for result in experiment.results:
        shown = result.problem if result.value is None else f"{args.keyword}: {result.value:.2f}%"
        lines.append(f"file: {result.path}. {shown}")
    if experiment.missing:
        lines.append(f"missing: seeds {numbers(experiment.missing)}")
    lines += [f"left out: {path}: it is not the folder of a seed, as those beside it are" for path in experiment.strays]
    if experiment.values:
        mean, spread = statistics.fmean(experiment.values), _spread(experiment.values, args)
        lines.append(f"* {args.keyword}: {mean:.2f}% +- {spread:.2f}%")
    return [*lines, ""]


def _average_line(experiments: Sequence[logs.Experiment], args: argparse.Namespace) -> str:
    """The mean over experiments of their means."""
    means = _means(experiments)
    if not means:
        return "Average performance: no results"
    return f"Average performance over {len(means)} experiments\n* {args.keyword}: {statistics.fmean(means):.2f}%"


def _means(experiments: Sequence[logs.Experiment]) -> list[float]:
    """The means of the experiments that have results."""
    return [statistics.fmean(experiment.values) for experiment in experiments if experiment.values]


def log_table(experiments: Sequence[logs.Experiment], args: argparse.Namespace) -> Table:
    """A row per experiment, and with --multi-exp the mean over experiments of their means."""
    which = "1.96 population standard deviations / root n" if args.ci95 else "population standard deviation"
    table = Table(f"{args.keyword} in percent", ["experiment", "n", args.keyword, "spread"], notes=[f"spread: {which}"])
    for experiment in experiments:
        values = experiment.values
        cells = [statistics.fmean(values), _spread(values, args)] if values else [None, None]
        table.rows.append([experiment.directory, len(values), *cells])
        table.notes += [f"left out: {r.path}: {r.problem}" for r in experiment.results if r.problem]
        table.notes += [f"left out: {path}: it is not the folder of a seed" for path in experiment.strays]
        if experiment.missing:
            table.notes.append(f"{experiment.directory}: no folders of seeds {numbers(experiment.missing)}")
    if args.multi_exp and (means := _means(experiments)):
        table.rows.append([f"average of {len(means)} experiments", None, statistics.fmean(means), None])
    return table


def tree_report(args: argparse.Namespace, seeds: Sequence[int]) -> tuple[str, int]:
    """The tables of a protocol over a tree, and the exit status: 1 if some run has no sound result.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the tree holds no runs of the protocol, --paired names no method of it, or CSV cannot hold it.
    """
    records = read_records(args.directory, from_logs=True)
    options = TableOptions(seeds, compare=args.compare != "none", source=args.source)
    tables = list(tables_of(records, args.table, options, args.directory).values())
    if args.metrics:
        tables = [metrics_table(records, args.table, args.metrics, options)]
    complete = all(table.complete for table in tables)
    if args.paired:
        tables += comparison(PROTOCOLS[args.table].records_of(records), *args.paired)[0].values()
    return written(tables, args.format or "text"), 0 if complete else 1


def written(tables: Sequence[Table], form: str) -> str:
    """Tables below each other; several as JSON are a list. ValueError for several as CSV."""
    if len(tables) > 1 and form == "json":
        return json_text([json.loads(FORMATS[form](table)) for table in tables])
    if len(tables) > 1 and form == "csv":
        raise ValueError(
            f"--format csv holds one table, and there are {len(tables)}: give json, or one --source and no --paired"
        )
    return "\n".join(FORMATS[form](table) for table in tables)


def _refuse_strays(args: argparse.Namespace) -> None:
    """Raise a ValueError for options that belong to the other of the two ways to read results."""
    logs_only = {"--ci95": args.ci95, "--test-log": args.test_log, "--multi-exp": args.multi_exp}
    logs_only["--keyword"] = args.keyword is not None
    tables_only = {"--paired": args.paired, "--compare": args.compare, "--source": args.source}
    tables_only["--metrics"] = args.metrics
    strays = [name for name, given in (logs_only if args.table else tables_only).items() if given]
    if strays:
        raise ValueError(f"{', '.join(strays)}: {'not together with' if args.table else 'only with'} --table")


@printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line: 0, 1 if runs lack a result (they are named), 2 for a mistake in the arguments."""
    args = build_parser().parse_args(argv)
    try:
        _refuse_strays(args)
        args.keyword = args.keyword or "accuracy"
        seeds = parse_seeds(args.seeds) if args.seeds else ()
        report, status = (tree_report if args.table else log_report)(args, seeds)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"parse_test_res.py: {error}\n")
        return 2
    sys.stdout.write(report)
    return status
