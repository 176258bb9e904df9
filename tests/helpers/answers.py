"""Made predictions, and trees of runs that have them."""

from pathlib import Path

import numpy as np
from results_trees import write_run

from dassl.evaluation.predictions import NAME, VAL_NAME, Predictions, write_predictions
from results.layout import RunDirectory


def make_answers(
    images: int = 200, classes: int = 5, seed: int = 0, skill: float = 1.5, names: str = "class", width: int = 8
) -> Predictions:
    """Random logits, in which the true class has `skill` more on the average; features of classes are random too."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    logits = rng.normal(0, 1.5, (images, classes))
    logits[np.arange(images), labels] += skill
    largest = logits.max(axis=1)
    text, frozen = rng.normal(size=(2, classes, width)).astype(np.float16)
    return Predictions(
        paths=np.array([f"{names}/{number:04d}.jpg" for number in range(images)]),
        labels=labels.astype(np.int32),
        classnames=np.array([f"{names} {number}" for number in range(classes)]),
        predicted=logits.argmax(axis=1).astype(np.int32),
        largest=largest.astype(np.float32),
        relative=(logits - largest[:, None]).astype(np.float16),
        logit_scale=100.0,
        text_features=text,
        frozen_text_features=frozen,
    )


def write_answers(
    root: Path, place: RunDirectory, answers: Predictions, val: Predictions | None = None, **fields
) -> Path:
    """Write a run with predictions, and with those of validation images if given; returns its directory."""
    directory = root / place.path()
    directory.mkdir(parents=True, exist_ok=True)
    said = {"file": NAME, "digest": write_predictions(directory / NAME, answers)}
    if val:
        said |= {"val_file": VAL_NAME, "val_digest": write_predictions(directory / VAL_NAME, val)}
    return write_run(root, place, answers.accuracy, predictions=said, **fields)
