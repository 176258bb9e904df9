"""What a run's record says of itself, held against where the run lies and against what else the record says."""

import functools
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from results.layout import RunDirectory, grid_settings, grid_value, recognise

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# field of a record -> the configuration key that it repeats
REPEATED = {
    "trainer": "TRAINER.NAME",
    "dataset": "DATASET.NAME",
    "subsample_classes": "DATASET.SUBSAMPLE_CLASSES",
    "seed": "SEED",
    "shots": "DATASET.NUM_SHOTS",
    "backbone": "MODEL.BACKBONE.NAME",
    "transductive": "TEST.TRANSDUCTIVE",
}
ROUNDING = 0.01  # points of accuracy


def contradictions(place: RunDirectory, metrics: Mapping[str, Any]) -> str:
    """In what a record disagrees with its directory, and with itself, in a sentence; "" where all agree.

    What a record does not say (an older one, or one that is known by its log alone) is not held against it.
    """
    elsewhere = [*_with_directory(place, metrics), *_with_checkpoint(place, metrics)]
    within = [*_with_configuration(metrics), *_with_counts(metrics)]
    parts = [f"its record disagrees with its directory: {'; '.join(elsewhere)}"] if elsewhere else []
    parts += [f"its record disagrees with itself: {'; '.join(within)}"] if within else []
    return "; ".join(parts)


def unlike_directory(place: RunDirectory, fields: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What a run is that its directory does not say: a field of a record, its value, and what the directory says."""
    expected: dict[str, tuple[Any, ...]] = {"trainer": (place.trainer,), "dataset": _names_of(place.configured)}
    expected["subsample_classes"] = (place.kind.classes,) if place.kind.classes else ()
    if "{seed}" in place.kind.template:
        expected["seed"] = (place.seed,)
    if "{shots}" in place.kind.template and fields.get("learns", True):
        expected["shots"] = (place.shots,)
    if place.kind.variant_is:
        expected[place.kind.variant_is] = (place.variant.replace("_", " "),)
    for name, known in expected.items():
        if known and fields.get(name, known[0]) not in known:
            yield name, fields[name], " or ".join(map(str, known))
    if bool(fields.get("transductive")) != place.kind.transductive:
        yield "transductive", fields.get("transductive") or "no", "yes" if place.kind.transductive else "no"


def _with_directory(place: RunDirectory, metrics: Mapping[str, Any]) -> Iterator[str]:
    """Where the parts of the directory's name are not what the record says, or were others when it was written."""
    for name, said, known in unlike_directory(place, metrics):
        yield f"{name} {said} in the record, {known} by the directory"
    for key, known in grid_settings(place.grid).items():
        value = _configured(metrics, key)
        if value is not None and grid_value(value) != known:
            yield f"{key} {value} in the record, {known} by the directory"
    written = _written_to(metrics)
    if written:
        for name in ("role", "dataset", "cfg", "variant", "source"):
            then, now = getattr(written, name), getattr(place, name)
            if then != now:
                yield f"{name} {then or 'none'} when it was written, {now or 'none'} by the directory"


def _names_of(dataset: str) -> tuple[str, ...]:
    """What records may call the data set of a configuration file; () for a file that is not in configs/datasets."""
    name = _registered(dataset)
    return (name, dataset) if name else ()


@functools.cache
def _registered(dataset: str) -> str:
    """DATASET.NAME of a file in configs/datasets, "" without such a file."""
    path = CONFIGS / "datasets" / f"{dataset}.yaml"
    found = path.is_file() and re.search(r"^\s+NAME:\s*[\"']?([^\"'\s#]+)", path.read_text(encoding="utf-8"), re.M)
    return found[1] if found else ""


def _written_to(metrics: Mapping[str, Any]) -> RunDirectory | None:
    """What the directory that the run was written to said, if the record has it and it was one of a known layout."""
    output = metrics.get("config", {}).get("OUTPUT_DIR")
    if not isinstance(output, str) or not output:
        return None
    learnless = metrics["trainer"] if metrics.get("learns") is False else ""
    return recognise(Path(os.path.normpath(output)).as_posix(), learnless)


def _with_checkpoint(place: RunDirectory, metrics: Mapping[str, Any]) -> Iterator[str]:
    """Where an evaluation loaded what another run learned than its directory says."""
    trained = metrics.get("checkpoint", {})
    if place.kind.part != "test":
        return
    known = _names_of(place.trained_on)
    for name, there in (("seed", (place.seed,)), ("shots", (place.shots,)), ("dataset", known)):
        if there and trained.get(name, there[0]) not in there:
            yield f"{name} {trained[name]} of the training that it evaluates, {there[0]} by the directory"


def _with_configuration(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Where a field is not what the configuration in the record says."""
    for name, key in REPEATED.items():
        value = _configured(metrics, key)
        if value is not None and metrics.get(name, value) != value:
            yield f"{name} {metrics[name]}, but {key} {value}"


def _configured(metrics: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in the configuration of a record; None where it has none."""
    value: Any = metrics.get("config", {})
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _with_counts(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Where the accuracy or the number of images or classes is not that of the rows of the classes."""
    rows = metrics.get("per_class", ())
    try:
        total, correct = (sum(row[name] for row in rows) for name in ("total", "correct"))
    except (KeyError, TypeError):
        return
    if not total:
        return
    images = total + metrics.get("num_ood", 0)  # those of none of the classes have no row
    accuracy = 100 * correct / total
    if not math.isclose(accuracy, metrics["accuracy"], abs_tol=ROUNDING):
        yield f"accuracy {metrics['accuracy']:.4g}, but {accuracy:.4g} by its classes"
    if metrics.get("num_test", images) != images:
        yield f"num_test {metrics['num_test']}, but {images:g} by its classes"
    if metrics.get("num_classes", len(rows)) < len(rows):
        yield f"num_classes {metrics['num_classes']}, but {len(rows)} have rows"
