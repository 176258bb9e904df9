"""The command `apexvl`: one subcommand for each program of the repository.

    apexvl train --trainer APEX ...        one run
    apexvl sweep base2new --trainers ...   many runs, and their table
    apexvl predict RUN photo.jpg           what a run learned, applied to pictures

`apexvl COMMAND --help` says what each takes.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from apexvl import __version__
from dassl.output import printable_streams

COMMANDS = {
    "train": ("apexvl.programs.train:main", "train and evaluate one method on one data set"),
    "sweep": ("apexvl.sweep.cli:main", "many runs, and their table"),
    "predict": ("apexvl.programs.predict:main", "class probabilities of pictures"),
    "results": ("apexvl.results.__main__:main", "report, tables and figures of stored runs; --audit"),
    "tables": ("apexvl.results.cli:main", "a table of stored runs, or means over logs"),
    "prepare": ("apexvl.datasets.prepare:command", "fetch data sets"),
    "check": ("apexvl.datasets.check:command", "look at data sets"),
    "lpclip": ("apexvl.lpclip.__main__:main", "linear probe on frozen features"),
    "interpret": ("apexvl.interpret_prompts.__main__:main", "nearest words of learned contexts"),
}


def build_parser() -> argparse.ArgumentParser:
    """The words before and including the subcommand; what follows is its own."""
    each = "\n".join(f"  {name:10}{summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="apexvl",
        description=f"{__doc__}\ncommands:\n{each}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"apexvl {__version__}")
    plugin = "a Python file that registers a method or a data set of one's own (also: $APEXVL_PLUGINS)"
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help=plugin)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those above")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    return parser


@printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit status."""
    args = build_parser().parse_args(argv)
    from adaptation.plugins import VARIABLE, load_plugins

    if args.plugin:  # in the environment, where the worker processes of a sweep look
        named = [*map(os.path.abspath, args.plugin), *filter(None, [os.environ.get(VARIABLE)])]
        os.environ[VARIABLE] = os.pathsep.join(named)
    try:
        load_plugins()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"apexvl: {error}\n")
        return 2
    module, _, function = COMMANDS[args.command][0].partition(":")
    sys.argv[0] = f"apexvl {args.command}"  # what argparse calls the program
    return getattr(import_module(module), function)(args.arguments)


if __name__ == "__main__":
    sys.exit(main())
