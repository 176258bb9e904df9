"""Train and evaluate one method on one data set: arguments -> configuration -> seed and log -> trainer.

    python train.py --root DATA --seed 1 --trainer APEX \\
        --dataset-config-file configs/datasets/dtd.yaml \\
        --config-file configs/trainers/APEX/vit_b16_c2_ep15_batch16_2+2ctx.yaml \\
        --output-dir output/dtd DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base

Trainers, data sets and their configuration keys are found by being in their folders; none is named here. A
configuration file may be given by its stem alone (`--config-file vit_b16_ep50`, `--dataset-config-file dtd`), a setting
as `KEY VALUE` or `KEY=VALUE`, and pictures in class folders by `--dataset-folder photos`. `--list` says what there is.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

from commands.completion import offers
from commands.listing import List
from commands.names import config_file, trainer_name
from commands.settings import from_defaults, in_force
from commands.words import refuse_unknown_flags, split_pairs
from dassl.output import printable_streams

KEY = re.compile(r"[A-Z][A-Z0-9_]*\.[A-Za-z0-9_.]+|SEED|USE_CUDA|VERBOSE|OUTPUT_DIR|RESUME")
OWN_DATA = "OwnData"  # the data set that --dataset-folder describes
DEFAULT_OUTPUT = "output"
MISTAKES = (ValueError, OSError, FloatingPointError)  # answered with one sentence
MISTAKE, BUSY = 2, 73  # exit status: a user's mistake; another process is at work in the output folder


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags keep the names of the family's scripts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="", help="folder of the data sets")
    parser.add_argument("--output-dir", default="", help="folder of log.txt, metrics.json and checkpoints")
    parser.add_argument("--resume", default="", help="output folder of the run to go on with (default: --output-dir)")
    parser.add_argument("--seed", type=int, default=-1, help="seed of draws, order, augmentation, initial values")
    parser.add_argument("--seeds", default="", help="several seeds at once, such as 1-20 or 1,2,5: OUTPUT_DIR/seed<N>")
    parser.add_argument("--source-domains", nargs="+", default=[], help="source domains of the data set")
    parser.add_argument("--target-domains", nargs="+", default=[], help="target domains of the data set")
    parser.add_argument("--transforms", nargs="+", default=[], help="training transforms; normalize is added")
    parser.add_argument("--config-file", default="", help="YAML of the method: a path, or a stem (--list configs)")
    parser.add_argument("--dataset-config-file", default="", help="YAML of the data set: a path, or a stem such as dtd")
    parser.add_argument("--dataset-folder", default="", help="pictures of one's own in class folders, without any YAML")
    parser.add_argument("--trainer", default="", help="name of the trainer, such as APEX, in any case")
    parser.add_argument("--backbone", default="", help="name of the backbone, such as ViT-B/16 or tiny-ViT")
    parser.add_argument("--head", default="", help="name of the head (third-party trainers)")
    parser.add_argument("--eval-only", action="store_true", help="evaluate the checkpoint in --model-dir")
    parser.add_argument("--model-dir", default="", help="output folder of the training run to evaluate")
    parser.add_argument("--load-epoch", type=int, default=None, help="epoch of the checkpoint (default: the last)")
    parser.add_argument("--no-train", action="store_true", help="build everything, then stop")
    shown = "show the resolved configuration as YAML, and in what it differs from the files, then stop"
    parser.add_argument("--print-config", action="store_true", help=shown)
    parser.add_argument("--list", action=List, help=List.HELP)
    pairs = "KEY VALUE pairs, or KEY=VALUE, that override the configuration"
    parser.add_argument("opts", nargs=argparse.REMAINDER, help=pairs)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line as people write it; ValueError for a flag that there is not."""
    parser = build_parser()
    offers(parser)
    words = split_pairs(argv, parser)
    end = next((index for index, word in enumerate(words) if KEY.fullmatch(word)), len(words))
    name = dict(pairwise(words)).get("--trainer", "")
    refuse_unknown_flags(words[:end], parser, (f"TRAINER.{name.upper()}.",))
    return parser.parse_args(words)


def separate_opts(args: argparse.Namespace) -> None:
    """Give back to `args.opts` the KEY VALUE pairs that a flag of several words before them has taken in."""
    for flag in ("transforms", "source_domains", "target_domains"):
        words = getattr(args, flag)
        keys = [index for index, word in enumerate(words) if KEY.fullmatch(word)]
        if keys:
            setattr(args, flag, words[: keys[0]])
            args.opts = [*words[keys[0] :], *args.opts]


def build_config(args: argparse.Namespace):
    """The resolved, frozen configuration: defaults, data set file, method file, flags, KEY VALUE pairs, in that order.

    Where none of them gives them, the INPUT keys that follow from the backbone's name have the backbone's values.

    Raises:
        ValueError: an unknown key or value (with the nearest known ones); a missing --trainer.
        FileNotFoundError: a configuration file is not there.
    """
    import datasets  # noqa: F401  (registers what is in the folder)
    import trainers  # noqa: F401
    from adaptation.trainer import fill_known_input
    from dassl.config import admit_foreign_keys, declared_cfg, merge_file, merge_opts, set_key

    separate_opts(args)
    cfg = declared_cfg()
    trainer = trainer_name(args.trainer) if args.trainer else ""
    if trainer:
        admit_foreign_keys(cfg, trainer)
    given = set(args.opts[::2])
    for path in config_files(args, trainer):
        given.update(merge_file(cfg, path))
    folder = Path(args.dataset_folder) if args.dataset_folder else None
    flags = {
        "DATASET.ROOT": str(folder.absolute().parent) if folder else args.root,
        "DATASET.NAME": OWN_DATA if folder else "",
        "DATASET.FOLDER": folder.absolute().name if folder else "",
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "TRAINER.NAME": trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
    }
    for key, value in flags.items():
        if value:
            set_key(cfg, key, value)
    lists = {"SOURCE_DOMAINS": args.source_domains, "TARGET_DOMAINS": args.target_domains}
    cfg.DATASET.update({key: tuple(names) for key, names in lists.items() if names})
    if args.transforms:
        normalized = {"normalize", "instance_norm"} & set(args.transforms)
        cfg.INPUT.TRANSFORMS = (*args.transforms, *(() if normalized else ("normalize",)))
    if args.seed >= 0:
        cfg.SEED = args.seed
    merge_opts(cfg, args.opts)
    fill_known_input(cfg, given)
    if not cfg.TRAINER.NAME:
        raise ValueError("no trainer was named: give --trainer, such as --trainer APEX (--list trainers names all)")
    cfg.freeze()
    return cfg


def config_files(args: argparse.Namespace, trainer: str) -> list[str]:
    """The configuration files that arguments name, in the order in which they are merged."""
    files = [config_file(args.dataset_config_file), config_file(args.config_file, trainer)]
    return [path for path in files if path]


def print_config(args: argparse.Namespace) -> None:
    """Write the configuration that arguments give, and in what it differs from the defaults and from the files."""
    from commands.settings import as_yaml
    from dassl.config import declared_cfg

    cfg, files = build_config(args), config_files(args, trainer_name(args.trainer) if args.trainer else "")
    bare = {"opts": [], "trainer": cfg.TRAINER.NAME, "config_file": args.config_file,
            "dataset_config_file": args.dataset_config_file}  # fmt: skip
    of_files = build_config(argparse.Namespace(**{**vars(build_parser().parse_args([])), **bare}))
    bases = {"the defaults": declared_cfg(), **({"the files": of_files} if files else {})}
    print(as_yaml(cfg, files, bases), end="")


def run(args: argparse.Namespace) -> float | None:
    """Carry out one command line in this process; returns the accuracy in percent where something was evaluated.

    Raises:
        ValueError, FileNotFoundError: a mistake in arguments, configuration, data or checkpoints. Where it is found
            before the run begins there is no output folder and no log.
        RunBusy: another process is at work in the output folder.
        ShortageError: (an OSError) memory is short.
    """
    import adaptation
    import clip
    import datasets
    import trainers
    from dassl.engine import build_trainer
    from dassl.engine.record import require_own_result
    from dassl.utils import close_logger, log_to_stdout, open_log, set_random_seed, setup_logger
    from dassl.utils.locks import run_lock
    from dassl.utils.shortages import shortage_of

    cfg = build_config(args)
    if args.eval_only and cfg.OUTPUT_DIR:
        require_own_result(os.path.join(cfg.OUTPUT_DIR, "metrics.json"), cfg)
    log_to_stdout(*(room.__name__ for room in (adaptation, clip, datasets, trainers)), __name__)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR, deferred=True)
    try:
        print_start(args, cfg)
        trainer = build_trainer(cfg)
        print(in_force(cfg, trainer))
        if args.model_dir or args.eval_only:
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
        with run_lock(cfg.OUTPUT_DIR):
            open_log()
            return carry_out(args, trainer)
    except MISTAKES:
        raise
    except Exception as error:
        open_log()
        if (shortage := shortage_of(error)) is not None:
            raise shortage from error
        raise
    finally:
        close_logger()


def carry_out(args: argparse.Namespace, trainer) -> float | None:
    """Evaluate or train with a trainer that is built, in a folder that this process holds; returns as `run`."""
    if args.eval_only:
        return trainer.test()
    if not args.no_train:
        trainer.train()
    return trainer.last_result


def run_seeds(args: argparse.Namespace) -> list[float | None]:
    """Carry out one command line for several seeds in this process, their training steps computed together.

    Each seed writes what it would write alone, to OUTPUT_DIR/seed<N>, and reads from MODEL_DIR/seed<N>. The screen
    shows the first seed.

    Raises:
        ExceptionGroup: some seeds failed; the others are complete.
    """
    from adaptation.stacking import run_together
    from results.seeds import parse_seeds

    if "OUTPUT_DIR" in args.opts[::2]:
        raise ValueError("--seeds gives each seed a folder of its own: name the one around them with --output-dir")
    args.output_dir = args.output_dir or DEFAULT_OUTPUT

    def body(seed: int, shown: bool):
        places = {key: str(Path(folder) / f"seed{seed}") for key in ("output_dir", "model_dir", "resume")
                  if (folder := getattr(args, key))}  # fmt: skip
        own = argparse.Namespace(**{**vars(args), **places, "seed": seed, "seeds": ""})

        def go() -> float | None:
            if shown:
                return run(own)
            with open(os.devnull, "w", encoding="utf-8") as silence, redirect_stdout(silence):
                return run(own)

        return go

    seeds = parse_seeds(args.seeds)
    results = run_together([body(seed, index == 0) for index, seed in enumerate(seeds)])
    failed = [(seed, result) for seed, result in zip(seeds, results, strict=True) if isinstance(result, Exception)]
    done = {seed: result for seed, result in zip(seeds, results, strict=True) if isinstance(result, float)}
    print(seed_table(args, done), end="")
    if failed:
        for seed, error in failed:
            error.add_note(f"seed {seed}")
        raise ExceptionGroup(f"{len(failed)} of {len(seeds)} seeds failed", [error for _, error in failed])
    return results


def seed_table(args: argparse.Namespace, accuracies: Mapping[int, float]) -> str:
    """The results of seeds, a row each, and their mean, as text; "" without a result."""
    from results.formats import to_text
    from results.statistics import summarise
    from results.tables import SPREAD, Table

    if not accuracies:
        return ""
    f1 = {seed: read_macro_f1(args.output_dir, seed) for seed in accuracies}
    table = Table("Accuracy and macro F1 in percent", ["seed", "accuracy", "macro F1"])
    table.rows += [[str(seed), accuracy, f1[seed]] for seed, accuracy in accuracies.items()]
    known = [value for value in f1.values() if value is not None]
    mean_f1 = summarise(known) if len(known) == len(f1) else None
    table.rows.append(["mean", summarise(list(accuracies.values())), mean_f1])
    table.notes.append(f"mean over {len(accuracies)} seed{'s' if len(accuracies) > 1 else ''}; {SPREAD}")
    return f"\n{to_text(table)}"


def read_macro_f1(folder: str, seed: int) -> float | None:
    """Macro F1 in percent as the run of a seed has recorded it; None where it has not."""
    from dassl.utils import read_json

    path = Path(folder) / f"seed{seed}" / "metrics.json"
    return read_json(str(path)).get("macro_f1") if path.is_file() else None


def print_start(args: argparse.Namespace, cfg) -> None:
    """What a log opens with: arguments, resolved configuration, versions; on the screen what is not the default."""
    from dassl.utils import collect_env_info, to_log_file

    to_log_file("***************\n** Arguments **\n***************")
    for key in sorted(vars(args)):
        to_log_file(f"{key}: {getattr(args, key)}")
    to_log_file(f"************\n** Config **\n************\n{cfg}")
    to_log_file(f"Collecting env info ...\n** System info **\n{collect_env_info()}\n")
    print(from_defaults(cfg))


def sentence(error: BaseException) -> str:
    """An error's own sentence, also where a loader's worker process sent it with its traceback."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    return text.strip().splitlines()[-1].removeprefix(f"{type(error).__name__}: ")


def by_sentence(errors: Sequence[BaseException]) -> dict[str, list[str]]:
    """The sentences of errors, each once, with the notes (`seed 2`) of those that it is the sentence of."""
    found: dict[str, list[str]] = {}
    for error in errors:
        found.setdefault(sentence(error), []).extend(getattr(error, "__notes__", []))
    return found


def check_args(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other; ValueError naming them."""
    if args.seeds and args.seed >= 0:
        raise ValueError(f"--seed {args.seed} and --seeds {args.seeds} exclude each other: give one of them")
    if args.seed < -1:
        raise ValueError(f"--seed {args.seed}: a seed is at least 0")
    if args.load_epoch is not None and not args.model_dir:
        raise ValueError(f"--load-epoch {args.load_epoch} says which checkpoint of --model-dir, which is not given")
    if args.load_epoch is not None and args.load_epoch < 1:
        raise ValueError(f"--load-epoch {args.load_epoch}: epochs are counted from 1")
    if args.resume and not os.path.isdir(args.resume):
        raise FileNotFoundError(f"--resume {args.resume}: there is no such folder")
    if args.dataset_folder and args.dataset_config_file:
        raise ValueError(
            f"--dataset-folder {args.dataset_folder} and --dataset-config-file {args.dataset_config_file} exclude each "
            "other: the file has the key DATASET.FOLDER"
        )
    if args.dataset_folder and not os.path.isdir(args.dataset_folder):
        raise FileNotFoundError(f"--dataset-folder {args.dataset_folder}: there is no such folder")
    if os.path.isfile(args.output_dir):
        raise ValueError(f"--output-dir {args.output_dir} is a file: name a folder")


@printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; a user's mistake ends with one sentence on stderr and exit status 2.

    The status is 73 where nothing is wrong but that another process is at work in the output folder, and 75 after
    SIGTERM, SIGINT or SIGHUP: the same line goes on.
    """
    from dassl.utils.interruption import CONTINUE, Interrupted, interruptible

    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        check_args(args)
        if args.print_config:
            print_config(args)
            return 0
        with interruptible():
            run_seeds(args) if args.seeds else run(args)
    except Interrupted as interrupted:
        print(f"train.py: {interrupted}", file=sys.stderr)
        return CONTINUE
    except MISTAKES as error:
        return report([error])
    except ExceptionGroup as group:
        mistakes, others = group.split(MISTAKES)
        if others:
            raise
        return report(mistakes.exceptions)
    return 0


def report(errors: Sequence[Exception]) -> int:
    """Say each error in a sentence on stderr, the same one once; returns the exit status."""
    from dassl.utils.locks import RunBusy

    for said, seeds in by_sentence(errors).items():
        print(": ".join(["train.py", *([", ".join(seeds)] if seeds else []), said]), file=sys.stderr)
    return BUSY if all(isinstance(error, RunBusy) for error in errors) else MISTAKE


if __name__ == "__main__":
    sys.exit(main())
