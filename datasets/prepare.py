"""Fetch data sets and put everything in place: `python -m datasets.prepare NAME... --root DATA`.

    python -m datasets.prepare caltech101 oxford_pets --root data
    python -m datasets.prepare all --root data --dry-run

Prints what is missing and how large it is, then fetches it (mirrors in order; run again to go on after an
interruption), verifies, unpacks, and shows the table of `datasets.check` without opening the images. What needs an
account or is to be had nowhere is named with the place where it belongs; an archive put there by hand is used.
Exit status: 0 all sets are usable, 1 something needed is missing, 2 the command was wrong.
"""

import dassl.ctrl_c  # noqa: F401  # isort: skip - before what takes seconds

import argparse
import logging
import os
import shutil
import sys

from yacs.config import CfgNode

from dassl.output import printable_streams
from dassl.utils import log_to_stdout

from . import catalogue, check, fetch
from .fewshot import FewShotDataset
from .sources import Part

logger = logging.getLogger(f"{__package__}.prepare")


def human(size: int) -> str:
    """A number of bytes for people."""
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def missing_parts(dataset: FewShotDataset) -> list[Part]:
    """The parts that are not in place."""
    return [part for part in dataset.parts if not fetch.is_ready(part, dataset.dataset_dir)]


def announce(plans: dict[str, tuple[FewShotDataset, list[Part]]], root: str) -> None:
    """Say what will be fetched, how large it is and how much room there is."""
    total, unknown = 0, 0
    for name, (dataset, parts) in plans.items():
        logger.info("%s -> %s%s", name, dataset.dataset_dir, "" if parts else ": everything is there")
        for part in parts:
            if not part.downloads:
                logger.info("  %s, by hand: %s", part.what, part.by_hand.format(folder=dataset.dataset_dir))
                continue
            size = fetch.size_of(part)
            total, unknown = total + (size or 0), unknown + (size is None)
            shown = "size unknown" if size is None else human(size)
            logger.info("  %s: %s, %s", part.what, shown, fetch.address(part.downloads[0]))
    if not any(parts for _, parts in plans.values()):
        return
    there = root
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    free = shutil.disk_usage(there).free
    more = f" and {unknown} part(s) of unknown size" if unknown else ""
    logger.info("To fetch: %s%s; free on the disk: %s", human(total), more, human(free))
    if 2 * total > free:
        logger.warning("That may not fit: an archive and what is in it lie side by side for a while.")


def prepare(name: str, dataset: FewShotDataset, keep_archives: bool, progress: bool = True) -> bool:
    """Put the parts of one data set in place; whether all that it needs is there."""
    usable = True
    for part in missing_parts(dataset):
        if fetch.is_ready(part, dataset.dataset_dir):  # an earlier part made it needless
            continue
        logger.info("%s: %s", name, part.what)
        try:
            fetch.obtain(part, dataset.dataset_dir, progress, keep_archives)
        except fetch.FetchError as error:
            usable = usable and not part.needed
            logger.warning("%s: %s%s", name, "" if part.needed else "(can do without) ", error)
        except OSError as error:  # of the disk, which the next data set may not need
            usable = False
            logger.warning("%s: %s: %s", name, error.filename or dataset.dataset_dir, error.strerror or error)
    return usable


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m datasets.prepare", description="Fetch data sets into --root.")
    made.add_argument("names", nargs="+", metavar="NAME", help="caltech101, Caltech101 ...; all: every benchmark")
    made.add_argument("--root", required=True, help="folder of all data sets")
    made.add_argument("--dry-run", action="store_true", help="only say what is missing and how large it is")
    made.add_argument("--keep-archives", action="store_true", help="do not delete archives after unpacking")
    return made


def _plans(configurations: dict[str, CfgNode]) -> dict[str, tuple[FewShotDataset, list[Part]]]:
    """Data set and missing parts by name; ValueError for one that is not fetched from anywhere."""
    plans = {}
    for name, cfg in configurations.items():
        dataset = catalogue.located(cfg)
        if not dataset.parts:
            raise ValueError(f"{name} is not fetched from anywhere: it makes its images or is given them")
        plans[name] = (dataset, missing_parts(dataset))
    return plans


@printable_streams()
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = build_parser()
    args = command.parse_args(arguments)
    try:
        configurations = catalogue.configurations(args.names, args.root)
        plans = _plans(configurations)
    except (OSError, ValueError) as error:
        command.error(str(error))
    announce(plans, os.path.abspath(args.root))
    if args.dry_run:
        return 0 if not any(parts for _, parts in plans.values()) else 1
    usable = [prepare(name, dataset, args.keep_archives) for name, (dataset, _) in plans.items()]
    reports = [check.examine(name, cfg, decode=False) for name, cfg in configurations.items()]
    logger.info("\n%s", check.table(reports))
    for report in reports:
        if not report.well:
            logger.info("%s", check.details(report, all_prompts=False))
    return 0 if all(usable) and all(report.well for report in reports) else 1


def command(arguments: list[str] | None = None) -> int:
    """Run as a program of its own: what is done is said on standard output."""
    log_to_stdout(__package__)
    return main(arguments)


if __name__ == "__main__":
    sys.exit(command())
