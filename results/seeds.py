"""Lists of numbers as people write them: `1-3, 7`."""

import re
from collections.abc import Iterable


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `1-20`, `3` or `1-3,7`, in that order; ValueError for anything else, or a seed that is there twice."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ValueError(f"--seeds {text}: {part!r} is no seed and no range such as 1-3")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {text} names a seed twice")
    return tuple(seeds)


def numbers(values: Iterable[int]) -> str:
    """Numbers as `1-3, 5`."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def seeds_name(seeds: Iterable[int]) -> str:
    """`seed 4`, `seeds 1-3, 7`."""
    seeds = set(seeds)
    return f"seed{'' if len(seeds) == 1 else 's'} {numbers(seeds)}"
