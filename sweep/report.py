"""What a sweep says: before it starts (dry run), and at its end."""

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from dassl.utils import atomic_write
from protocols import PROTOCOLS
from results.layout import USUAL_SOURCE
from results.records import Record, read_run
from results.settings import only_comparable
from results.statistics import Summary, summarise
from results.tables import Table, TableOptions, accuracies
from sweep.grid import applies
from sweep.packs import arguments, packing
from sweep.plan import Run, SeedGroup, SweepConfig

AVERAGES = "average_results.txt"
FOLDS = ("folds", None), ("repeats", None)


def describe(
    complete: Sequence[Run],
    packs: Sequence[SeedGroup],
    untrained: Sequence[str],
    slots: int,
    output: str,
    diverged: Mapping[Run, str],
) -> str:
    """A dry run's text: what is to do as lines of train.py, then counts, time and disk.

    Args:
        complete: runs that need not be done.
        packs: the others.
        untrained: directories that runs to do need, where no training is complete or to do.
        slots: runs at a time.
        output: folder of all results; finished runs there tell how long one takes.
        diverged: runs that are not tried, with reasons.
    """
    from sweep.estimate import estimate

    todo = [run for pack in packs for run in pack]
    lines = [f"python train.py {shlex.join(arguments(pack))}" for pack in packs]
    lines += packing(packs)
    lines += [f"not trained yet: {directory}" for directory in untrained]
    lines += [f"{run.output_dir}: {reason}" for run, reason in diverged.items()]
    trainings = sum(run.trains for run in todo)
    lines.append(
        f"{len(todo)} runs to do ({trainings} trainings, {len(todo) - trainings} evaluations), "
        f"{len(complete)} complete, {slots} at a time"
    )
    guess = estimate(todo, output)
    kept = f"; predictions take up to {guess.predictions / 1e6:.1f} MB" if guess.predictions else ""
    if guess.seconds is None:
        lines.append(f"time and disk: unknown until a run of each kind is complete below {output}{kept}")
    else:
        span = timedelta(seconds=round(guess.seconds / slots))
        lines.append(
            f"about {span} and {guess.disk / 1e6:.1f} MB, by {guess.measured} finished runs below {output}{kept}"
        )
    return "\n".join(lines) + "\n"


def records_of(runs: Sequence[Run]) -> list[Record]:
    """What lies on disk of the runs; those that cannot be averaged have a problem."""
    return only_comparable([record for run in runs if (record := read_run(run.output_dir, place=run.place))])


def table_of(protocol: str, part: str, runs: Sequence[Run], options: TableOptions) -> Table:
    """The table of the runs as they lie on disk: the protocol's, or, for a part of it, accuracy and macro F1."""
    records = records_of(runs)
    if part:
        return accuracies(records, f"{protocol}, {part}", options.seeds, options.order)
    return PROTOCOLS[protocol].table(records, options)


def commands(args: argparse.Namespace, config: SweepConfig, runs: Sequence[Run]) -> list[str]:
    """For each data set and method of the table, the line that makes its rows (all sets at once for a transfer)."""
    lines = []
    together = PROTOCOLS[args.protocol].follow is not None  # what is chosen depends on all of them
    for dataset, trainer in dict.fromkeys((run.place.trained_on, run.place.trainer) for run in runs):
        if together and trainer != runs[0].place.trainer:
            continue
        words = [args.protocol, "--trainers", *(args.trainers if together else [trainer])]
        tested = [run.place.dataset for run in runs if run.place.trainer == trainer and run.place.kind.has_source]
        if tested or not PROTOCOLS[args.protocol].has_source:
            named = dict.fromkeys(tested) or [dataset]
            files = [config.files.get(name, name) for name in named]
            for flag, folders in (("--datasets", False), ("--dataset-folder", True)):
                own = [file for file in files if (file in args.dataset_folder) == folders]
                words += [flag, *own] if own else []
        words += ["--seeds", args.seeds, "--shots", *map(str, args.shots), "--root", args.root, "--output", args.output]
        named = [pair for pair in args.configs if together or pair.partition("=")[0].lower() == trainer.lower()]
        words += ["--configs", *named] if named else []
        for axis in args.grid:
            words += ["--grid", *axis] if together or applies(axis[0].partition("=")[0], trainer) else []
        words += ["--threads", str(args.threads)] if args.threads != 1 else []  # as many threads, so many digits
        for name, usual in (("part", ""), ("load-epoch", ""), ("variant", ""), ("source", USUAL_SOURCE), *FOLDS):
            value = getattr(args, name.replace("-", "_"))
            words += [f"--{name}", str(value)] if value != usual else []
        lines.append(f"python -m sweep {shlex.join([*words, *config.opts])}")
    return lines


def write_averages(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """Average accuracy and macro F1 over the seeds of each data set and method, also in a file beside the seeds.

    Returns the text, and which files could not be written. The last two lines are those of the official scripts. An
    evaluator of others may give no macro F1.
    """
    groups: dict[Path, list[Record]] = {}
    folders = {os.path.abspath(run.output_dir): Path(run.output_dir).parent for run in runs}
    for record in records_of(runs):
        if not record.problem:
            groups.setdefault(folders[record.path], []).append(record)
    texts, unwritten = [], []
    for folder, records in groups.items():
        measures = {"accuracy": summarise([record.accuracy for record in records])}
        if all("macro_f1" in record.metrics for record in records):
            measures["macro F1"] = summarise([record.metrics["macro_f1"] for record in records])
        lines = [_spread(name, measure) for name, measure in measures.items()]
        lines += [f"Average {name[0].upper()}{name[1:]}: {measure.mean:.2f}%" for name, measure in measures.items()]
        text = "\n".join([*lines, ""])
        try:
            with atomic_write(folder / AVERAGES) as file:
                file.write(text)
        except OSError as error:
            unwritten.append(str(error))
        texts.append(f"{folder}\n{text}")
    return "\n".join(texts), unwritten


def _spread(what: str, summary: Summary) -> str:
    if summary.sd is None:
        return f"{what}: n = 1"
    return f"{what}: standard deviation (n - 1) {summary.sd:.2f}, 95% t interval +- {summary.ci95:.2f}, n = {summary.n}"
