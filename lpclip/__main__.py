"""Linear probe: frozen image features once, then logistic regression on few shots of each class.

    python -m lpclip --root DATA --dataset-config-file configs/datasets/dtd.yaml --output-dir output/lpclip/dtd
    python -m lpclip --root DATA --dataset-config-file configs/datasets/dtd.yaml --backbone ViT-B/16 \\
        --shots 4,16 --runs 3 --output-dir output/lpclip/dtd_vit_b16

Features are those of the whole training, validation and test lists under the test transform, not normalised; they are
kept in OUTPUT/features.npz. For 1, 2, 4, 8 and 16 shots, ten draws each, the L2 strength is searched on at most four
validation images of each class; OUTPUT/linear_probe.json holds every run. The default configuration is CoOp's for
feature extraction, on RN50.
"""

import dassl.ctrl_c  # noqa: F401  # isort: skip - before what takes seconds

import argparse
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

import adaptation
import clip
import datasets
import trainers
from adaptation.trainer import fill_input, frozen_backbone
from clip.backbone import Backbone
from clip.precision import PRECISIONS, Precision
from dassl.config import declared_cfg, merge_file, merge_opts
from dassl.data.datasets import DatasetBase, build_dataset
from dassl.data.evidence import images_hash, training_evidence
from dassl.engine.record import versions
from dassl.output import printable_streams
from dassl.utils import log_to_stdout, setup_logger, write_json
from dassl.utils.logger import close_logger
from dassl.utils.torchtools import choose_device
from lpclip.features import Features, dataset_features
from lpclip.probe import MAX_VAL_SHOTS, RUNS, SHOTS, probe

logger = logging.getLogger(__package__)

CONFIG_FILE = Path(__file__).parents[1] / "configs" / "trainers" / "CoOp" / "rn50_val.yaml"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags as in train.py."""
    parser = argparse.ArgumentParser(
        prog="python -m lpclip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="", help="folder of the data sets")
    parser.add_argument("--output-dir", required=True, help="folder of features.npz, linear_probe.json and log.txt")
    parser.add_argument("--dataset-config-file", default="", help="YAML of the data set")
    parser.add_argument("--config-file", default=str(CONFIG_FILE), help="YAML with input, loader and backbone")
    parser.add_argument("--backbone", default="", help="name of the backbone, such as ViT-B/16 or tiny-ViT")
    parser.add_argument("--prec", default="fp32", choices=PRECISIONS, help="what the backbone computes in")
    parser.add_argument("--shots", type=_numbers, default=SHOTS, help="training images of each class, as in 1,2,4")
    parser.add_argument("--runs", type=int, default=RUNS, help="draws, numbered from 1")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the configuration")
    return parser


def build_config(args: argparse.Namespace) -> CfgNode:
    """The configuration: defaults, data set file, file of the backbone, flags, KEY VALUE pairs, in that order.

    Raises:
        ValueError: an unknown key or value; shots or runs below 1; shots in the configuration.
    """
    cfg = declared_cfg()
    for path in (args.dataset_config_file, args.config_file):
        if path:
            merge_file(cfg, path)
    cfg.DATASET.ROOT, cfg.OUTPUT_DIR = args.root, args.output_dir
    if args.backbone:
        cfg.MODEL.BACKBONE.NAME = args.backbone
    merge_opts(cfg, args.opts)
    for flag, value in (("--shots", min(args.shots)), ("--runs", args.runs)):
        if value < 1:
            raise ValueError(f"{flag} must be at least 1, but is {value}")
    if cfg.DATASET.NUM_SHOTS > 0:
        raise ValueError("DATASET.NUM_SHOTS is set, but the linear probe draws its own shots: use --shots")
    return cfg


def summary(cfg: CfgNode, backbone: Backbone, precision: Precision, dataset: DatasetBase) -> dict:
    """What was probed, as plain data."""
    return {
        "dataset": cfg.DATASET.NAME,
        "subsample_classes": cfg.DATASET.SUBSAMPLE_CLASSES,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        **backbone.identity(),
        "precision": precision.name,
        "num_classes": dataset.num_classes,
        "num_test": len(dataset.test),
        "full_split_hash": dataset.full_split_hash,
        **training_evidence(dataset),
        "test_images_hash": images_hash(dataset.test),
        "searched_on": "test" if dataset.val is dataset.test else "val",
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "shots": {},
    }


def run_shots(features: dict[str, Features], shots: int, runs: int) -> dict:
    """All runs of one number of shots: each run's C and test accuracy, their mean and (population) deviation."""
    results = []
    for seed in range(1, runs + 1):
        results.append(probe(features, shots, seed))
        logger.info("%d-shot, run %d: C %.3g, accuracy %.2f%%", shots, seed, *results[-1])
    accuracies = [result.accuracy for result in results]
    mean, std = float(np.mean(accuracies)), float(np.std(accuracies))
    logger.info("%d-shot, %d runs: accuracy %.2f%% +- %.2f", shots, runs, mean, std)
    val_shots = min(shots, MAX_VAL_SHOTS)
    return {"val_shots": val_shots, "c": [r.c for r in results], "accuracy": accuracies, "mean": mean, "std": std}


def run(args: argparse.Namespace) -> dict:
    """Carry out one command line; returns what linear_probe.json holds.

    Raises:
        ValueError, FileNotFoundError: a mistake in arguments, configuration or data.
    """
    assert trainers  # imported for the configuration keys that YAML files of methods set
    cfg = build_config(args)
    output = Path(cfg.OUTPUT_DIR)
    log_to_stdout(*(room.__name__ for room in (adaptation, clip, datasets, trainers)), logger.name)
    setup_logger(str(output))
    try:
        precision = Precision(args.prec, choose_device(cfg.USE_CUDA))
        backbone = frozen_backbone(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PATH, args.prec, precision.device)
        cfg = fill_input(cfg, backbone)
        dataset = build_dataset(cfg)
        features = dataset_features(cfg, dataset, backbone, precision, output / "features.npz")
        record = summary(cfg, backbone, precision, dataset)
        if record["searched_on"] == "test":
            logger.warning("%s has no val list of its own: C is searched on images of the test list", cfg.DATASET.NAME)
        for shots in args.shots:
            record["shots"][str(shots)] = run_shots(features, shots, args.runs)
            write_json(record, str(output / "linear_probe.json"))
    finally:
        close_logger()
    return record


@printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; a user's mistake ends with one sentence on stderr and exit status 2."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        sys.stderr.write(f"lpclip: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
