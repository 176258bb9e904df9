"""A trained method as one file that needs none of this code: ONNX (`.onnx`) or a program of torch.export (`.pt2`).

The file takes prepared images and returns probabilities of its classes; how images are prepared stands in its metadata.

Shape legend: B images, C classes, S side of the images.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptation.method import Method
from adaptation.trainer import MethodTrainer
from clip.chunking import unchunked
from dassl.utils import atomic_write

SUFFIXES = (".onnx", ".pt2")
INPUT, OUTPUT, METADATA = "images", "probabilities", "apexvl"
EXAMPLE = 3  # images; more than one, so that their number is no constant


class Served(nn.Module):
    """What is exported: images (B, 3, S, S) -> probabilities (B, C), float32.

    The frozen backbone is a part of it here, which a method only holds.
    """

    def __init__(self, method: Method):
        super().__init__()
        self.method, self.backbone = method, method.backbone.model

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities (B, C) of images (B, 3, S, S)."""
        return torch.softmax(self.method(images).float(), dim=-1)


def metadata(trainer: MethodTrainer, classnames: list[str], transform: Any) -> dict[str, Any]:
    """What somebody needs who has the file alone: classes in order, how an image becomes an input, what it is of."""
    cfg = trainer.cfg
    return {
        "classnames": classnames,
        "input": {"name": INPUT, "shape": ["batch", 3, *cfg.INPUT.SIZE], "type": "float32", "channels": "RGB"},
        "output": {"name": OUTPUT, "shape": ["batch", len(classnames)], "type": "float32"},
        "preprocessing": {
            "steps": [str(step) for step in getattr(transform, "transforms", [transform])],
            "size": list(cfg.INPUT.SIZE),
            "interpolation": cfg.INPUT.INTERPOLATION,
            "resize": cfg.INPUT.RESIZE_MODE,
            "range": [0.0, 1.0],
            "mean": list(cfg.INPUT.PIXEL_MEAN) if "normalize" in cfg.INPUT.TRANSFORMS else None,
            "std": list(cfg.INPUT.PIXEL_STD) if "normalize" in cfg.INPUT.TRANSFORMS else None,
        },
        "trainer": cfg.TRAINER.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
    }


def export(trainer: MethodTrainer, classnames: list[str], transform: Any, path: str) -> dict[str, Any]:
    """Write a trained method to a file, whole or not at all; returns its metadata.

    In the file they are JSON, under the key `apexvl`: of the `metadata_props` of an ONNX model, of the `extra_files` of
    a program of torch.export. The number of images is free.

    Args:
        trainer: with the method in evaluation mode, its classes set.
        classnames: the classes.
        transform: Pillow image -> input (3, S, S), for the metadata.
        path: ends in `.onnx` (needs the packages onnx and onnxscript) or `.pt2`.

    Raises:
        ValueError: another ending; a package is missing; the method does not compute in float32, is none of this
            project's, or torch.export cannot trace it (CoCoOp, CLIP-CITE).
        OSError: the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: an exported model ends in {' or '.join(SUFFIXES)}")
    if suffix == ".onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise ValueError(
            "an export to ONNX needs the packages onnx and onnxscript: python -m pip install onnx onnxscript"
        )
    if not isinstance(getattr(trainer, "model", None), Method):
        raise ValueError(f"{type(trainer).__name__} is no method of this project's kind, and cannot be exported")
    if trainer.precision.name != "fp32":
        key = f"TRAINER.{trainer.config_node}.PREC"
        raise ValueError(
            f"an exported model computes in float32: give --opts {key} fp32 (it is {trainer.precision.name})"
        )
    about = metadata(trainer, classnames, transform)
    program, text = _traced(trainer), json.dumps(about)
    with atomic_write(path, "wb") as file:
        if suffix == ".pt2":
            torch.export.save(program, file, extra_files={METADATA: text})
        else:
            file.write(_onnx(program, {METADATA: text}))
    return about


def _traced(trainer: MethodTrainer) -> torch.export.ExportedProgram:
    """The program of a method; class features are constants of it."""
    method = trainer.model
    served = Served(method).eval().requires_grad_(False)
    images = torch.zeros(EXAMPLE, 3, *trainer.cfg.INPUT.SIZE, device=trainer.device)
    shapes = {"images": {0: torch.export.Dim("batch")}}
    with torch.no_grad(), unchunked(method.backbone), _quiet():  # a plan of chunks would fix the number of images
        served(images)  # what evaluation keeps is there before it is traced
        try:
            return torch.export.export(served, (images,), dynamic_shapes=shapes)
        except RuntimeError as error:  # what torch.export raises of a computation that depends on numbers
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{trainer.cfg.TRAINER.NAME} cannot be exported: torch.export cannot trace it ({first})"
            ) from error


def _onnx(program: torch.export.ExportedProgram, properties: Mapping[str, str]) -> bytes:
    """An ONNX model of a program, as the bytes of its file."""
    with _quiet():
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT], external_data=False
        )
    assert exported is not None
    exported.model.metadata_props.update(properties)
    return exported.model_proto.SerializeToString()


@contextmanager
def _quiet():
    """Without the exporters' progress and their warnings about their own parts."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
