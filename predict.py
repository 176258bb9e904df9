"""Class probabilities of images, by what a run learned.

    python predict.py output/.../seed1 photo.jpg folder/ --top 3

What is needed to apply it (method, settings, class names, backbone) stands in the checkpoint. From Python:

    from predict import Predictor
    predictor = Predictor("output/.../seed1")  # classnames=["cat", "dog"] for other classes than it was trained on
    probabilities = predictor(["photo.jpg"])   # (images, classes)
"""

import argparse
import csv
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dassl.output import clean, csv_cell, json_text, printable_streams

LOGGERS = (
    "adaptation",
    "clip",
    "dassl",
    "datasets",
    "trainers",
)  # what they tell of building a model is of no interest here
FILE_NAME = re.compile(r"[^,\s]*(?:[/\\][^,\s]*|\.[A-Za-z0-9]{1,5})")


class Predictor:
    """What a run learned, ready to look at images.

    Args:
        run: output folder of a training run, or a checkpoint file of one. A run of a method that learns nothing has no
            checkpoint: there the folder's metrics.json says what it was.
        classnames: classes to choose from; by default those that it was trained on.
        epoch: of the checkpoint; by default the last (of a run that selects by validation, the best).
        opts: configuration keys and values, one after the other, for what is elsewhere now:
            `["MODEL.BACKBONE.PATH", "weights.pt"]`.

    Attributes:
        classnames: the classes, in the order of the probabilities.

    Raises:
        FileNotFoundError: there is no such checkpoint, or weights of the backbone.
        ValueError: the checkpoint does not say what it is of, or what was learned cannot be applied to these classes.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        classnames: Sequence[str] | None = None,
        epoch: int | None = None,
        opts: Sequence[str] = (),
    ):
        from dassl.engine import build_trainer

        with _quiet():
            tree, trained = _about(Path(run), epoch)
            self.classnames = list(classnames or trained)
            cfg = _configuration(tree, opts, str(run))
            with _only_classes(cfg, self.classnames):
                self.trainer = build_trainer(cfg)
            if Path(run).is_file():
                self.trainer.load_learned(run)
            else:
                self.trainer.load_model(str(run), epoch=epoch)
            self.trainer.set_model_mode("eval")

    def __call__(self, images: Sequence[str]):
        """Probabilities (images, classes), float32, as a NumPy array.

        Raises:
            FileNotFoundError, ValueError: a file is not there or is no image, or no file is named.
        """
        import torch

        return self._each(images, lambda batch: torch.softmax(self.trainer.model_inference(batch).float(), dim=-1))

    def features(self, images: Sequence[str]):
        """Image features (images, width), float32, as the method compares them with the classes, as a NumPy array."""
        method, precision = self._method(), self.trainer.precision

        def compute(batch):
            with precision.autocast():
                return method.image_features(batch)

        return self._each(images, compute)

    def text_features(self):
        """Class features (classes, width), float32, as a NumPy array.

        None where the method has none that are the same for every image (CoCoOp).
        """
        import torch

        method = self._method()
        try:
            with torch.no_grad(), self.trainer.precision.autocast():
                return method.text_features().float().cpu().numpy()
        except NotImplementedError:
            return None

    def _method(self):
        """The module that makes features; ValueError if the trainer has none."""
        method = getattr(self.trainer, "model", None)
        if not hasattr(method, "image_features") or not hasattr(method, "text_features"):
            raise ValueError(f"{type(self.trainer).__name__} does not say how it makes features")
        return method

    def _each(self, images: Sequence[str], compute):
        """What `compute` makes of batches of images (B, 3, H, W), one below the other."""
        import torch

        from dassl.data.data_manager import build_data_loader
        from dassl.data.datasets import Datum

        if not images:
            raise ValueError("no image was named")
        cfg = self.trainer.cfg
        loader = build_data_loader(
            cfg,
            data_source=[Datum(impath=str(path)) for path in images],
            batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=self.trainer.test_loader.dataset.transform,
            is_train=False,
            random_streams="keyed",
        )
        with torch.no_grad():
            parts = [compute(self.trainer.parse_batch_test(batch)[0]).float().cpu() for batch in loader]
        return torch.cat(parts).numpy()


def _about(run: Path, epoch: int | None) -> tuple[dict, list[str]]:
    """Configuration and class names of a run: of its checkpoint, or else of its metrics.json."""
    from adaptation.trainer import find_checkpoint
    from dassl.utils import load_checkpoint
    from results.records import read_metrics

    files = [run] if run.is_file() else [find_checkpoint(p.parent, epoch, False) for p in run.glob("*/checkpoint")]
    for file in files:
        checkpoint = load_checkpoint(str(file))
        if "config" in checkpoint and "classnames" in checkpoint:
            return checkpoint["config"], _names(checkpoint["classnames"], file)
    metrics = run / "metrics.json"
    if metrics.is_file():
        record = read_metrics(metrics, ())
        if "config" in record and record.get("per_class"):
            return record["config"], _names([row.get("classname") for row in record["per_class"]], metrics)
        raise ValueError(f"{metrics} does not say of which settings and classes it is, and there is no checkpoint")
    if files:
        raise ValueError(f"{files[0]} does not say which method and classes it is of: it was not written by train.py")
    raise FileNotFoundError(f"{run} holds no checkpoint and no result of a run")


def _names(names: object, source: Path) -> list[str]:
    """Class names as a file gives them; ValueError if it gives something else."""
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{source} holds no list of class names")
    return list(names)


def _configuration(tree: dict, opts: Sequence[str], source: str):
    """The configuration of a run with the keys that are given now, frozen.

    What names a place is taken from the keys that are given now alone: a checkpoint may be a stranger's.

    Raises:
        ValueError: it is no configuration, or names a place of its backbone.
    """
    from yacs.config import CfgNode

    import datasets  # noqa: F401 - registers what is in the folder
    import trainers  # noqa: F401 - registers what is in the folder
    from clip.loading import require_published
    from dassl.config import declared_cfg, merge_opts

    cfg = declared_cfg()
    cfg.set_new_allowed(True)
    try:
        cfg.merge_from_other_cfg(CfgNode(tree))
        backbone = dict(cfg.MODEL.BACKBONE)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{source} holds no configuration of a run: {said}") from error
    cfg.set_new_allowed(False)
    given = opts[::2]
    name, path = ("" if f"MODEL.BACKBONE.{key}" in given else str(backbone[key]) for key in ("NAME", "PATH"))
    flag = "--opts MODEL.BACKBONE"
    require_published(name, path, source, f"{flag}.NAME", f"{flag}.PATH")
    cfg.DATASET.ROOT = ""
    merge_opts(cfg, list(opts))
    cfg.OUTPUT_DIR = cfg.RESUME = cfg.MODEL.INIT_WEIGHTS = ""
    cfg.VERBOSE = False
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    return cfg


@contextmanager
def _only_classes(cfg, classnames: Sequence[str]) -> Iterator[None]:
    """Let the run's data set consist of class names alone while the trainer is built: no image of it is needed."""
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
    from dassl.utils import check_availability

    name = cfg.DATASET.NAME
    check_availability(name, DATASET_REGISTRY.registered_names(), "dataset")
    known = DATASET_REGISTRY.get(name)
    shots = max(cfg.DATASET.NUM_SHOTS, 1)

    def build(self, cfg):
        samples = [Datum(__file__, label, 0, title) for label, title in enumerate(classnames) for _ in range(shots)]
        self.template = cfg.DATASET.get("TEMPLATE", "") or getattr(known, "template", "")
        DatasetBase.__init__(self, train_x=samples, test=samples)

    members = {"__init__": build, "same_names": getattr(known, "same_names", ())}
    DATASET_REGISTRY.register(type(name, (DatasetBase,), members), force=True)
    try:
        yield
    finally:
        DATASET_REGISTRY.register(known, force=True)


def find_images(paths: Sequence[str]) -> list[str]:
    """The image files among the paths and in the folders among them, in order.

    Raises:
        FileNotFoundError: a path is not there, or a folder holds no image.
    """
    from dassl.utils.images import is_image_file

    found: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(str(file) for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
            inside = [file for file in files if is_image_file(file)]
            if not inside:
                raise FileNotFoundError(f"the folder {path} holds no image")
            found += inside
        elif path.is_file():
            found.append(str(path))
        else:
            raise FileNotFoundError(f"there is no {path}")
    return found


def read_classes(text: str) -> list[str]:
    """Class names from a comma-separated list, or from a file with one on each line.

    Raises:
        FileNotFoundError: what looks like a file (a single word with a suffix or a folder) is none.
        ValueError: the file is no text, or there is no name in it.
    """
    if os.path.isfile(text):
        try:
            parts = Path(text).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"--classes {text}: the file is no text") from error
    elif FILE_NAME.fullmatch(text):
        raise FileNotFoundError(f"--classes {text}: there is no such file; a class of that name needs a file with it")
    else:
        parts = text.split(",")
    names = [part.strip() for part in parts if part.strip()]
    if not names:
        raise ValueError(f"--classes {text}: there is no name of a class")
    return names


def render(images: Sequence[str], classnames: Sequence[str], probabilities, form: str, top: int) -> str:
    """The probabilities as a table of the `top` classes, as CSV with all of them, or as JSON with all of them."""
    if form == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["image", *map(csv_cell, classnames)])
        writer.writerows([csv_cell(path), *map(float, row)] for path, row in zip(images, probabilities, strict=True))
        return out.getvalue()
    named = [_by_name(classnames, row) for row in probabilities]
    if form == "json":
        rows = [{"image": path, "probabilities": row} for path, row in zip(images, named, strict=True)]
        return json_text(rows)
    shown = [clean(path) for path in images]
    width = max(map(len, shown), default=0)
    lines = []
    for path, row in zip(shown, named, strict=True):
        best = sorted(row, key=row.get, reverse=True)[:top]
        lines.append(f"{path:<{width}}  " + "  ".join(f"{100 * row[name]:6.2f}% {clean(name)}" for name in best))
    return "\n".join(lines) + "\n"


def _by_name(classnames: Sequence[str], row: Sequence[float]) -> dict[str, float]:
    """Probabilities by class name; those of classes of the same name (ImageNet has some) are added up."""
    named = dict.fromkeys(classnames, 0.0)
    for name, probability in zip(classnames, map(float, row), strict=True):
        named[name] += probability
    return named


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="output folder of a training run, or a checkpoint file")
    parser.add_argument("images", nargs="+", help="image files, and folders of them")
    parser.add_argument("--classes", default="", help="names a,b,c or a file of them (default: those trained on)")
    parser.add_argument("--epoch", type=int, help="of the checkpoint in a folder (default: the last)")
    parser.add_argument("--top", type=int, default=3, help="classes shown in the table (default: %(default)s)")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument("--features", default="", metavar="FILE.npz", help="also write features and probabilities")
    elsewhere = "what is elsewhere now, such as MODEL.BACKBONE.PATH weights.pt"
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help=elsewhere)
    return parser


@printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; a user's mistake ends with one sentence on stderr and exit status 2."""
    args = build_parser().parse_args(argv)
    try:
        if args.top < 1:
            raise ValueError(f"--top {args.top}: at least one class is shown")
        images = find_images(args.images)
        classnames = read_classes(args.classes) if args.classes else None
        predictor = Predictor(args.run, classnames, args.epoch, args.opts)
        probabilities = predictor(images)
        if args.features:
            write_features(predictor, images, probabilities, args.features)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"predict.py: {error}\n")
        return 2
    sys.stdout.write(render(images, predictor.classnames, probabilities, args.format, args.top))
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the loggers of the rooms below say nothing but warnings for the block."""
    import dassl  # noqa: F401 - sets up its logger, which is made quiet here

    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def write_features(predictor: Predictor, images: Sequence[str], probabilities, path: str) -> None:
    """Write an .npz archive, whole or not at all; N images, C classes, E embedding width of the backbone.

    `images` (N,) and `classnames` (C,) are strings; `image_features` (N, E), `text_features` (C, E) and `probabilities`
    (N, C) are float32. Features are not normalised, and such as the method compares with each other: APEX's are mixed
    with the frozen ones. CoCoOp's text features differ from image to image: there the archive has none.

    Raises:
        OSError: the file cannot be written.
    """
    import numpy

    from dassl.utils import atomic_write

    arrays = {
        "images": numpy.array(images),
        "classnames": numpy.array(predictor.classnames),
        "probabilities": probabilities,
        "image_features": predictor.features(images),
        "text_features": predictor.text_features(),
    }
    try:
        with atomic_write(path, "wb") as file:
            numpy.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
