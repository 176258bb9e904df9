"""What there is, as lines: trainers, configurations, data sets, runs, checkpoints."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from commands.names import configs, trainer_name

OUTPUT = "output"


def trainers(_: str = "") -> Iterator[tuple[str, str]]:
    """Registered trainers and what they say of themselves."""
    import trainers as room
    from dassl.engine import TRAINER_REGISTRY

    for name, kind in sorted(TRAINER_REGISTRY, key=lambda item: item[0].lower()):
        if kind.__module__.startswith(f"{room.__name__}."):
            about = (kind.__doc__ or sys.modules[kind.__module__].__doc__ or "").strip().partition("\n")[0]
            yield name, about


def configurations(trainer: str = "") -> Iterator[tuple[str, str]]:
    """The configuration files of a trainer, or of all, as `FOLDER/STEM`, with the first line of their heads."""
    folder = trainer_name(trainer) if trainer else "*"
    for path in sorted((configs() / "trainers").glob(f"{folder}/*.yaml")):
        if path.name != "sweep.yaml":
            head = path.read_text(encoding="utf-8").partition("\n")[0]
            yield f"{path.parent.name}/{path.stem}", head.lstrip("# ") if head.startswith("#") else ""


def data_sets(_: str = "") -> Iterator[tuple[str, str]]:
    """The data sets by the names that sweeps and `--dataset-config-file` take, and what is known of them."""
    import datasets  # noqa: F401 - registers what is in the folder
    from dassl.config import declared_cfg, merge_file
    from dassl.data.datasets import DATASET_REGISTRY

    for path in sorted((configs() / "datasets").glob("*.yaml")):
        cfg = declared_cfg()
        merge_file(cfg, str(path))
        counts = getattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "counts", None)
        yield path.stem, f"{counts.classes} classes, {counts.test} test images" if counts else ""


def _records(folder: str) -> list[Any]:
    from results.tree import read_records

    return read_records(folder or OUTPUT)


def runs(folder: str = "") -> Iterator[tuple[str, str]]:
    """The runs below a folder and their accuracy, or what keeps them from having one."""
    for record in _records(folder):
        yield record.path, record.problem or f"{record.accuracy:.2f}%"


def checkpoints(folder: str = "") -> Iterator[tuple[str, str]]:
    """The checkpoint files below a folder, and their size."""
    top = Path(folder or OUTPUT)
    if not top.is_dir():
        raise FileNotFoundError(f"there is no folder {top}")
    for path in sorted(top.rglob("model*.pth.tar*")):
        yield str(path), f"{path.stat().st_size / 1e6:.1f} MB"


LISTS: dict[str, Callable[[str], Iterator[tuple[str, str]]]] = {
    "trainers": trainers, "configs": configurations, "datasets": data_sets, "runs": runs, "checkpoints": checkpoints,
}  # fmt: skip


def listing(what: str, where: str = "") -> str:
    """One of the `LISTS` as text, aligned.

    Args:
        what: which.
        where: of `configs` a trainer, of `runs` and `checkpoints` a folder; "" for all, or `output`.

    Raises:
        ValueError: there is no such list, or no such trainer.
        FileNotFoundError: there is no such folder.
    """
    from dassl.utils import did_you_mean

    if what not in LISTS:
        raise ValueError(f"--list: {did_you_mean(what, LISTS, 'list')}")
    rows = list(LISTS[what](where))
    width = max((len(name) for name, _ in rows), default=0)
    return "".join(f"{name:{width}}  {about}".rstrip() + "\n" for name, about in rows) or f"no {what} there\n"


class List(argparse.Action):
    """`--list WHAT [WHERE]`: write one of the lists and end, as `--help` does."""

    HELP = (
        "say what there is, then stop: trainers, configs [TRAINER], datasets, runs [FOLDER] or checkpoints [FOLDER] "
        f"(default: {OUTPUT})"
    )

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any):
        options["metavar"] = ("WHAT", "WHERE")
        super().__init__(option_strings, dest, nargs="+", default=argparse.SUPPRESS, help=options["help"])

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, words: Any, option: str | None = None
    ) -> None:
        """Write the list; a mistake is answered with a sentence and exit status 2."""
        try:
            sys.stdout.write(listing(*words[:2]))
        except (ValueError, OSError) as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
        parser.exit()
