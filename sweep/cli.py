"""The command line of sweeps.

    python -m sweep base2new --trainers ZeroshotCLIP CoOp APEX --datasets dtd eurosat --seeds 1-3 --root DATA

trains on the base classes, evaluates base and new, and prints the table. What is complete is skipped; what was
interrupted is resumed by the same line; nothing is deleted unless --redo says so. KEY VALUE pairs at the end go to all
runs, `--grid KEY VALUES` is a sweep over a key: a folder level and a row of the table for each value.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from commands.completion import offers
from commands.listing import List
from commands.names import configs, dataset_name, trainer_name
from commands.words import refuse_unknown_flags, split_pairs
from dassl.output import clean, printable_streams
from protocols import PROTOCOLS
from results.formats import FORMATS
from results.layout import BENCHMARKS, IMAGENET_VARIANTS, USUAL_SOURCE
from results.seeds import parse_seeds
from results.tables import TableOptions
from sweep.grid import Request, read_axes, request
from sweep.plan import Run, SeedGroup, SweepConfig
from sweep.worker import WorkerError, is_sequel

if TYPE_CHECKING:  # the rest is imported where it is used: PyTorch takes seconds, --help and mistakes need none
    from sweep import slurm
    from sweep.pool import Outcome, Slot

YAML = (".yaml", ".yml")
KEY = re.compile(r"[A-Z][A-Z0-9_]*\.[A-Za-z0-9_.]+")
CAPITALS = re.compile(r"[A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_.]+)?")
GIVEN = {
    "SEED": "--seeds", "OUTPUT_DIR": "--output", "RESUME": "--output", "TRAINER.NAME": "--trainers",
    "DATASET.ROOT": "--root", "DATASET.NAME": "--datasets", "DATASET.NUM_SHOTS": "--shots",
    "DATASET.SUBSAMPLE_CLASSES": "the protocol",
}  # fmt: skip
INTERRUPTED = 130
NUMBERED = (*BENCHMARKS, *IMAGENET_VARIANTS)


def _with_source() -> str:
    """The protocols that test on other data sets than they train on: `xd and dg`."""
    return " and ".join(sorted((name for name, known in PROTOCOLS.items() if known.has_source), reverse=True))


def build_parser() -> argparse.ArgumentParser:
    """The arguments before the KEY VALUE pairs."""
    each = "\n".join(f"  {name:10}{known.summary}" for name, known in sorted(PROTOCOLS.items()))
    parser = argparse.ArgumentParser(
        prog="python -m sweep",
        description=f"{__doc__}\nprotocols:\n{each}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("protocol", choices=sorted(PROTOCOLS), help="what to run")
    what = parser.add_argument_group("what")
    what.add_argument("--trainers", nargs="+", required=True, metavar="NAME", help="registered names, in any case")
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(NUMBERED))
    names = f"names in configs/datasets (default: the papers'), YAML files of one's own, or numbers: {numbered}"
    what.add_argument("--datasets", nargs="+", metavar="NAME", help=names)
    what.add_argument(
        "--source", default=USUAL_SOURCE, metavar="NAME", help=f"of {_with_source()} (default: %(default)s)"
    )
    what.add_argument("--seeds", help="such as 1-20 or 1,2,5 (default: the paper's)")
    what.add_argument("--shots", nargs="+", type=int, help="training images per class (default: the papers')")
    files = "configuration files other than the usual ones; several of one trainer are all run"
    what.add_argument("--configs", nargs="+", default=[], metavar="TRAINER=NAME", help=files)
    what.add_argument("--backbone", default="", help="of all runs, such as ViT-B/16, in the place of the files'")
    grid = "a key and the values to run it with; several --grid make all combinations"
    what.add_argument("--grid", nargs="+", action="append", default=[], metavar=("KEY", "VALUE"), help=grid)
    own = "pictures of one's own in class folders, each a data set that needs no file"
    what.add_argument("--dataset-folder", nargs="+", default=[], metavar="FOLDER", help=own)
    what.add_argument("--part", choices=("train", "test"), default="", help="only the trainings, or only what follows")
    what.add_argument("--load-epoch", default="", help="epoch of the checkpoint to test (default: the last)")
    what.add_argument("--variant", default="", help="a level of directories, such as nctx16_cscFalse_ctpend")
    what.add_argument("--folds", type=int, help="of choose: parts that the support images are dealt in (default: 4)")
    what.add_argument("--repeats", type=int, help="of choose: how often they are dealt (default: 2)")
    data = os.environ.get("DATA", "../datasets")
    what.add_argument("--root", default=data, help="folder of the data sets (default: $DATA or ../datasets)")
    what.add_argument("--output", default="output", help="folder of all results (default: %(default)s)")
    how = parser.add_argument_group("how")
    how.add_argument("--jobs", type=int, help="runs at a time on CPUs (default without a GPU: the number of cores)")
    how.add_argument("--threads", type=int, default=1, help="CPU threads of each run (default: %(default)s)")
    stack = "seeds of a training in one process, computed together (default: %(default)s)"
    how.add_argument("--stack", type=int, default=1, help=stack)
    stall = (
        "minutes without a sign of life (a process that is stopped, a file system that hangs) after which a run is "
        "ended and counts as failed; 0 for never (default: %(default)s)"
    )
    how.add_argument("--stall", type=float, default=30.0, metavar="MINUTES", help=stall)
    how.add_argument("--gpus", help="GPUs to use, such as 0,1 (default: all)")
    how.add_argument("--per-gpu", type=int, default=1, help="runs at a time on each GPU (default: %(default)s)")
    where = parser.add_argument_group("where")
    where.add_argument("--launcher", choices=("local", "slurm"), default="local", help="this machine, or a cluster")
    where.add_argument("--partition", default="", help="of the cluster")
    where.add_argument("--time", type=int, default=60, help="minutes that a job may take (default: %(default)s)")
    where.add_argument("--gpus-per-job", type=int, default=0, help="(default: %(default)s)")
    where.add_argument("--cpus-per-job", type=int, default=1, help="(default: %(default)s)")
    where.add_argument("--memory-gb", type=int, default=0, help="of a job (default: the cluster's)")
    more = "further parameters, named as sbatch names them, such as account=lab"
    where.add_argument("--slurm", nargs="+", default=[], metavar="NAME=VALUE", help=more)
    how.add_argument("--dry-run", action="store_true", help="say what would be run and how much it is, then stop")
    how.add_argument("--redo", action="store_true", help="delete and repeat runs that were made with other settings")
    how.add_argument("--format", choices=FORMATS, default="text", help="of the table (default: %(default)s)")
    how.add_argument("--list", action=List, help=List.HELP)
    how.add_argument("--average", action="store_true", help="also write average_results.txt beside the seeds")
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of a command line as people write it, and its KEY VALUE pairs.

    Raises:
        ValueError: a flag that there is not.
    """
    parser = build_parser()
    offers(parser)
    words, opts = split_opts(split_pairs(argv, parser))
    refuse_unknown_flags(words, parser)
    return parser.parse_args(words), opts


def split_opts(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments up to the first configuration key, and the `KEY VALUE` pairs from there on."""
    for index, word in enumerate(argv):
        if CAPITALS.fullmatch(word) and _is_key(word, argv[index - 1] if index else ""):
            return list(argv[:index]), list(argv[index:])
    return list(argv), []


def _is_key(word: str, before: str) -> bool:
    """Whether a word in capitals is a configuration key, and no file, nor the value of the flag before it."""
    from dassl.config.defaults import DEFAULTS

    if before == "--grid":
        return False
    if KEY.fullmatch(word):
        known = isinstance(DEFAULTS.get(word.partition(".")[0]), dict)
        return known or not (before.startswith("--") or Path(word).suffix.lower() in YAML)
    return word in DEFAULTS and not isinstance(DEFAULTS[word], dict)


def check_opts(opts: Sequence[str]) -> None:
    """Raise a ValueError for a key that the sweep itself gives each run, and its directory names."""
    for key in opts[::2]:
        if key in GIVEN:
            raise ValueError(f"{key}: each run of a sweep has its own, which comes from {GIVEN[key]}")


def complete_arguments(args: argparse.Namespace) -> None:
    """Put the protocol's own data sets, seeds and shots where none are given, and registered names for trainers.

    Raises:
        ValueError: an unknown trainer or data set, a number that is too small, a flag that the protocol has no use for.
    """
    protocol = PROTOCOLS[args.protocol]
    args.dataset_folder = [os.path.normpath(folder) for folder in args.dataset_folder]
    if args.dataset_folder:
        args.datasets = [*(args.datasets or ()), *args.dataset_folder]
    args.seeds = args.seeds or protocol.seeds
    args.shots = list(dict.fromkeys(args.shots or protocol.shots))
    _check_numbers(args)
    if args.source != USUAL_SOURCE and not protocol.has_source:
        raise ValueError(
            f"--source {args.source}: {args.protocol} tests on what it trains on; {_with_source()} have a source"
        )
    if args.variant and not protocol.has_variant:
        raise ValueError(f"--variant {args.variant}: the directories of {args.protocol} have no such level")
    if (args.folds or args.repeats) and not protocol.follow:
        raise ValueError(f"--folds and --repeats: {args.protocol} deals no support images in folds")
    numbers = {str(number): name for number, name in enumerate(NUMBERED)}
    named = [numbers.get(name, name) for name in args.datasets or protocol.datasets]
    args.datasets = list(dict.fromkeys(name if name in args.dataset_folder else dataset_name(name) for name in named))
    args.source = dataset_name(args.source)
    own_files((*args.datasets, args.source), args.dataset_folder)
    parse_seeds(args.seeds)
    _complete_names(args)


def _complete_names(args: argparse.Namespace) -> None:
    """Put registered names for trainers; ValueError for an unknown trainer or data set, with the nearest known one."""
    from dassl.utils import check_availability

    args.trainers = list(dict.fromkeys(map(trainer_name, args.trainers)))
    known_sets = [path.stem for path in (configs() / "datasets").glob("*.yaml")]
    for name in (*args.datasets, args.source):
        if Path(name).suffix.lower() not in YAML and name not in args.dataset_folder:
            check_availability(name, known_sets, "data set")


def _check_numbers(args: argparse.Namespace) -> None:
    """Raise a ValueError for the first number that is too small or without use."""
    numbers = {"--shots": min(args.shots), "--threads": args.threads, "--per-gpu": args.per_gpu, "--jobs": args.jobs}
    numbers |= {"--folds": args.folds, "--repeats": args.repeats}
    for flag, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{flag} {value}: must be at least 1")
    if not 0 <= args.stall < math.inf:
        raise ValueError(f"--stall {args.stall}: minutes, 0 for never")
    if args.gpus and args.jobs and args.launcher == "local":
        raise ValueError(
            f"--jobs {args.jobs} counts runs on CPUs, --gpus {args.gpus} names GPUs (--per-gpu counts there)"
        )
    if args.gpus and not re.fullmatch(r"\d+(,\d+)*", args.gpus):
        raise ValueError(f"--gpus {args.gpus}: write numbers, such as 0,1")


def own_files(datasets: Sequence[str], folders: Sequence[str] = ()) -> dict[str, str]:
    """YAML files and folders among the data sets, by the names that their runs have: those without suffix or parents.

    Raises:
        ValueError: two of one name, or one that has the name of a file in configs/datasets.
        FileNotFoundError: no such file or folder.
    """
    files: dict[str, str] = {}
    for path in map(Path, datasets):
        folder = str(path) in folders
        if path.suffix.lower() not in YAML and not folder:
            continue
        name = path.absolute().name if folder else path.stem
        if not (path.is_dir() if folder else path.is_file()):
            flag, what = ("--dataset-folder", "folder") if folder else ("--datasets", "file")
            raise FileNotFoundError(f"{flag} {path}: there is no such {what}")
        if folder and (configs() / "datasets" / f"{name}.yaml").is_file():
            raise ValueError(f"--dataset-folder {path}: a data set of this project is called {name}: rename the folder")
        if files.setdefault(name, str(path)) != str(path):
            raise ValueError(f"--datasets {files[name]} {path}: two of one name, which their folders have")
    return files


def read_configs(args: argparse.Namespace) -> dict[str, list[str]]:
    """The configuration files that are named for each trainer, in the order named.

    Raises:
        ValueError: malformed, or of a trainer that does not take part.
        FileNotFoundError: there is no such file.
    """
    named: dict[str, list[str]] = {}
    known = {name.lower(): name for name in args.trainers}
    for pair in args.configs:
        trainer, sign, name = pair.partition("=")
        trainer = known.get(trainer.lower(), "")
        if not sign or not trainer:
            takes = ", ".join(args.trainers)
            raise ValueError(f"--configs {pair}: write TRAINER=NAME with one of the --trainers ({takes})")
        named.setdefault(trainer, []).append(name.removesuffix(".yaml"))
    return {trainer: list(dict.fromkeys(names)) for trainer, names in named.items()}


def make_config(args: argparse.Namespace, opts: Sequence[str]) -> SweepConfig:
    """What the runs share; of several configuration files of a trainer it has the first.

    Raises:
        ValueError: malformed `--seeds` or `--configs`; `--backbone` beside its key.
    """
    backbone = ["MODEL.BACKBONE.NAME", args.backbone] if args.backbone else []
    if backbone and backbone[0] in (*opts[::2], *(words[0] for words in args.grid)):
        raise ValueError(f"--backbone {args.backbone} and {backbone[0]} say the same: give one of them")
    return SweepConfig(
        root=args.root,
        output=args.output,
        shots=args.shots[0],
        seeds=parse_seeds(args.seeds),
        configs={trainer: names[0] for trainer, names in read_configs(args).items()},
        opts=(*backbone, *opts),
        source=args.source,
        variant=args.variant,
        load_epoch=args.load_epoch,
        **{name: value for name in ("folds", "repeats") if (value := getattr(args, name))},
        files=own_files((*args.datasets, args.source), args.dataset_folder),
    )


def make_slots(args: argparse.Namespace) -> "list[Slot]":
    """Where runs can be: `--gpus` times `--per-gpu`, or `--jobs` CPU places; by default all GPUs, else all cores."""
    import torch

    from dassl.utils import available_cpus
    from sweep.pool import Slot

    if args.jobs is not None or (args.gpus is None and not torch.cuda.device_count()):
        return [Slot("", args.threads)] * max(args.jobs or available_cpus(), 1)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible or [str(index) for index in range(torch.cuda.device_count())]
    by_number = {str(number): name for number, name in enumerate(names)}
    wanted = args.gpus.split(",") if args.gpus else list(by_number)
    if not set(wanted) <= by_number.keys():
        raise ValueError(f"--gpus {args.gpus}: there are {len(names)} GPUs, counted from 0")
    return [Slot(by_number[number], args.threads) for _ in range(args.per_gpu) for number in wanted]


def plan(args: argparse.Namespace, config: SweepConfig) -> list[Run]:
    """All runs of the protocol, both parts of it, each once."""
    return requested_runs(args, config).runs


def requested_runs(args: argparse.Namespace, config: SweepConfig) -> Request:
    """All runs of the protocol, what of the request cannot be served, and why; raises as `sweep.grid.request`."""
    protocol, datasets = PROTOCOLS[args.protocol], [config.name(dataset) for dataset in args.datasets]
    axes, files = read_axes(args.grid, config.opts, GIVEN), read_configs(args)
    if protocol.follow and (axes or any(len(names) > 1 for names in files.values())):
        raise ValueError(f"{args.protocol} compares methods: give each one configuration, and no --grid")
    config = replace(config, source=config.name(config.source))
    return request(protocol.plan, config, args.trainers, datasets, args.shots, axes, files)


def until_asked_to_end(args: argparse.Namespace, opts: Sequence[str]) -> int:
    """Carry out a sweep, until it is over or a signal asks this process to end; returns the exit status.

    Raises as `sweep`.
    """
    complete_arguments(args)
    from dassl.utils.interruption import CONTINUE, Interrupted, interruptible

    try:
        with interruptible():
            return sweep(args, opts)
    except Interrupted as interrupted:
        sys.stderr.write(f"\nsweep: {interrupted}\n")
        return CONTINUE


def sweep(args: argparse.Namespace, opts: Sequence[str]) -> int:
    """Carry out a sweep; returns the exit status.

    Raises:
        ValueError, OSError: a mistake in the arguments, found before anything was started.
        WorkerError: worker processes cannot start.
    """
    from sweep.pool import Outcome
    from sweep.report import describe
    from sweep.state import examine, needs_root, redo

    config, slots = make_config(args, opts), make_slots(args)
    asked_for = requested_runs(args, config)
    runs = asked_for.runs
    for remark in (*asked_for.remarks, *(f"left out: {what}: {why}" for what, why in asked_for.left_out.items())):
        sys.stderr.write(f"{remark}\n")
    if args.redo and not args.dry_run:
        for run in redo(runs):
            sys.stderr.write(f"deleted {run.output_dir}\n")
    progress = examine(runs)
    chosen = [run for run in runs if args.part in ("", run.place.kind.part)]
    asked = {run.output_dir for run in chosen}
    todo = [run for run in progress.todo if run.output_dir in asked]
    complete = [run for run in progress.complete if run.output_dir in asked]
    diverged = {run: reason for run, reason in progress.diverged.items() if run.output_dir in asked}
    there = {run.output_dir for run in (*progress.complete, *todo)}
    untrained = list(dict.fromkeys(run.needs for run in todo if run.needs and run.needs not in there))
    packs = pack(args, todo)
    if args.dry_run:
        sys.stdout.write(describe(complete, packs, untrained, len(slots), args.output, diverged))
        return 1 if asked_for.left_out else 0
    if not os.path.isdir(args.root) and any(args.root in run.argv and needs_root(run) for run in todo):
        raise FileNotFoundError(f"--root {args.root}: there is no such folder (DATA in the environment names it too)")
    if untrained:
        raise ValueError(f"not trained yet: {', '.join(untrained[:3])}; do that first, or leave out --part test")
    if todo:
        require_all(todo)
    known = f", {len(diverged)} not tried, for what diverged before" if diverged else ""
    sys.stderr.write(f"{len(complete)} runs complete, {len(todo)} to do{known}\n")
    follow = PROTOCOLS[args.protocol].follow
    if follow and todo:
        sys.stderr.write(f"{follow.cost(config, todo)}\n")
    outcome = work(packs, args, slots) if todo else Outcome()
    outcome.failed |= diverged
    agree = conclude(args, config, chosen, outcome, asked_for.left_out)
    agree = (not follow or follow_up(args, config, chosen, slots)) and agree
    return 0 if agree and not outcome.failed and not asked_for.left_out else 1


def require_all(runs: Sequence[Run]) -> None:
    """Make sure once that what runs need is there; ValueError with a line for each thing that is not."""
    from sweep.preflight import missing

    if said := missing(runs):
        raise ValueError("\nsweep: ".join([*said, "nothing was started"]))


def follow_up(args: argparse.Namespace, config: SweepConfig, done: Sequence[Run], slots: "list[Slot]") -> bool:
    """Carry out what follows from the results of the runs; returns whether all of it is complete and agrees."""
    from sweep.pool import Outcome
    from sweep.report import records_of
    from sweep.state import examine

    follow = PROTOCOLS[args.protocol].follow
    runs = follow.runs(config, records_of(done)) if follow and not args.part else []
    if not follow or not runs:
        return True
    progress = examine(runs)
    outcome = work(pack(args, progress.todo), args, slots) if progress.todo else Outcome()
    outcome.failed |= progress.diverged
    sys.stdout.write("\n")
    further = argparse.Namespace(**{**vars(args), "protocol": follow.protocol, "folds": None, "repeats": None})
    further.trainers = list(dict.fromkeys(run.place.trainer for run in runs))
    return conclude(further, config, runs, outcome) and not outcome.failed


def pack(args: argparse.Namespace, todo: list[Run]) -> list[SeedGroup]:
    """The runs to do in packs, one process each, of as many seeds as `--stack` says."""
    from sweep.packs import make_packs

    if args.stack < 1:
        raise ValueError(f"--stack {args.stack}: at least one seed is trained in a process")
    return make_packs(todo, args.stack)


def work(packs: list[SeedGroup], args: argparse.Namespace, slots: "list[Slot]") -> "Outcome":
    """Carry out the runs here or on a cluster, with a progress bar."""
    from sweep import slurm
    from sweep.pool import Pool
    from sweep.progress import Bar

    logs = os.path.join(args.output, "logs")
    os.makedirs(logs, exist_ok=True)
    bar = Bar([run for pack in packs for run in pack])
    try:
        if args.launcher == "slurm":
            return slurm.work(packs, slurm_options(args, logs), bar)
        return Pool(slots, logs, bar, stall=60 * args.stall).work(packs)
    finally:
        bar.close()


def slurm_options(args: argparse.Namespace, logs: str) -> "slurm.Options":
    """What is asked of SLURM; ValueError for a malformed `--slurm`."""
    from sweep import slurm

    more = dict(pair.split("=", 1) for pair in args.slurm if "=" in pair)
    if len(more) < len(args.slurm):
        raise ValueError(f"--slurm {' '.join(args.slurm)}: write NAME=VALUE, each name once")
    return slurm.Options(
        folder=os.path.join(logs, "slurm"),
        partition=args.partition,
        minutes=args.time,
        gpus=args.gpus_per_job,
        cpus=args.cpus_per_job,
        memory_gb=args.memory_gb,
        at_a_time=args.jobs or 256,
        threads=args.threads,
        more=more,
    )


def conclude(
    args: argparse.Namespace,
    config: SweepConfig,
    runs: Sequence[Run],
    outcome: "Outcome",
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Write the table, the lines that make its rows, the averages if asked for, what failed, and what does not agree.

    Returns whether everything does; what was left out is said below the table.
    """
    from results.audit import audit_records
    from sweep.report import commands, records_of, table_of, write_averages

    order = [*map(config.name, args.datasets), *args.trainers]
    options = TableOptions(config.seeds, order, source=config.name(config.source))
    table = table_of(args.protocol, args.part, runs, options)
    table.notes += [f"left out: {what}: {why}" for what, why in left_out.items()]
    sys.stdout.write(FORMATS[args.format](table))
    if args.format == "text":
        lines = commands(args, config, runs)
        sys.stdout.write("\n".join(["", "Each row again:", *(f"  {line}" for line in lines)]) + "\n")
    said = [f"audit: {line}" for line in audit_records(records_of(runs))]
    if args.average:
        text, unwritten = write_averages(runs)
        sys.stdout.write("\n" + text)
        said += [f"not written: {reason}" for reason in unwritten]
    sys.stderr.write("".join(f"failed: {clean(line)}\n" for line in failures(outcome.failed)))
    sys.stderr.write("".join(f"{clean(line)}\n" for line in said))
    return not said


def failures(failed: Mapping[Run, str]) -> list[str]:
    """A line for each reason for which runs failed, with the first of them and how many there are."""
    by_reason: dict[str, list[Run]] = {}
    for run, reason in failed.items():
        by_reason.setdefault("not tried: what they need failed" if is_sequel(reason) else reason, []).append(run)
    return [
        f"{own[0].output_dir}{f' and {len(own) - 1} more' if len(own) > 1 else ''}: "
        f"{failed[own[0]] if len(own) == 1 else reason}"
        for reason, own in by_reason.items()
    ]


@printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line: 0 if all runs are complete, 1 if some failed, 2 for a mistake in the arguments, 75 if
    a signal ended it, after which the same line goes on (130 for Ctrl-C before it began)."""
    try:
        args, opts = parse(sys.argv[1:] if argv is None else argv)
        check_opts(opts)
        return until_asked_to_end(args, opts)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"sweep: {error}\n")
        return 2
    except WorkerError as error:
        sys.stderr.write(f"sweep: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same line goes on from here\n")
        return INTERRUPTED
