"""What a sweep makes sure of once, before anything starts: that weights, data and class lists are there."""

import logging
import os
from collections.abc import Iterable
from contextlib import redirect_stdout
from typing import Any

import datasets
import train
from clip.loading import fetch_weights
from dassl.data.datasets import DATASET_REGISTRY
from datasets.imagenet_family import CLASSNAMES
from sweep.method_configs import trainer_class
from sweep.plan import Run
from sweep.state import requested

LARGE = 500_000  # training images whose list takes seconds to make


def missing(runs: Iterable[Run]) -> list[str]:
    """What is not there that runs need, in sentences, each once. Weights that have a name are fetched.

    Args:
        runs: those to do; their configurations can be resolved.
    """
    weights: dict[tuple[str, str], None] = {}
    data: dict[tuple[tuple[str, str], ...], Run] = {}
    for run in runs:
        config = requested(run.argv)
        if hasattr(trainer_class(run.place.trainer), "build_method"):  # others may have backbones of their own
            weights.setdefault((config["MODEL.BACKBONE.NAME"], config["MODEL.BACKBONE.PATH"]))
        of_the_draw = ("DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES")
        own = [(k, str(v)) for k, v in config.items() if k.startswith("DATASET.") and k not in of_the_draw]
        root = run.argv[run.argv.index("--root") + 1]
        data.setdefault((*sorted(own), ("--root", root)), run)
    said = [*(_reason(fetch_weights, *place) for place in weights), *(_reason(_look_at, run) for run in data.values())]
    return list(dict.fromkeys(filter(None, said)))


def _reason(look: Any, *arguments: Any) -> str:
    """What an attempt fails with, if it is something of the user's."""
    try:
        look(*arguments)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _look_at(run: Run) -> None:
    """Read the list of images and classes of a run's data set; nothing is written, and what is drawn is passed over.

    Raises:
        ValueError, FileNotFoundError: as the data set does.
    """
    cfg = train.build_config(train.build_parser().parse_args(list(run.argv)))
    name = cfg.DATASET.NAME
    if name not in DATASET_REGISTRY.registered_names():
        raise ValueError(f"{run.argv[run.argv.index('--root') + 2]}: DATASET.NAME is {name!r}, which is no data set")
    kind = DATASET_REGISTRY.get(name)
    if not hasattr(kind, "located") or not getattr(kind, "needs_root", True):
        return
    dataset = kind.located(cfg)
    dataset.keeps = False
    dataset.check_folders()
    level, logger = logging.getLogger(datasets.__name__).level, logging.getLogger(datasets.__name__)
    with open(os.devnull, "w", encoding="utf-8") as silence, redirect_stdout(silence):
        logger.setLevel(logging.ERROR)
        try:
            if kind.counts is not None and kind.counts.train > LARGE:
                dataset.raw_file(CLASSNAMES)
            else:
                dataset.load_split()
        finally:
            logger.setLevel(level)
