"""Which runs one process carries out together: trainings that differ in their seed alone."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from adaptation.stacking import evenly
from results.seeds import numbers
from sweep.method_configs import trainer_class
from sweep.plan import Run, SeedGroup


def supports_stacking(trainer: str) -> bool:
    """Whether the steps of several seeds of a trainer may be computed together; those of others do not say so."""
    return getattr(trainer_class(trainer), "supports_stacking", False)


def make_packs(runs: Iterable[Run], most: int) -> list[SeedGroup]:
    """Runs in packs: the trainings of one recipe and data set together, everything else by itself.

    How many of a pack are computed at once is found out when it runs (`adaptation.stacking`).

    Args:
        runs: in the order in which they are wanted.
        most: trainings of a pack.
    """
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        together = run.trains and supports_stacking(run.place.trainer)
        groups.setdefault(replace(run.place, seed=0) if together else run, []).append(run)
    return [tuple(pack) for group in groups.values() for pack in evenly(group, most)]


def packing(packs: Sequence[SeedGroup]) -> list[str]:
    """How trainings are packed, in sentences; none where each runs alone."""
    sizes = sorted({len(pack) for pack in packs if len(pack) > 1})
    if not sizes:
        return []
    count = sum(len(pack) for pack in packs if len(pack) > 1)
    processes = sum(len(pack) > 1 for pack in packs)
    span = str(sizes[-1]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    where = f"{processes} process{'es' if processes > 1 else ''} of {span} seeds"
    lines = [f"{count} trainings in {where}, as many computed at once as memory allows"]
    trained = dict.fromkeys(run.place.trainer for pack in packs for run in pack if run.trains)
    alone = [name for name in trained if not supports_stacking(name)]
    if alone:
        lines.append(f"seed by seed: {', '.join(alone)} (the trainer does not say that seeds may be computed together)")
    return lines


def arguments(pack: SeedGroup) -> list[str]:
    """The arguments of train.py that carry out a pack: `--seeds` and the folder of all of them where it has several."""
    argv = list(pack[0].argv)
    if len(pack) > 1:
        seed, output = argv.index("--seed"), argv.index("--output-dir")
        argv[output + 1] = argv[output + 1].removesuffix(f"/seed{pack[0].place.seed}")
        argv[seed : seed + 2] = ["--seeds", numbers(run.place.seed for run in pack).replace(" ", "")]
    return argv
