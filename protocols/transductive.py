"""Transductive classification: the checkpoints of few-shot, answered for all test images together (TransCLIP).

These numbers use what an inductive classifier does not have, the other test images, so they have a table of their own
and are in no other.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from protocols.fewshot import ALL
from results.layout import BENCHMARKS, Role, RunDirectory
from results.records import Record
from results.tables import Table, TableOptions, accuracies
from sweep.plan import Run, SweepConfig
from sweep.protocol import Protocol, register

TRANSDUCTIVE = Role(
    "transductive/{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}", evaluates="all", transductive=True
)


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training on all classes as in few-shot, then transductive testing: all test images together."""
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            file = config.config(trainer, "all", dataset)
            for seed in config.seeds_of(trainer):
                trained = RunDirectory("all", dataset, trainer, Path(file).name, config.shots, seed)
                first = config.run(trained, file)
                opts = ("TEST.TRANSDUCTIVE", "TransCLIP", "TEST.KEEP_PREDICTIONS", "False")
                runs += [first, config.run(replace(trained, role="transductive"), file, opts, first)]
    return runs


def _table(records: Sequence[Record], options: TableOptions) -> Table:
    own = [record for record in records if record.place.role == "transductive"]
    table = accuracies(own, "TRANSDUCTIVE classification (TransCLIP):", options.seeds, options.order)
    table.notes.append(
        "TRANSDUCTIVE: what is answered for an image depends on all other test images; not to be compared with "
        "inductive numbers"
    )
    return table


register(Protocol("transductive", plan, _table, {"all": ALL, "transductive": TRANSDUCTIVE}, BENCHMARKS, seeds="1-3"))
