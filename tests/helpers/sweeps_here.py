"""Sweeps carried out in the process of the test: what a worker does, without starting one."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

from sweep import cli
from sweep.plan import Run
from sweep.worker import execute


def planned(words: Sequence[str]) -> list[Run]:
    """The runs of a line of `python -m sweep`."""
    before, opts = cli.split_opts(words)
    args = cli.build_parser().parse_args(before)
    cli.check_opts(opts)
    cli.complete_arguments(args)
    return cli.plan(args, cli.make_config(args, opts))


def sweep_here(words: Sequence[str]) -> tuple[list[Run], dict]:
    """Carry out a line; returns its runs and its table as JSON, which the line itself makes of what is complete."""
    runs = planned(words)
    with contextlib.redirect_stdout(io.StringIO()):
        for run in runs:
            assert Path(run.output_dir, "metrics.json").exists() or execute(run).kind == "done", run.output_dir
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as said:
        before, opts = cli.split_opts(words)
        assert cli.main([*before, "--format", "json", *opts]) == 0, said.getvalue()
    assert " 0 to do" in said.getvalue()
    return runs, json.loads(out.getvalue())


def metrics(run: Run) -> dict:
    """What a run left in its `metrics.json`."""
    return json.loads(Path(run.output_dir, "metrics.json").read_text())
