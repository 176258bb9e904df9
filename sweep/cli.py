"""The command line of sweeps.

    python -m sweep base2new --trainers ZeroshotCLIP CoOp APEX --datasets dtd eurosat --seeds 1-3 --root DATA

trains on the base classes, evaluates base and new, and prints the table. What is complete is skipped; what was
interrupted is resumed by the same line; nothing is deleted. `KEY VALUE` pairs at the end go to every run.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import timedelta

from tqdm import tqdm

from results.formats import FORMATS
from results.records import read_run
from results.seeds import parse_seeds
from results.tables import Table, base2new
from sweep.plan import PROTOCOLS, Run, Setting
from sweep.pool import Outcome, Pool, Slot
from sweep.recipes import ZERO_SHOT
from sweep.worker import Message

KEY = re.compile(r"[A-Z][A-Z0-9_]*\.[A-Za-z0-9_.]+")
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The arguments before the `KEY VALUE` pairs."""
    parser = argparse.ArgumentParser(
        prog="python -m sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", choices=sorted(PROTOCOLS), help="what to run")
    what = parser.add_argument_group("what")
    what.add_argument("--trainers", nargs="+", required=True, metavar="NAME", help="registered names, such as APEX")
    what.add_argument("--datasets", nargs="+", required=True, metavar="NAME", help="names in configs/datasets")
    what.add_argument("--seeds", default="1-3", help="such as 1-20 or 1,2,5 (default: %(default)s)")
    what.add_argument("--shots", type=int, default=16, help="training images per class (default: %(default)s)")
    what.add_argument(
        "--configs", nargs="+", default=[], metavar="TRAINER=NAME", help="configuration files other than the usual ones"
    )
    what.add_argument(
        "--root", default=os.environ.get("DATA", "../datasets"), help="data sets (default: $DATA or ../datasets)"
    )
    what.add_argument("--output", default="output", help="folder of all results (default: %(default)s)")
    how = parser.add_argument_group("how")
    how.add_argument("--jobs", type=int, help="runs at a time on the CPU (default without a GPU: the number of cores)")
    how.add_argument("--threads", type=int, default=1, help="CPU threads of each run (default: %(default)s)")
    how.add_argument("--gpus", help="GPUs to use, such as 0,1 (default: all)")
    how.add_argument("--per-gpu", type=int, default=1, help="runs at a time on each GPU (default: %(default)s)")
    how.add_argument("--dry-run", action="store_true", help="say what would be run and how much it is, then stop")
    how.add_argument("--redo", action="store_true", help="delete and repeat runs that were made with other settings")
    how.add_argument("--format", choices=FORMATS, default="text", help="of the table (default: %(default)s)")
    return parser


def split_opts(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments up to the first configuration key, and the `KEY VALUE` pairs from there on."""
    for index, word in enumerate(argv):
        if KEY.fullmatch(word):
            return list(argv[:index]), list(argv[index:])
    return list(argv), []


def make_setting(args: argparse.Namespace, opts: Sequence[str]) -> Setting:
    """What the runs share; ValueError for a malformed `--seeds` or `--configs`, or an unknown trainer."""
    import trainers  # noqa: F401 - registers what is in the folder
    from dassl.engine import TRAINER_REGISTRY
    from dassl.utils import check_availability

    for name in args.trainers:
        check_availability(name, TRAINER_REGISTRY.registered_names(), "trainer")
    configs = {}
    for pair in args.configs:
        trainer, sign, name = pair.partition("=")
        if not sign or trainer not in args.trainers:
            raise ValueError(
                f"--configs {pair}: write TRAINER=NAME with one of the --trainers ({', '.join(args.trainers)})"
            )
        configs[trainer] = name.removesuffix(".yaml")
    return Setting(
        root=args.root,
        output=args.output,
        shots=args.shots,
        seeds=parse_seeds(args.seeds),
        configs=configs,
        opts=tuple(opts),
        learnless=frozenset(ZERO_SHOT),
    )


def make_slots(args: argparse.Namespace) -> list[Slot]:
    """Where runs can be: `--gpus` times `--per-gpu`, or `--jobs` CPU places; by default all GPUs, else all cores."""
    import torch

    from dassl.utils import available_cpus

    if args.jobs is not None or (args.gpus is None and not torch.cuda.device_count()):
        return [Slot("", args.threads)] * max(args.jobs or available_cpus(), 1)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible or [str(index) for index in range(torch.cuda.device_count())]
    wanted = [int(index) for index in args.gpus.split(",")] if args.gpus else range(len(names))
    if any(index not in range(len(names)) for index in wanted):
        raise ValueError(f"--gpus {args.gpus}: there are {len(names)} GPUs, counted from 0")
    return [Slot(names[index], args.threads) for _ in range(args.per_gpu) for index in wanted]


class Bar:
    """The progress of a whole sweep on standard error, by image passes.

    Args:
        runs: those to do.
    """

    def __init__(self, runs: Sequence[Run]):
        from sweep.estimate import images

        self.work = {run: images(run) for run in runs}
        self.fraction = dict.fromkeys(runs, 0.0)
        self.over = self.failed = 0
        interval = 0.5 if sys.stderr.isatty() else 30
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"
        self.bar = tqdm(total=sum(self.work.values()), bar_format=form, smoothing=0, mininterval=interval)
        self._describe()

    def __call__(self, run: Run, message: Message) -> None:
        """Take in what a worker told about a run."""
        over = message.kind != "progress"
        fraction = 1.0 if over else 0.95 * message.fraction
        self.bar.update(self.work[run] * max(fraction - self.fraction[run], 0))
        self.fraction[run] = max(fraction, self.fraction[run])
        if over:
            self.over += 1
            self.failed += message.kind == "failed"
            self._describe()
        if message.kind == "failed":
            self.bar.write(f"failed: {run.output_dir}: {message.reason}", file=sys.stderr)

    def _describe(self) -> None:
        failed = f", {self.failed} failed" if self.failed else ""
        self.bar.set_description_str(f"{self.over}/{len(self.work)} runs{failed}")

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()


def describe(complete: Sequence[Run], todo: Sequence[Run], slots: Sequence[Slot], output: str) -> str:
    """What a dry run says: every run to do as a line of train.py, then counts, time and disk."""
    from sweep.estimate import estimate

    lines = [f"python train.py {shlex.join(run.argv)}" for run in todo]
    trainings = sum("--eval-only" not in run.argv for run in todo)
    lines.append(
        f"{len(todo)} runs to do ({trainings} trainings, {len(todo) - trainings} evaluations), "
        f"{len(complete)} complete, {len(slots)} at a time"
    )
    guess = estimate(todo, output)
    if guess.seconds is None:
        lines.append(f"time and disk: unknown until a run of each kind is complete below {output}")
    else:
        span = timedelta(seconds=round(guess.seconds / len(slots)))
        lines.append(f"about {span} and {guess.disk / 1e6:.1f} MB, by {guess.measured} finished runs below {output}")
    return "\n".join(lines) + "\n"


def table_of(runs: Sequence[Run], setting: Setting, datasets: Sequence[str], trainers: Sequence[str]) -> Table:
    """The protocol's table of the runs, as they lie on disk."""
    records = [record for run in runs if (record := read_run(run.output_dir))]
    return base2new(records, setting.seeds, [*datasets, *trainers])


def commands(args: argparse.Namespace, setting: Setting) -> list[str]:
    """For each row of the table, the line that makes it."""
    lines = []
    for dataset in args.datasets:
        for trainer in args.trainers:
            words = ["python", "-m", "sweep", args.protocol, "--trainers", trainer, "--datasets", dataset]
            words += ["--seeds", args.seeds, "--shots", str(args.shots), "--root", args.root, "--output", args.output]
            if trainer in setting.configs:
                words += ["--configs", f"{trainer}={setting.configs[trainer]}"]
            lines.append(shlex.join([*words, *setting.opts]))
    return lines


def sweep(args: argparse.Namespace, opts: Sequence[str]) -> int:
    """Carry out a sweep; returns the exit status.

    Raises:
        ValueError, FileNotFoundError: a mistake in the arguments, found before anything was started.
    """
    from sweep.state import examine, redo

    setting, slots = make_setting(args, opts), make_slots(args)
    runs = PROTOCOLS[args.protocol](setting, args.trainers, args.datasets)
    if args.redo and not args.dry_run:
        for run in redo(runs):
            sys.stderr.write(f"deleted {run.output_dir}\n")
    progress = examine(runs)
    if args.dry_run:
        sys.stdout.write(describe(progress.complete, progress.todo, slots, args.output))
        return 0
    sys.stderr.write(f"{len(progress.complete)} runs complete, {len(progress.todo)} to do\n")
    outcome = Outcome()
    if progress.todo:
        bar = Bar(progress.todo)
        try:
            outcome = Pool(slots, os.path.join(args.output, "logs"), bar).work(progress.todo)
        finally:
            bar.close()
    table = table_of(runs, setting, args.datasets, args.trainers)
    sys.stdout.write(FORMATS[args.format](table))
    if args.format == "text":
        sys.stdout.write("\n".join(["", "Each row again:", *(f"  {line}" for line in commands(args, setting))]) + "\n")
    for run, reason in outcome.failed.items():
        sys.stderr.write(f"failed: {run.output_dir}: {reason}\n")
    return 1 if outcome.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line: 0 if all runs are complete, 1 if some failed, 2 for a mistake in the arguments."""
    words, opts = split_opts(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    try:
        return sweep(args, opts)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"sweep: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same line goes on from here\n")
        return INTERRUPTED
