"""Write few-shot draws as lists that all methods, and other code, can share (`datasets/split_lists.py`).

    python -m datasets.write_split_lists dtd eurosat --root data
    python -m datasets.write_split_lists my_birds.yaml --root data --shots 4 --seeds 1 2 --to lists

One file for each data set, number of shots and seed, `shot_K-seed_S_train.jsonl`, with its SHA-256 beside it: in the
data set's folder `split_fewshot`, or in a folder of its own below `--to`. `DATASET.SPLIT_LIST split_fewshot`, or that
folder, makes runs train on them.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from dassl.output import printable_streams

from .catalogue import configurations, located
from .fewshot import FewShotDataset
from .split_lists import FILE_NAME, write_list


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.write_split_lists",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", help="stems of configs/datasets, YAML files of one's own, or all")
    parser.add_argument("--root", default="../datasets", help="folder of the data sets (default: %(default)s)")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="(default: 1 2 4 8 16)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="(default: 1 2 3)")
    parser.add_argument("--to", default="", help="folder to write to")
    return parser


def write_lists(dataset: FewShotDataset, shots: Sequence[int], seeds: Sequence[int], to: str = "") -> Iterator[str]:
    """Write the rule's draws of a data set; yields each path.

    Args:
        dataset: with its paths set.
        shots, seeds: a list is written for each pair.
        to: the folder below which to write; by default the data set's own.

    Raises:
        ValueError, FileNotFoundError: a number is too small, or the data set cannot be read.
    """
    if min(shots) < 1 or min(seeds) < 0:
        raise ValueError(f"--shots {min(shots)}, --seeds {min(seeds)}: shots are at least 1, seeds at least 0")
    dataset.provide()
    dataset.check_folders()
    split = dataset.load_split()
    folder = os.path.join(to, os.path.basename(dataset.dataset_dir)) if to else dataset.split_fewshot_dir
    for count in shots:
        for seed in seeds:
            path = os.path.join(folder, FILE_NAME.format(shots=count, seed=seed))
            write_list(path, dataset.rule_draw(split, count, seed)[0])
            yield path


@printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status: 0, or 2 for a mistake."""
    args = build_parser().parse_args(argv)
    try:
        for cfg in configurations(args.names, args.root).values():
            for path in write_lists(located(cfg), args.shots, args.seeds, args.to):
                sys.stdout.write(f"{path}\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"datasets.write_split_lists: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
