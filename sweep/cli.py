"""The command line of sweeps.

    python -m sweep base2new --trainers ZeroshotCLIP CoOp APEX --datasets dtd eurosat --seeds 1-3 --root DATA

trains on the base classes, evaluates base and new, and prints the table. What is complete is skipped; what was
interrupted is resumed by the same line; nothing is deleted unless --redo says so. KEY VALUE pairs at the end go to all
runs.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.output import printable_streams
from protocols import PROTOCOLS
from results.formats import FORMATS
from results.layout import BENCHMARKS, IMAGENET_VARIANTS, USUAL_SOURCE
from results.seeds import parse_seeds
from results.tables import TableOptions
from sweep.method_configs import CONFIGS
from sweep.plan import Run, SeedGroup, SweepConfig
from sweep.worker import WorkerError

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
    what.add_argument(
        "--configs", nargs="+", default=[], metavar="TRAINER=NAME", help="configuration files other than the usual ones"
    )
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
    how.add_argument("--average", action="store_true", help="also write average_results.txt beside the seeds")
    return parser


def split_opts(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments up to the first configuration key, and the `KEY VALUE` pairs from there on."""
    for index, word in enumerate(argv):
        if CAPITALS.fullmatch(word) and _is_key(word, argv[index - 1] if index else ""):
            return list(argv[:index]), list(argv[index:])
    return list(argv), []


def _is_key(word: str, before: str) -> bool:
    """Whether a word in capitals is a configuration key, and no file, nor the value of the flag before it."""
    from dassl.config.defaults import DEFAULTS

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
    args.datasets = list(dict.fromkeys(numbers.get(name, name) for name in args.datasets or protocol.datasets))
    own_files((*args.datasets, args.source))
    parse_seeds(args.seeds)
    _complete_names(args)


def _complete_names(args: argparse.Namespace) -> None:
    """Put registered names for trainers; ValueError for an unknown trainer or data set, with the nearest known one."""
    import trainers  # noqa: F401 - registers what is in the folder
    from dassl.engine import TRAINER_REGISTRY
    from dassl.utils import check_availability

    known = {name.lower(): name for name in TRAINER_REGISTRY.registered_names()}
    for name in args.trainers:
        if name.lower() not in known:
            check_availability(name, list(known.values()), "trainer")
    args.trainers = list(dict.fromkeys(known[name.lower()] for name in args.trainers))
    known_sets = [path.stem for path in (CONFIGS / "datasets").glob("*.yaml")]
    for name in (*args.datasets, args.source):
        if Path(name).suffix.lower() not in YAML:
            check_availability(name, known_sets, "data set")


def _check_numbers(args: argparse.Namespace) -> None:
    """Raise a ValueError for the first number that is too small or without use."""
    numbers = {"--shots": min(args.shots), "--threads": args.threads, "--per-gpu": args.per_gpu, "--jobs": args.jobs}
    numbers |= {"--folds": args.folds, "--repeats": args.repeats}
    for flag, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{flag} {value}: must be at least 1")
    if args.gpus and args.jobs and args.launcher == "local":
        raise ValueError(
            f"--jobs {args.jobs} counts runs on CPUs, --gpus {args.gpus} names GPUs (--per-gpu counts there)"
        )
    if args.gpus and not re.fullmatch(r"\d+(,\d+)*", args.gpus):
        raise ValueError(f"--gpus {args.gpus}: write numbers, such as 0,1")


def own_files(datasets: Sequence[str]) -> dict[str, str]:
    """YAML files among the data sets, by the names that their runs have: their names without suffix.

    Raises:
        ValueError: two files of one name.
        FileNotFoundError: no such file.
    """
    files: dict[str, str] = {}
    for path in map(Path, datasets):
        if path.suffix.lower() not in YAML:
            continue
        if not path.is_file():
            raise FileNotFoundError(f"--datasets {path}: there is no such file")
        if files.setdefault(path.stem, str(path)) != str(path):
            raise ValueError(f"--datasets {files[path.stem]} {path}: two files of one name, which their folders have")
    return files


def make_config(args: argparse.Namespace, opts: Sequence[str]) -> SweepConfig:
    """What the runs share; ValueError for malformed `--seeds` or `--configs`."""
    configs, known = {}, {name.lower(): name for name in args.trainers}
    for pair in args.configs:
        trainer, sign, name = pair.partition("=")
        trainer = known.get(trainer.lower(), "")
        if not sign or not trainer:
            named = ", ".join(args.trainers)
            raise ValueError(f"--configs {pair}: write TRAINER=NAME with one of the --trainers ({named})")
        configs[trainer] = name.removesuffix(".yaml")
    return SweepConfig(
        root=args.root,
        output=args.output,
        shots=args.shots[0],
        seeds=parse_seeds(args.seeds),
        configs=configs,
        opts=tuple(opts),
        source=args.source,
        variant=args.variant,
        load_epoch=args.load_epoch,
        **{name: value for name in ("folds", "repeats") if (value := getattr(args, name))},
        files=own_files((*args.datasets, args.source)),
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
    make, datasets = PROTOCOLS[args.protocol].plan, [config.name(dataset) for dataset in args.datasets]
    config = replace(config, source=config.name(config.source))
    runs = [run for shots in args.shots for run in make(replace(config, shots=shots), args.trainers, datasets)]
    return list({run.output_dir: run for run in runs}.values())


def sweep(args: argparse.Namespace, opts: Sequence[str]) -> int:
    """Carry out a sweep; returns the exit status.

    Raises:
        ValueError, OSError: a mistake in the arguments, found before anything was started.
        WorkerError: worker processes cannot start.
    """
    complete_arguments(args)
    from sweep.pool import Outcome
    from sweep.report import describe
    from sweep.state import examine, needs_root, redo

    config, slots = make_config(args, opts), make_slots(args)
    runs = plan(args, config)
    if args.redo and not args.dry_run:
        for run in redo(runs):
            sys.stderr.write(f"deleted {run.output_dir}\n")
    progress = examine(runs)
    chosen = [run for run in runs if args.part in ("", run.place.kind.part)]
    asked = {run.output_dir for run in chosen}
    todo = [run for run in progress.todo if run.output_dir in asked]
    complete = [run for run in progress.complete if run.output_dir in asked]
    there = {run.output_dir for run in (*progress.complete, *todo)}
    untrained = list(dict.fromkeys(run.needs for run in todo if run.needs and run.needs not in there))
    packs = pack(args, todo)
    if args.dry_run:
        sys.stdout.write(describe(complete, packs, untrained, len(slots), args.output))
        return 0
    if todo and not os.path.isdir(args.root) and any(map(needs_root, todo)):
        raise FileNotFoundError(f"--root {args.root}: there is no such folder (DATA in the environment names it too)")
    if untrained:
        raise ValueError(f"not trained yet: {', '.join(untrained[:3])}; do that first, or leave out --part test")
    sys.stderr.write(f"{len(complete)} runs complete, {len(todo)} to do\n")
    follow = PROTOCOLS[args.protocol].follow
    if follow and todo:
        sys.stderr.write(f"{follow.cost(config, todo)}\n")
    outcome = work(packs, args, slots) if todo else Outcome()
    agree = conclude(args, config, chosen, outcome)
    agree = (not follow or follow_up(args, config, chosen, slots)) and agree
    return 0 if agree and not outcome.failed else 1


def follow_up(args: argparse.Namespace, config: SweepConfig, done: Sequence[Run], slots: "list[Slot]") -> bool:
    """Carry out what follows from the results of the runs; returns whether all of it is complete and agrees."""
    from sweep.pool import Outcome
    from sweep.report import records_of
    from sweep.state import examine

    follow = PROTOCOLS[args.protocol].follow
    runs = follow.runs(config, records_of(done)) if follow and not args.part else []
    if not follow or not runs:
        return True
    todo = examine(runs).todo
    outcome = work(pack(args, todo), args, slots) if todo else Outcome()
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
        return Pool(slots, logs, bar).work(packs)
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


def conclude(args: argparse.Namespace, config: SweepConfig, runs: Sequence[Run], outcome: "Outcome") -> bool:
    """Write the table, the lines that make its rows, the averages if asked for, what failed, and what does not agree.

    Returns whether everything does.
    """
    from results.audit import audit_records
    from sweep.report import commands, records_of, table_of, write_averages

    order = [*map(config.name, args.datasets), *args.trainers]
    options = TableOptions(config.seeds, order, source=config.name(config.source))
    sys.stdout.write(FORMATS[args.format](table_of(args.protocol, args.part, runs, options)))
    if args.format == "text":
        lines = commands(args, config, runs)
        sys.stdout.write("\n".join(["", "Each row again:", *(f"  {line}" for line in lines)]) + "\n")
    if args.average:
        sys.stdout.write("\n" + write_averages(runs))
    for run, reason in outcome.failed.items():
        sys.stderr.write(f"failed: {run.output_dir}: {reason}\n")
    found = audit_records(records_of(runs))
    sys.stderr.write("".join(f"audit: {line}\n" for line in found))
    return not found


@printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line: 0 if all runs are complete, 1 if some failed, 2 for a mistake in the arguments."""
    words, opts = split_opts(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    try:
        check_opts(opts)
        return sweep(args, opts)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"sweep: {error}\n")
        return 2
    except WorkerError as error:
        sys.stderr.write(f"sweep: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same line goes on from here\n")
        return INTERRUPTED
