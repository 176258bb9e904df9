"""Look at what is there: `python -m datasets.check NAME... --root DATA`.

    python -m datasets.check caltech101 oxford_pets --root data
    python -m datasets.check my_birds.yaml --root data --prompts
    python -m datasets.check photos/
    python -m datasets.check all --root data --no-decode --json report.json

Prints a table (classes and images against the expected numbers, unreadable and missing images, the split's hash), what
is wrong, and the class names as the prompts that they give. Nothing is written into the data. Exit status: 0 all is
well, 1 something is wrong, 2 the command was.
"""

import dassl.ctrl_c  # noqa: F401  # isort: skip - before what takes seconds

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image
from tqdm import tqdm
from yacs.config import CfgNode

from clip.simple_tokenizer import SimpleTokenizer
from dassl.output import printable_streams
from dassl.utils import available_cpus, group_equal, write_json
from dassl.utils.file_identity import file_digests, file_status
from dassl.utils.images import DAMAGE, has_deep_colours, is_wide, to_rgb, too_large, value_range

from . import caches, catalogue
from .fewshot import FewShotDataset
from .splits import (
    PARTS,
    Item,
    Split,
    check_names,
    hint_at_backslashes,
    list_images,
    missing_files,
    subsample_split,
)  # fmt: skip

SHOWN = 5  # of many findings of one kind
EXIF_ORIENTATION = 0x0112
Place = tuple[str, Item]  # list (train, val, test), row of it
WIDE = "more than 8 bits, read from"


@dataclass
class Report:
    """What a look at one data set found.

    Attributes:
        name: what was asked for.
        images: list (train, val, test) -> images.
        expected: the same for the published data set, and its classes; empty where nothing is published.
        classes: number of classes.
        split_file: path of the split file, "" if the split was made from the raw files.
        split_hash: SHA-256 of the split's rows.
        missing: images that the split names and that are not there.
        left_out: file beside the images -> why it is not used.
        unreadable: image -> why it cannot be read.
        peculiar: peculiarity (CMYK, rotated ...) -> images that have it; they can be used.
        problems: what is wrong, one sentence each; any makes the check fail.
        remarks: what is worth knowing.
        prompts: the sentence of each class.
        base, new: names of the classes that base-to-new generalisation trains on, and of the others.
    """

    name: str
    images: dict[str, int] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    classes: int = 0
    split_file: str = ""
    split_hash: str = ""
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    peculiar: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    base: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        """Nothing is wrong."""
        return not (self.problems or self.missing or self.unreadable)


class _Collector(logging.Handler):
    """Keeps the texts of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _warnings_into(texts: list[str]) -> Iterator[None]:
    """Append the warnings that data sets log to `texts`."""
    collector = _Collector()
    logger = logging.getLogger(__package__)
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)
        texts.extend(collector.texts)


def look_at_image(path: str) -> tuple[str, list[str]]:
    """Decode one image: (why it cannot be read or "", its peculiarities)."""
    try:
        if os.path.getsize(path) == 0:
            return "empty file", []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                deep = has_deep_colours(image)
                peculiar = _of_the_file(image)
                rgb = to_rgb(image)
                if deep and np.asarray(rgb).max() < 16:
                    peculiar.append("dark: no value in the upper 15/16 of 16 bits")
                peculiar += _peculiarities(image)
    except Image.DecompressionBombError:
        return too_large(), []
    except DAMAGE as error:
        return f"{type(error).__name__}: {error}", []
    return "", peculiar


def _of_the_file(image: Image.Image) -> list[str]:
    """What is unusual about an opened image that cannot be told once it is read, as asking for its EXIF may do."""
    found = ["16 bits per channel, of which the upper 8 are read"] if has_deep_colours(image) else []
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        tiff, other = "turned by Pillow as its orientation says", "rotated by EXIF, which is ignored here"
        found.append(f"{tiff if image.format == 'TIFF' else other} as in the official code")
    return found


def _peculiarities(image: Image.Image) -> list[str]:
    """What is unusual about an image that can be read."""
    found = []
    if image.mode == "CMYK":
        found.append("CMYK")
    if image.mode in ("P", "PA"):
        found.append("palette")
    if is_wide(image):
        values = np.asarray(image)
        low, high = value_range(image, values, getattr(image, "tag_v2", {}))
        found.append(f"{WIDE} {low} (black) to {high} (white)")
        if values.max() < low + (high - low) / 16:
            found.append(f"dark: no value in the upper 15/16 of {low} to {high}")
    if image.has_transparency_data:
        found.append("transparency, which is dropped")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # whose further frames are previews
        found.append("several frames or pages, of which the first is taken")
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        found.append(f"huge, over {Image.MAX_IMAGE_PIXELS} pixels")
    if min(image.size) < 16:
        found.append("smaller than 16 pixels")
    return found


def decode_all(paths: list[str], report: Report, workers: int, progress: bool) -> None:
    """Decode every image with `workers` threads (Pillow's decoders run in parallel) and note what is found."""
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(look_at_image, paths)
        bar = tqdm(results, total=len(paths), desc=report.name, unit="images", disable=not progress)
        for path, (reason, peculiar) in zip(paths, bar, strict=True):
            if reason:
                report.unreadable[path] = reason
            for kind in peculiar:
                report.peculiar.setdefault(kind, []).append(path)
    ranges = [kind for kind in report.peculiar if kind.startswith(WIDE)]
    if len(ranges) > 1:
        report.problems.append(f"not all images of more than 8 bits have the same range: {'; '.join(ranges)}")


def examine(name: str, cfg: CfgNode, decode: bool = True, workers: int = 1, progress: bool = False) -> Report:
    """Look at one data set; whatever is wrong is in the report, nothing is raised for it and nothing written."""
    report = Report(name)
    with _warnings_into(report.remarks):
        try:
            dataset = catalogue.located(cfg)
            dataset.keeps = False
            dataset.provide()
            dataset.check_folders()
            split = dataset.load_split()
            check_names(split)
        except (OSError, ValueError) as error:
            report.problems.append(str(error))
            return report
        report.problems += dataset.inspect()
        _describe_split(dataset, split, report)
        _compare_names(dataset, split.class_names(), report, cfg.DATASET.ALLOW_SAME_NAMES)
        _compare_counts(dataset, split, report)
        _look_at_caches(dataset, split, report)
        report.left_out = _left_out(dataset, split)
        report.missing = missing_files(dataset.image_dir, split.items())
        report.problems += sorted({hint_at_backslashes(path).lstrip() for path in report.missing} - {""})
        paths = sorted({os.path.join(dataset.image_dir, item.impath) for item in split.items()} - set(report.missing))
        if decode:
            decode_all(paths, report, workers, progress)
        _compare_images(dataset, split, report, by_content=decode)
    return report


def _describe_split(dataset: FewShotDataset, split: Split, report: Report) -> None:
    """Fill in numbers, hash, prompts and what is odd about the split itself."""
    names = split.class_names()
    report.images = {part: len(items) for part, items in split.parts().items()}
    if split.test is split.train:  # an evaluation set
        report.images["train"] = 0
    report.classes = len(names)
    report.split_file = dataset.split_path if os.path.isfile(dataset.split_path) else ""
    report.split_hash = split.digest()
    report.prompts = [dataset.template.format(name.replace("_", " ")) for name in names]
    if split.test is not split.train:
        report.base, report.new = (subsample_split(split, part).class_names() for part in ("base", "new"))
    if split.origin:
        unlike = "; it is not the one that published numbers are for" if dataset.counts is not None else ""
        report.remarks.append(f"this split was {split.origin}{unlike}")
    if paths := [name for name in names if "/" in name or "\\" in name]:
        report.remarks.append(
            f"{len(paths)} class names look like paths, such as {paths[0]!r}, whose prompt is "
            f"{report.prompts[names.index(paths[0])]!r}: DATASET.CLASSNAMES gives names"
        )


def _compare_names(dataset: FewShotDataset, names: list[str], report: Report, allowed: bool) -> None:
    """Note classes whose sentences have the same tokens: a problem unless it is allowed, or published so."""
    encode = SimpleTokenizer().encode
    for group in group_equal(names, (tuple(encode(name.replace("_", " "))) for name in names)):
        text = f"classes {' and '.join(map(repr, group))} are the same sentence to CLIP, which cannot tell them apart"
        if set(group) <= set(dataset.same_names):
            report.remarks.append(f"{text} (so in the published list)")
        elif allowed:
            report.remarks.append(f"{text} (DATASET.ALLOW_SAME_NAMES)")
        else:
            report.problems.append(f"{text}: give them names that differ (or allow it: DATASET.ALLOW_SAME_NAMES True)")


def _compare_counts(dataset: FewShotDataset, split: Split, report: Report) -> None:
    """Note where numbers differ from the published data set."""
    if dataset.counts is None:
        return
    report.expected = asdict(dataset.counts)
    if report.classes != dataset.counts.classes:
        report.problems.append(f"{report.classes} classes instead of {dataset.counts.classes}")
    found = sum(report.images.values())
    wanted = sum(report.expected[part] for part in PARTS)
    if found < wanted:
        report.problems.append(f"{found} images instead of {wanted}: {wanted - found} are not there or not listed")
    elif report.images != {part: report.expected[part] for part in PARTS}:
        listed = ", ".join(f"{part} {report.images[part]} instead of {report.expected[part]}" for part in PARTS)
        report.remarks.append(f"other numbers than published: {listed}")


def _look_at_caches(dataset: FewShotDataset, split: Split, report: Report) -> None:
    """Note kept few-shot draws that do not belong to the split, and refuse pickles that are more than data."""
    if not os.path.isdir(dataset.split_fewshot_dir):
        return
    for name in sorted(os.listdir(dataset.split_fewshot_dir)):
        path = os.path.join(dataset.split_fewshot_dir, name)
        if name.endswith(".pkl"):
            try:
                caches.read_official_draw(path, split, os.path.basename(dataset.image_dir))
            except caches.ForbiddenPickle as error:
                report.problems.append(str(error))
        elif name.endswith(".json"):
            if f"-{report.split_hash[:12]}." not in name:
                report.remarks.append(f"stale: {path} is a draw from another split, and never read with this one")
            else:
                caches.read_draw(path, split)


def _compare_images(dataset: FewShotDataset, split: Split, report: Report, by_content: bool) -> None:
    """Note pictures that are in train and in val or test, or in two classes, whatever their paths are.

    Pictures are the same if they are one file or, `by_content`, hold the same bytes. Copies in a published data set are
    remarked: published numbers are for it as it is.
    """
    places: dict[Hashable, list[Place]] = {}
    absent = {*report.missing, *report.unreadable}
    for part, items in split.parts().items():
        for item in items if split.test is not split.train or part == "test" else ():
            path = os.path.join(dataset.image_dir, item.impath)
            if path not in absent:
                places.setdefault(file_status(path)[:2], []).append((part, item))
    _report_repeats(places.values(), report.problems)
    if not by_content:
        return
    copies: dict[str, list[Place]] = {}
    paths = [os.path.join(dataset.image_dir, group[0][1].impath) for group in places.values()]
    for digest, group in zip(file_digests(paths), places.values(), strict=True):
        copies.setdefault(digest, []).extend(group[:1])
    _report_repeats(copies.values(), report.problems if dataset.counts is None else report.remarks)


def _report_repeats(groups: Iterable[list[Place]], texts: list[str]) -> None:
    """Say which of the groups of places of one picture are in train and elsewhere, or in two classes."""
    leaks, conflicts = [], []
    for group in groups:
        trained, held = ([item.impath for part, item in group if (part == "train") is kind] for kind in (True, False))
        if trained and held:
            leaks.append(f"{trained[0]}, there {held[0]}")
        by_label = {item.label: f"{item.impath} ({item.classname})" for _, item in group}
        if len(by_label) > 1:
            conflicts.append(" and ".join(list(by_label.values())[:2]))
    if leaks:
        texts.append(f"{len(leaks)} training images are also in val or test, such as {leaks[0]}")
    if conflicts:
        texts.append(f"{len(conflicts)} images are in two classes, such as {conflicts[0]}")


def _left_out(dataset: FewShotDataset, split: Split) -> dict[str, str]:
    """What lies beside the images of a split and is not used, with the reason; unlisted images of own data among it."""
    left_out: dict[str, str] = {}
    listed = {os.path.normpath(os.path.join(dataset.image_dir, item.impath)) for item in split.items()}
    for folder in sorted({os.path.dirname(path) for path in listed} - {dataset.image_dir}):
        images = list_images(folder, left_out) if os.path.isdir(folder) else []
        if dataset.counts is None:
            paths = (os.path.join(folder, name) for name in images)
            left_out |= {path: "not in the split" for path in paths if path not in listed}
    return left_out


def table(reports: Iterable[Report]) -> str:
    """The reports as a table; `found/expected` where something is published."""
    header = ["data set", "classes", *PARTS, "missing", "unreadable", "split", "verdict"]
    rows = [header, ["-" * len(cell) for cell in header]]
    for report in reports:

        def number(key: str, found: int, report: Report = report) -> str:
            return f"{found}/{report.expected[key]}" if report.expected else str(found)

        rows.append(
            [
                report.name,
                number("classes", report.classes),
                *(number(part, report.images.get(part, 0)) for part in PARTS),
                str(len(report.missing)),
                str(len(report.unreadable)),
                (report.split_hash[:12] or "-") + ("" if report.split_file or not report.split_hash else " (made)"),
                "ok" if report.well else "WRONG",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _some(texts: list[str]) -> list[str]:
    """The first few, and how many more there are."""
    more = len(texts) - SHOWN
    return [*texts[:SHOWN], *([f"... and {more} more (--json lists all)"] if more > 0 else [])]


def _few(names: list[str]) -> list[str]:
    """All of few names; of many the first ones and the last."""
    return names if len(names) <= 2 * SHOWN else [*names[:SHOWN], "...", names[-1]]


def details(report: Report, all_prompts: bool) -> str:
    """What is wrong and worth knowing about one data set, and its prompts."""
    lines = [f"\n{report.name}"]
    lines += [f"  WRONG: {text}" for text in report.problems]
    lines += [f"  MISSING: {text}" for text in _some(report.missing)]
    lines += [f"  UNREADABLE: {text}" for text in _some([f"{path} ({why})" for path, why in report.unreadable.items()])]
    lines += [f"  note: {text}" for text in report.remarks]
    lines += [f"  LEFT OUT: {text}" for text in _some([f"{path} ({why})" for path, why in report.left_out.items()])]
    lines += [f"  note: {len(paths)} images: {kind}; such as {paths[0]}" for kind, paths in report.peculiar.items()]
    shown = report.prompts if all_prompts or len(report.prompts) <= SHOWN else [*report.prompts[:3], report.prompts[-1]]
    rest = len(report.prompts) - len(shown)
    for part, own in (("base", report.base), ("new", report.new)):
        lines += [f"  {part} classes ({len(own)}): {', '.join(own if all_prompts else _few(own))}"] if own else []
    lines += [f"  prompt: {text}" for text in shown]
    lines += [f"  ({rest} more prompts: --prompts)"] if rest else []
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m datasets.check", description="Check data sets under --root.")
    made.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="caltech101, Caltech101, a YAML file, or a folder of class folders; all",
    )
    made.add_argument("--root", default="", help="folder of all data sets; a folder that is named needs none")
    made.add_argument("--no-decode", action="store_true", help="do not open the images")
    made.add_argument("--workers", type=int, default=available_cpus(), help="images decoded at once")
    made.add_argument("--prompts", action="store_true", help="print the prompt of every class")
    made.add_argument("--json", default="", metavar="FILE", help="write everything that was found to a file")
    return made


def _configured(name: str, root: str) -> CfgNode | str:
    """The configuration of a data set, or what is wrong in a YAML file of one's own; errors as of `configuration`."""
    try:
        return catalogue.configuration(name, root)
    except ValueError as error:
        if not os.path.isfile(name):
            raise
        return str(error)


@printable_streams()
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = build_parser()
    args = command.parse_args(arguments)
    try:
        names = catalogue.chosen(args.names)
        looks = {name: _configured(name, args.root) for name in names}
    except (OSError, ValueError) as error:
        command.error(str(error))
    if not args.root and not all(cfg.DATASET.ROOT for cfg in looks.values() if isinstance(cfg, CfgNode)):
        command.error("--root is missing: the folder of all data sets")
    reports = [
        examine(catalogue.short_name(name), cfg, not args.no_decode, max(1, args.workers), progress=True)
        if isinstance(cfg, CfgNode)
        else Report(catalogue.short_name(name), problems=[cfg])
        for name, cfg in looks.items()
    ]
    text = "\n".join([table(reports), *(details(report, args.prompts) for report in reports)])
    sys.stdout.write(f"{text}\n")
    if args.json:
        write_json([asdict(report) for report in reports], args.json)
    return 0 if all(report.well for report in reports) else 1


def command(arguments: list[str] | None = None) -> int:
    """Run as a program of its own: what data sets log is in the table."""
    logging.getLogger(__package__).setLevel(logging.WARNING)
    logging.getLogger(__package__).propagate = False
    return main(arguments)


if __name__ == "__main__":
    sys.exit(command())
