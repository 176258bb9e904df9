"""Base-to-all: what was trained on the base classes is tested on all classes. The example of docs/EXTENDING.md."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from protocols.base2new import BASE
from results.layout import Role, RunDirectory
from results.records import Record
from results.tables import Table, TableOptions, accuracies
from sweep.plan import Run, SweepConfig
from sweep.protocol import Protocol, register

EVERY = Role("base2new/test_all/{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}", classes="all", evaluates="base")


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training on the base classes as in base-to-new, then testing on all classes."""
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            file = config.config(trainer, "base2new", dataset)
            for seed in config.seeds_of(trainer):
                base = RunDirectory("base", dataset, trainer, Path(file).name, config.shots, seed)
                first = config.run(base, file, ("DATASET.SUBSAMPLE_CLASSES", "base"))
                every = ("DATASET.SUBSAMPLE_CLASSES", "all")
                runs += [first, config.run(replace(base, role="every"), file, every, first)]
    return runs


def table(records: Sequence[Record], options: TableOptions) -> Table:
    """Accuracy and macro F1 on all classes."""
    tested = [record for record in records if record.place.role == "every"]
    return accuracies(tested, "Base-to-all", options.seeds, options.order)


register(Protocol("base2all", plan, table, {"base": BASE, "every": EVERY}, ("dtd", "eurosat"), seeds="1-3"))
