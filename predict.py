"""Class probabilities of images, by what a run learned.

    python predict.py output/.../seed1 photo.jpg folder/ --top 3
    python predict.py output/.../seed1 --export model.onnx

What is needed to apply it (method, settings, class names, backbone) stands in the checkpoint. From Python:

    from predict import Predictor
    predictor = Predictor("output/.../seed1")  # classnames=["cat", "dog"] for other classes than it was trained on
    probabilities = predictor(["photo.jpg"])   # (images, classes)
"""

import dassl.ctrl_c  # noqa: F401  # isort: skip - before what takes seconds

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl.output import clean, printable_streams
from results.prediction_files import FORMATS, Writer, feature_archive

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    OneImage = str | os.PathLike[str] | Image | np.ndarray | Tensor

logger = logging.getLogger(__name__)

FILE_NAME = re.compile(r"[^,\s]*(?:[/\\][^,\s]*|\.[A-Za-z0-9]{1,5})")
SHOWN_CLASSES = 10  # in a sentence about the classes


@dataclass(frozen=True)
class Answers:
    """What a predictor says of a batch of images.

    Attributes:
        images: as they were given, B of them.
        probabilities: (B, C), float32.
        features: (B, E), float32, as `Predictor.features` has them; None where they were not asked for.
    """

    images: "list[OneImage]"
    probabilities: "np.ndarray"
    features: "np.ndarray | None" = None


class Predictor:
    """What a run learned, ready to look at images.

    An image is the path of a file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W); the last two hold RGB, as
    uint8 or as floats from 0 to 1. Where images are asked for, one image is as good as a list of them; an array
    (B, H, W, 3) and a tensor (B, 3, H, W) are B images. A text is one path.

    Args:
        run: output folder of a training run, or a checkpoint file of one. A run of a method that learns nothing has no
            checkpoint: there the folder's metrics.json says what it was.
        classnames: classes to choose from; by default those that it was trained on. Where these are a part of the data
            set's classes (base classes), a warning says which: an image of any other is given one of them.
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
            tree, trained = trained_with(Path(run), epoch)
            self.classnames = list(classnames or trained)
            cfg = _configuration(tree, opts, str(run))
            with _only_classes(cfg, self.classnames):
                self.trainer = build_trainer(cfg)
            if Path(run).is_file():
                self.trainer.load_learned(run)
            else:
                self.trainer.load_model(str(run), epoch=epoch)
            self.trainer.set_model_mode("eval")
        self._trained = trained
        if not classnames and cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            logger.warning("%s", self.describe_classes())

    def describe_classes(self) -> str:
        """A sentence that says which classes are in force, and whether they are all that there are."""
        names = ", ".join(map(clean, self.classnames[:SHOWN_CLASSES]))
        names += f" and {len(self.classnames) - SHOWN_CLASSES} more" if len(self.classnames) > SHOWN_CLASSES else ""
        data = self.trainer.cfg.DATASET
        if self.classnames != self._trained:
            return f"{len(self.classnames)} classes, as given: {names}"
        if data.SUBSAMPLE_CLASSES == "all":
            return f"{len(self.classnames)} classes, all of {data.NAME}: {names}"
        return (
            f"{len(self.classnames)} classes, the {data.SUBSAMPLE_CLASSES} ones of {data.NAME}, on which the run was "
            f"trained ({names}): an image of any other class is given one of these; name others with classnames= or "
            "--classes"
        )

    def __call__(self, images: "OneImage | Iterable[OneImage]") -> "np.ndarray":
        """Probabilities (images, classes), float32, as a NumPy array.

        Raises:
            FileNotFoundError, ValueError: a file is not there or is no image, or no image is given.
        """
        import numpy as np

        return np.concatenate([answers.probabilities for answers in self.stream(images)])

    def features(self, images: "OneImage | Iterable[OneImage]") -> "np.ndarray":
        """Image features (images, width), float32, as the method compares them with the classes, as a NumPy array."""
        import numpy as np

        return np.concatenate([self._features(batch) for _, batch in self._batches(images)])

    def stream(self, images: "OneImage | Iterable[OneImage]", features: bool = False) -> Iterator[Answers]:
        """The answers batch by batch, so that no more than a batch of images is in memory at a time.

        Args:
            images: also a generator of them.
            features: whether the answers have image features.

        Raises:
            FileNotFoundError, ValueError: as above, when the batch of the image is reached.
        """
        import torch

        for given, batch in self._batches(images):
            with torch.no_grad():
                logits = self.trainer.model_inference(batch).float()
            probabilities = torch.softmax(logits, dim=-1).cpu().numpy()
            yield Answers(given, probabilities, self._features(batch) if features else None)

    def text_features(self) -> "np.ndarray | None":
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

    def export(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Write one file that gives these probabilities without this code; returns its metadata.

        Args:
            path: `model.onnx` (needs the packages onnx and onnxscript) or `model.pt2` (for `torch.export.load`).

        Raises:
            ValueError, OSError: as `adaptation.serving.export`, which says what is in the file.
        """
        from adaptation.serving import export

        return export(self.trainer, self.classnames, self._transform(), os.fspath(path))

    def _transform(self):
        """Pillow image -> tensor (3, H, W): that of the run's test images."""
        return self.trainer.test_loader.dataset.transform

    def _features(self, batch: "Tensor") -> "np.ndarray":
        """Image features of a batch (B, 3, H, W)."""
        import torch

        with torch.no_grad(), self.trainer.precision.autocast():
            return self._method().image_features(batch).float().cpu().numpy()

    def _method(self):
        """The module that makes features; ValueError if the trainer has none."""
        method = getattr(self.trainer, "model", None)
        if not hasattr(method, "image_features") or not hasattr(method, "text_features"):
            raise ValueError(f"{type(self.trainer).__name__} does not say how it makes features")
        return method

    def _batches(self, images: "OneImage | Iterable[OneImage]") -> "Iterator[tuple[list[OneImage], Tensor]]":
        """Images as they were given, and as the trainer takes them: (B, 3, H, W) on the device."""
        import torch

        from dassl.utils.images import as_rgb

        transform, size = self._transform(), self.trainer.cfg.DATALOADER.TEST.BATCH_SIZE
        given, count = iter(_several(images)), 0
        while batch := list(islice(given, size)):
            tensors = torch.stack([transform(as_rgb(one, f"image {at}")) for at, one in enumerate(batch, count)])
            index, zeros = torch.arange(count, count + len(batch)), torch.zeros(len(batch), dtype=torch.long)
            names = [str(one) if isinstance(one, str | os.PathLike) else "" for one in batch]
            items = {"img": tensors, "label": zeros, "domain": zeros, "impath": names, "index": index}
            count += len(batch)
            yield batch, self.trainer.parse_batch_test(items)[0]
        if not count:
            raise ValueError("no image was named")


def _several(images: "OneImage | Iterable[OneImage]") -> "Iterable[OneImage]":
    """The images, also where one is given, or an array or a tensor of several."""
    from PIL import Image

    if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 0) == 3:
        return [images]  # type: ignore[list-item]  # checked by the line above
    return images


def trained_with(run: Path, epoch: int | None) -> tuple[dict, list[str]]:
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


def stored_configuration(tree: dict, opts: Sequence[str], source: str):
    """The configuration of a run with the keys that are given now, in a place of no output.

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
    return cfg


def _configuration(tree: dict, opts: Sequence[str], source: str):
    """The stored configuration as looking at images needs it, frozen; raises as above."""
    cfg = stored_configuration(tree, opts, source)
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


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="output folder of a training run, or a checkpoint file")
    parser.add_argument("images", nargs="*", help="image files, and folders of them")
    classes = "names a,b,c or a file of them (default: those trained on, which are said)"
    parser.add_argument("--classes", "--classnames", default="", help=classes)
    parser.add_argument("--epoch", type=int, help="of the checkpoint in a folder (default: the last)")
    parser.add_argument("--top", type=int, default=3, help="classes shown in the table (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--features", default="", metavar="FILE.npz", help="also write features and probabilities")
    served = "write one file that gives these probabilities without this code"
    parser.add_argument("--export", default="", metavar="FILE.onnx|FILE.pt2", help=served)
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
        if not args.images and not args.export:
            raise ValueError("no image was named: give files or folders, or --export")
        images = find_images(args.images)
        classnames = read_classes(args.classes) if args.classes else None
        with _quiet(logging.ERROR, __name__):  # which classes there are is said below
            predictor = Predictor(args.run, classnames, args.epoch, args.opts)
        if args.export:
            predictor.export(args.export)
            sys.stderr.write(f"{args.export}: {predictor.describe_classes()}\n")
        if images:
            write(predictor, images, args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"predict.py: {error}\n")
        return 2
    return 0


def write(predictor: Predictor, images: Sequence[str], args: argparse.Namespace) -> None:
    """Write the answers on standard output as they come, features to a file; which classes are in force is said first.

    Raises as `Predictor.stream` and `feature_archive`.
    """
    from tqdm import tqdm

    writer, said = Writer(args.format, images, predictor.classnames, args.top), False
    archive = feature_archive(args.features, images, predictor) if args.features else nullcontext()
    hidden = not sys.stderr.isatty() or sys.stdout.isatty()  # there the answers themselves come by
    with archive as collected, tqdm(total=len(images), unit="image", disable=hidden, leave=False) as bar:
        for answers in predictor.stream(images, features=bool(args.features)):
            if not said:
                sys.stderr.write(f"{predictor.describe_classes()}\n")
                said = True
            if collected is not None:
                collected.add(answers)
            sys.stdout.write(writer.text(answers.probabilities))
            bar.update(len(answers.images))
    sys.stdout.write(writer.end())


@contextmanager
def _quiet(level: int = logging.WARNING, *more: str) -> Iterator[None]:
    """Let the loggers of the rooms below, and more of them, say nothing below a level for the block."""
    import adaptation
    import clip
    import dassl
    import datasets
    import trainers

    names = [*(room.__name__ for room in (adaptation, clip, dassl, datasets, trainers)), *more]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in levels:
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
