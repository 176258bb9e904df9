"""Class probabilities of images, by what a run learned.

    python predict.py output/.../seed1 photo.jpg folder/ --top 3

From Python:

    from predict import Predictor
    predictor = Predictor("output/.../seed1")  # class names=["cat", "dog"] for other classes than it was trained on
    probabilities = predictor(["photo.jpg"])   # (images, classes)
"""

import argparse
import csv
import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LOGGERS = ("clip", "dassl", "datasets", "trainers")  # what they tell of building a model is of no interest here
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


class Predictor:
    """A trained run, ready to look at images.

    Args:
        run: output folder of a training run.
        classnames: classes to choose from; by default those that it was trained on.
        epoch: of the checkpoint; by default the last.

    Raises:
        FileNotFoundError: the folder holds no complete run.
        ValueError: what was learned cannot be applied to these classes.
    """

    def __init__(self, run: str, classnames: Sequence[str] | None = None, epoch: int | None = None):
        from dassl.engine import build_trainer

        metrics = Path(run) / "metrics.json"
        if not metrics.is_file():
            raise FileNotFoundError(f"{run} holds no complete run (no metrics.json)")
        record = json.loads(metrics.read_text(encoding="utf-8"))
        self.classnames = list(classnames or [row["classname"] for row in record["per_class"]])
        cfg = _configuration(record["config"])
        with _only_classes(cfg, self.classnames):
            self.trainer = build_trainer(cfg)
        self.trainer.load_model(run, epoch=epoch)
        self.trainer.set_model_mode("eval")

    def __call__(self, images: Sequence[str]):
        """Probabilities (images, classes) as a NumPy array.

        Raises:
            FileNotFoundError, ValueError: a file is not there or is no image.
        """
        import torch

        return self._each(images, lambda batch: torch.softmax(self.trainer.model_inference(batch).float(), dim=-1))

    def features(self, images: Sequence[str]):
        """Image features (images, width), as the method compares them with the classes, as a NumPy array."""
        method, precision = self._method(), self.trainer.precision

        def compute(batch):
            with precision.autocast():
                return method.image_features(batch)

        return self._each(images, compute)

    def text_features(self):
        """Class features (classes, width), as a NumPy array."""
        import torch

        with torch.no_grad():
            return self._method().text_features().float().cpu().numpy()

    def _method(self):
        """The module that makes features; ValueError if the trainer has none."""
        method = getattr(self.trainer, "model", None)
        if not hasattr(method, "image_features") or not hasattr(method, "text_features"):
            raise ValueError(f"{type(self.trainer).__name__} does not say how it makes features")
        return method

    def _each(self, images: Sequence[str], compute):
        """What `compute` makes of batches of images (B, 3, H, W), one below the other."""
        import numpy
        import torch

        from dassl.data.data_manager import build_data_loader
        from dassl.data.datasets import Datum

        if not images:
            return numpy.zeros((0, len(self.classnames)), dtype=numpy.float32)
        cfg = self.trainer.cfg
        loader = build_data_loader(
            cfg,
            data_source=[Datum(impath=str(path)) for path in images],
            batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=self.trainer.test_loader.dataset.transform,
            is_train=False,
        )
        with torch.no_grad():
            parts = [compute(self.trainer.parse_batch_test(batch)[0]).float().cpu() for batch in loader]
        return torch.cat(parts).numpy()


def _configuration(tree: dict):
    """The configuration of a run, frozen, without what belongs to its files."""
    from yacs.config import CfgNode

    import datasets  # noqa: F401 - registers what is in the folder
    import trainers  # noqa: F401 - registers what is in the folder
    from dassl.config import declared_cfg

    cfg = declared_cfg()
    cfg.set_new_allowed(True)
    cfg.merge_from_other_cfg(CfgNode(tree))
    cfg.OUTPUT_DIR = cfg.RESUME = ""
    cfg.VERBOSE = False
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    return cfg


@contextmanager
def _only_classes(cfg, classnames: Sequence[str]) -> Iterator[None]:
    """Let the run's data set consist of class names alone while the trainer is built: no image of it is needed."""
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

    name = cfg.DATASET.NAME
    known = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY else DatasetBase
    shots = max(cfg.DATASET.NUM_SHOTS, 1)

    def build(self, cfg):
        samples = [Datum(__file__, label, 0, title) for label, title in enumerate(classnames) for _ in range(shots)]
        self.template = cfg.DATASET.get("TEMPLATE", "") or getattr(known, "template", "")
        DatasetBase.__init__(self, train_x=samples, test=samples)

    DATASET_REGISTRY.register(type(name, (DatasetBase,), {"__init__": build}), force=True)
    try:
        yield
    finally:
        DATASET_REGISTRY.register(known, force=True)


def find_images(paths: Sequence[str]) -> list[str]:
    """The image files among the paths and in the folders among them, in order.

    Raises:
        FileNotFoundError: a path is not there, or a folder holds no image.
    """
    found: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise FileNotFoundError(f"the folder {path} holds no image ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(str(path))
        else:
            raise FileNotFoundError(f"there is no {path}")
    return found


def read_classes(text: str) -> list[str]:
    """Class names from a comma-separated list, or from a file with one on each line."""
    parts = Path(text).read_text(encoding="utf-8").splitlines() if os.path.isfile(text) else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def render(images: Sequence[str], classnames: Sequence[str], probabilities, form: str, top: int) -> str:
    """The probabilities as a table of the `top` classes, as CSV with all of them, or as JSON with all of them."""
    if form == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["image", *classnames])
        writer.writerows([path, *map(float, row)] for path, row in zip(images, probabilities, strict=True))
        return out.getvalue()
    named = [dict(zip(classnames, map(float, row), strict=True)) for row in probabilities]
    if form == "json":
        rows = [{"image": path, "probabilities": row} for path, row in zip(images, named, strict=True)]
        return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    width = max(map(len, images), default=0)
    lines = []
    for path, row in zip(images, named, strict=True):
        best = sorted(row, key=row.get, reverse=True)[:top]
        lines.append(f"{path:<{width}}  " + "  ".join(f"{100 * row[name]:6.2f}% {name}" for name in best))
    return "\n".join(lines) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="output folder of a training run")
    parser.add_argument("images", nargs="+", help="image files, and folders of them")
    parser.add_argument("--classes", default="", help="names a,b,c or a file of them (default: those trained on)")
    parser.add_argument("--epoch", type=int, help="of the checkpoint (default: the last)")
    parser.add_argument("--top", type=int, default=3, help="classes shown in the table (default: %(default)s)")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument("--features", default="", metavar="FILE.npz", help="also write image and class features")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; a user's mistake ends with one sentence on stderr and exit status 2."""
    args = build_parser().parse_args(argv)
    import dassl  # noqa: F401 - sets up the logger that is made quiet here

    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        images = find_images(args.images)
        predictor = Predictor(args.run, read_classes(args.classes) if args.classes else None, args.epoch)
        probabilities = predictor(images)
        if args.features:
            write_features(predictor, images, args.features)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"predict.py: {error}\n")
        return 2
    sys.stdout.write(render(images, predictor.classnames, probabilities, args.format, args.top))
    return 0


def write_features(predictor: Predictor, images: Sequence[str], path: str) -> None:
    """Write `image_features`, `text_features`, `images` and `classnames` as an .npz archive, whole or not at all."""
    import numpy

    from dassl.utils import atomic_write

    with atomic_write(path, "wb") as file:
        numpy.savez(
            file,
            image_features=predictor.features(images),
            text_features=predictor.text_features(),
            images=numpy.array(images),
            classnames=numpy.array(predictor.classnames),
        )


if __name__ == "__main__":
    sys.exit(main())
