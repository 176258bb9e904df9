"""How long tables of many runs take, with measures from their predictions and without.

    python -m benchmarks.tabulate --runs 10000 --images 1000 --classes 20

makes so many base-to-new runs in a folder that is deleted afterwards (half of them evaluations on base classes, half on
new ones; ten data sets, methods as needed, twenty seeds), reads them, and makes the protocol's table and that of all
measures. Records have a per-class list and a configuration, as a run leaves them. Other work on the machine lengthens
the seconds, less so those of the processors.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dassl.config import get_cfg_default
from dassl.engine.comparison import to_dict
from dassl.evaluation.predictions import NAME, Predictions, write_predictions
from protocols import PROTOCOLS
from results.answers import measures_table
from results.layout import BENCHMARKS, RunDirectory
from results.measures import MEASURES
from results.tables import TableOptions
from results.tree import read_records

DATASETS, SEEDS, DRAWN = BENCHMARKS[1:], range(1, 21), 20  # so many different files of predictions, linked to


def made_predictions(images: int, classes: int, seed: int) -> Predictions:
    """Predictions of random logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, classes))
    labels = np.arange(images) % classes
    logits[np.arange(images), labels] += 3
    largest = logits.max(axis=1)
    return Predictions(
        paths=np.array([f"images/of_class_{label:03d}/{i:05d}.jpg" for i, label in enumerate(labels)]),
        labels=labels.astype(np.int32),
        classnames=np.array([f"class {label}" for label in range(classes)]),
        predicted=logits.argmax(axis=1).astype(np.int32),
        largest=largest.astype(np.float32),
        relative=(logits - largest[:, None]).astype(np.float16),
        text_features=rng.normal(size=(classes, 512)).astype(np.float16),
        frozen_text_features=rng.normal(size=(classes, 512)).astype(np.float16),
    )


def places(runs: int) -> Iterator[RunDirectory]:
    """Directories of base-to-new runs, as many as are asked for."""
    per_method = 2 * len(DATASETS) * len(SEEDS)
    for number in range(runs):
        method, rest = divmod(number, per_method)
        role, rest = divmod(rest, per_method // 2)
        dataset, seed = divmod(rest, len(SEEDS))
        yield RunDirectory(("base", "new")[role], DATASETS[dataset], f"Method{method}", "usual", 16, SEEDS[seed])


def write_tree(root: Path, runs: int, images: int, classes: int) -> None:
    """Write the runs."""
    drawn = []
    for seed in range(DRAWN):
        own = made_predictions(images, classes, seed)
        path = root / "drawn" / f"{seed}.npz"
        drawn.append((own, path, write_predictions(path, own)))
    config = to_dict(get_cfg_default())
    for number, place in enumerate(places(runs)):
        own, path, digest = drawn[number % DRAWN]
        directory = root / "out" / place.path()
        directory.mkdir(parents=True)
        os.link(path, directory / NAME)
        right = np.bincount(own.labels[own.correct], minlength=classes).tolist()
        total = np.bincount(own.labels, minlength=classes).tolist()
        counts = zip(own.classnames.tolist(), total, right, strict=True)
        rows = [
            {"label": i, "classname": name, "total": t, "correct": c, "accuracy": 100 * c / t}
            for i, (name, t, c) in enumerate(counts)
        ]
        config["TRAINER"]["NAME"], config["DATASET"]["SUBSAMPLE_CLASSES"] = place.trainer, place.role
        config["DATASET"]["NUM_SHOTS"], config["DATASET"]["NAME"] = place.shots, place.dataset
        config["MODEL"]["BACKBONE"]["NAME"] = "ViT-B/16"
        metrics = {
            "trainer": place.trainer, "dataset": place.dataset, "seed": place.seed, "shots": place.shots,
            "subsample_classes": place.role, "backbone": "ViT-B/16", "accuracy": own.accuracy, "num_classes": classes,
            "num_test": images, "history": [{"epoch": i, "lr": 0.1, "loss": 1.0} for i in range(1, 51)],
            "per_class": rows, "config": {**config, "SEED": place.seed},
            "predictions": {"file": NAME, "digest": digest},
        }  # fmt: skip
        (directory / "metrics.json").write_text(json.dumps(metrics, indent=4))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=1000, help="test images of a run")
    parser.add_argument("--classes", type=int, default=20)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print how long each part took."""
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder), args.runs, args.images, args.classes)
        started, before = time.perf_counter(), time.process_time()
        records = read_records(Path(folder) / "out")
        read = time.perf_counter()
        rows = len(PROTOCOLS["base2new"].table(records, TableOptions(compare=False)).rows)
        tabulated = time.perf_counter()
        table = measures_table(records, ["accuracy", *MEASURES], "Measures", TableOptions())
        measured, after = time.perf_counter(), time.process_time()
    complete = sum(record.problem == "" for record in records)
    sys.stdout.write(
        f"{len(records)} runs ({complete} sound) of {args.images} images and {args.classes} classes: "
        f"read {read - started:.1f} s, table of {rows} rows {tabulated - read:.1f} s, "
        f"all measures ({len(table.rows)} rows) {measured - tabulated:.1f} s, "
        f"together {measured - started:.1f} s, of the processors {after - before:.1f} s\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
