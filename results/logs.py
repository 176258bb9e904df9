"""Results out of `log.txt`, for runs of others: of Dassl and the code family, whatever their version.

A log is read as the family's parser reads it: a line that equals an end signal arms it, then the last line
`* accuracy: 82.00%` counts. What was measured on validation images does not count, nor what came before further
training.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

END_OF_TRAINING = ("Finish training", "Finished training")
END_OF_TEST = ("=> result",)
LOG = "log.txt"
EVALUATED = re.compile(r"(?:Evaluate|Do evaluation) on (?:the )?\*?(\w+)\*? set")
EPOCH = re.compile(r"epoch \[\d+/\d+\]\s*(?:batch\b|\[)")
SEED = re.compile(r"^SEED: (-?\d+)\s*$", re.MULTILINE)  # in the configuration that a log begins with
SEED_FOLDER = re.compile(r"seed_?(\d+)")


@dataclass(frozen=True)
class LogResult:
    """What a run's log says: a value in percent, or the problem for which there is none."""

    name: str
    path: str
    value: float | None = None
    problem: str = ""


@dataclass
class Experiment:
    """The runs (seeds) of one directory.

    Attributes:
        directory: their folder.
        results: one for each sub-folder, in natural order.
        missing: seeds that have no folder.
        strays: folders with a log beside those of seeds, which are none, or of a seed that is there already.
    """

    directory: str
    results: list[LogResult]
    missing: list[int] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        """The values that there are."""
        return [result.value for result in self.results if result.value is not None]


def read_log(path: str | os.PathLike[str], keyword: str, signals: Sequence[str]) -> tuple[float | None, str]:
    """The last value of `keyword` after an end signal, in percent, or None and the reason.

    A log of another seed than its folder is called by has no value.
    """
    pattern = re.compile(rf"\* {re.escape(keyword)}: ([^\s%]+)%")
    armed, validating, value, damaged = False, False, None, ""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    folder, said = SEED_FOLDER.fullmatch(Path(path).parent.name), SEED.search(text)
    if folder and said and int(said[1]) != int(folder[1]):
        return None, f"it is of seed {int(said[1])}, not of the {int(folder[1])} in the name of its folder"
    for line in text.splitlines():
        if EPOCH.match(line):  # it trains, so that nothing before was the end
            armed, value, damaged = False, None, ""
        validating = evaluated[1] == "val" if (evaluated := EVALUATED.search(line)) else validating
        validating = validating and line.strip() not in END_OF_TRAINING
        armed = armed or (line.strip() in signals and not validating)
        match = pattern.search(line) if armed and not validating else None
        if match:
            value, damaged = _percent(match[1]), line.strip()
    if value is not None:
        return value, ""
    if damaged:
        return None, f"damaged: {damaged!r} holds no percentage"
    if not armed:
        return None, f"no line {' or '.join(map(repr, signals))}: the run did not finish"
    return None, f"nothing about {keyword!r} after {' or '.join(map(repr, signals))}"


def _percent(text: str) -> float | None:
    """The text as a number between 0 and 100, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 100 else None


def read_run(directory: str | os.PathLike[str], keyword: str, signals: Sequence[str]) -> LogResult:
    """The result of one run's folder: of `log.txt`, or of the newest `log.txt-*` if that one has none."""
    directory = Path(directory)
    logs = [directory / LOG, *sorted(directory.glob(f"{LOG}-*"), reverse=True)]
    logs = [log for log in logs if log.is_file()]
    results = [LogResult(directory.name, str(log), *read_log(log, keyword, signals)) for log in logs]
    nothing = LogResult(directory.name, str(directory / LOG), problem=f"no {LOG}")
    return next((result for result in results if result.value is not None), (results or [nothing])[0])


def read_experiment(
    directory: str | os.PathLike[str], keyword: str, signals: Sequence[str], seeds: Sequence[int] = ()
) -> Experiment:
    """The runs in the sub-folders of a directory, or the directory itself if the log lies in it; files are passed over.

    Where some are called `seed1` or `seed_1`, the others are strays, which are named and not averaged.

    Args:
        directory: folder of `seed1`, `seed2` and so on, whatever they are called.
        keyword: what to look for, such as `accuracy`.
        signals: lines after which it counts.
        seeds: which are expected; by default from 1 (or from the first) to the largest that there is.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no folder {directory}")
    if (directory / LOG).is_file():
        return Experiment(str(directory), [read_run(directory, keyword, signals)])
    folders = sorted((path for path in directory.iterdir() if _is_run(path)), key=lambda path: natural(path.name))
    by_seed: dict[int, Path] = {}
    for folder in folders:
        if match := SEED_FOLDER.fullmatch(folder.name):
            by_seed.setdefault(int(match[1]), folder)
    counted = list(by_seed.values()) or folders
    strays = [str(folder) for folder in folders if folder not in counted and any(folder.glob(f"{LOG}*"))]
    results = [read_run(folder, keyword, signals) for folder in counted]
    expected = set(seeds) or (set(range(min(1, *by_seed), max(by_seed) + 1)) if by_seed else set())
    return Experiment(str(directory), results, sorted(expected - by_seed.keys()), strays)


def _is_run(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sorting key by which seed2 comes before seed10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part)) if part.isdigit() else (0, part) for part in parts]
