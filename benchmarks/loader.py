"""Images per second of the loaders for 0, 1 and 2 workers, with decoded images kept in memory and without.

python -m benchmarks.loader [--images 128] [--rounds 3] [--output-dir output/benchmarks]

Draws pictures of two kinds, 32-pixel PNGs and JPEGs of the size of photographs, and passes over them as training does
(CoOp's transforms: random resized crop, flip, normalisation) and as evaluation does. What a pass takes includes
starting its workers, as in each epoch of a run. All variants take their turn in every round; the table gives medians
over the rounds of the rates, of the processor time of an image (workers included) and of the ratios within a round: a
machine that is busy slows all variants, and the processor times least. Writes `loader.json` and `loader.md`, and prints
the table.
"""

import argparse
import itertools
import logging
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dassl.config import get_cfg_default
from dassl.data import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.engine.record import versions
from dassl.utils import atomic_write, available_cpus, write_json

MEGABYTES = 1024
WORKERS = (0, 1, 2)


@dataclass(frozen=True)
class Pictures:
    """A kind of image file, and the pixels that the model takes."""

    name: str
    width: int
    height: int
    suffix: str
    input_size: int


@dataclass(frozen=True)
class Variant:
    """What is passed over, and how."""

    pictures: str
    use: str
    workers: int
    stored: bool


KINDS = (Pictures("32-pixel PNG", 32, 32, "png", 32), Pictures("500 x 375 JPEG", 500, 375, "jpg", 224))
USES = ("training", "evaluation")


def draw(kind: Pictures, count: int, folder: Path) -> list[Datum]:
    """Write `count` pictures, smooth shapes under grain, which compress about as photographs do."""
    samples = []
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
        shapes = np.asarray(coarse.resize((kind.width, kind.height), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(shapes + random.normal(0, 8, shapes.shape), 0, 255).astype(np.uint8)
        path = folder / f"{kind.width}_{number}.{kind.suffix}"
        Image.fromarray(pixels).save(path)
        samples.append(Datum(impath=str(path), label=number % 2, classname=str(number % 2)))
    return samples


def make_loader(variant: Variant, kind: Pictures, samples: list[Datum]) -> DataLoader:
    """The loader of a variant, as a run makes it."""
    cfg = get_cfg_default()
    cfg.SEED, cfg.USE_CUDA = 1, torch.cuda.is_available()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (kind.input_size, kind.input_size), "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.CACHE_MB = variant.workers, MEGABYTES * variant.stored
    is_train = variant.use == "training"
    sampler, batch_size = ("RandomSampler", 16) if is_train else ("SequentialSampler", 128)
    transform = build_transform(cfg, is_train=is_train)
    return build_data_loader(
        cfg, sampler, samples, batch_size, tfm=transform, is_train=is_train, random_streams="keyed"
    )


@dataclass(frozen=True)
class Pass:
    """What one pass over a loader took."""

    images_per_second: float
    cpu_ms_per_image: float


def _cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(loader: DataLoader) -> Pass:
    """Pass over a loader."""
    start, cpu, count = time.perf_counter(), _cpu_seconds(), 0
    for batch in loader:
        count += len(batch["img"])
    return Pass(count / (time.perf_counter() - start), 1000 * (_cpu_seconds() - cpu) / count)


def run(count: int, rounds: int) -> dict[Variant, list[Pass]]:
    """The passes of every variant, one per round."""
    loaders = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            samples = draw(kind, count, Path(folder))
            for use, workers, stored in itertools.product(USES, WORKERS, (False, True)):
                variant = Variant(kind.name, use, workers, stored)
                loaders[variant] = make_loader(variant, kind, samples)
        for loader in loaders.values():
            measure(loader)  # fills the store, and the system's cache of files
        passes: dict[Variant, list[Pass]] = {variant: [] for variant in loaders}
        for _ in range(rounds):
            for variant, loader in loaders.items():
                passes[variant].append(measure(loader))
    return passes


def table(passes: dict[Variant, list[Pass]]) -> str:
    """The passes as a Markdown table."""
    head = "| images | use | workers | images/s, decoded each time | images/s, in memory | ratio "
    head += (
        "| ratio to 0 workers, decoded | CPU ms, decoded each time | CPU ms, in memory | ratio |\n"
        + "|---" * 10
        + "|\n"
    )
    lines = []
    for variant in (variant for variant in passes if variant.stored):
        decoded, alone = (replace(variant, stored=False, workers=workers) for workers in (variant.workers, 0))
        cells = [variant.pictures, variant.use, str(variant.workers)]
        cells += [f"{median(one.images_per_second for one in passes[each]):,.0f}" for each in (decoded, variant)]
        cells += [_ratio(passes[variant], passes[other], "images_per_second") for other in (decoded, alone)]
        cells += [f"{median(one.cpu_ms_per_image for one in passes[each]):.2f}" for each in (decoded, variant)]
        cells.append(_ratio(passes[variant], passes[decoded], "cpu_ms_per_image"))
        lines.append(f"| {' | '.join(cells)} |\n")
    return head + "".join(lines)


def _ratio(passes: list[Pass], reference: list[Pass], what: str) -> str:
    """The median over the rounds of a ratio between two variants."""
    pairs = zip(passes, reference, strict=True)
    return f"{median(getattr(one, what) / getattr(two, what) for one, two in pairs):.2f}"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="pictures of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="how often each variant takes its turn")
    parser.add_argument("--output-dir", default="output/benchmarks", help="where loader.json and loader.md go")
    return parser


def main() -> None:
    """Measure, write and print."""
    args = build_parser().parse_args()
    passes = run(args.images, args.rounds)
    machine = {"processors": available_cpus(), "threads": torch.get_num_threads(), "load": os.getloadavg()}
    record = {
        "images": args.images,
        "rounds": args.rounds,
        "machine": machine,
        "versions": versions(),
        "passes": [{**asdict(variant), "rounds": [asdict(one) for one in each]} for variant, each in passes.items()],
    }
    write_json(record, os.path.join(args.output_dir, "loader.json"))
    said = (
        f"{args.images} images, {args.rounds} rounds, {machine['processors']} processors, load {machine['load'][0]:.1f}"
    )
    text = f"Loaders: {said}\n\n{table(passes)}"
    with atomic_write(os.path.join(args.output_dir, "loader.md")) as file:
        file.write(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    logging.getLogger("dassl").setLevel(logging.WARNING)  # the transforms of each loader
    main()
