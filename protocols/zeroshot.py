"""Zero-shot classification: tested on all classes, nothing learned."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from results.layout import BENCHMARKS, IMAGENET_VARIANTS, Role, RunDirectory
from results.records import Record
from results.tables import Table, TableOptions, accuracies
from sweep.method_configs import Unserved, trainer_class
from sweep.plan import Run, SweepConfig
from sweep.protocol import Protocol, register

ZERO_SHOT = Role("{zeroshot}/{cfg}/{dataset}")


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Testing on all classes without learning anything.

    Raises:
        Unserved: a trainer that learns.
    """
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            if trainer_class(trainer).learns:
                raise Unserved(f"{trainer} learns: the zero-shot protocol is for trainers that do not")
            file = config.config(trainer, "all", dataset)
            place = RunDirectory("zeroshot", dataset, trainer, Path(file).name, seed=config.seeds[0])
            runs.append(config.run(place, file))
    return runs


def zero_shot(records: Iterable[Record], order: Sequence[str] = ()) -> Table:
    """Zero-shot on all classes: accuracy and macro F1 per data set."""
    zero = [record for record in records if record.place.role == "zeroshot"]
    return accuracies(zero, "Zero-shot classification", order=order)


def _table(records: Sequence[Record], options: TableOptions) -> Table:
    return zero_shot(records, options.order)


register(Protocol("zeroshot", plan, _table, {"zeroshot": ZERO_SHOT}, (*BENCHMARKS, *IMAGENET_VARIANTS)))
