"""Validation-free all-to-all: trained and tested on all classes, with nothing to choose by but the training images.

The setting of 2SFS, CLIP-LoRA and CLIP-SVD: one configuration of a method for all data sets, no validation images, the
last iterate, and training lists that all methods share (`DATASET.SPLIT_LIST`) or else the draws of the rule.
"""

from collections.abc import Sequence
from pathlib import Path

from protocols.fewshot import few_shot
from results.layout import BENCHMARKS, Role, RunDirectory
from results.records import Record
from results.tables import Table, TableOptions
from sweep.plan import Run, SweepConfig, require_no_selection
from sweep.protocol import Protocol, register

FIXED = Role("all2all/{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}")
FREE = ("DATASET.VAL_SHOTS", "DATASET.SPLIT_LIST")  # in what the runs differ from those that numbers were published of


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training and testing on all classes without validation images, one configuration for all data sets.

    Raises:
        ValueError: settings that choose the best model by validation.
    """
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            file = config.config(trainer, "all", dataset, one_for_all=True)
            for seed in config.seeds_of(trainer):
                place = RunDirectory("all2all", dataset, trainer, Path(file).name, config.shots, seed)
                runs.append(config.run(place, file, ("DATASET.VAL_SHOTS", "0"), one_for_all=True))
    return require_no_selection(runs)


def _table(records: Sequence[Record], options: TableOptions) -> Table:
    title = "Validation-free all-to-all"
    table = few_shot(records, options.seeds, options.order, options.compare, "all2all", title, FREE)
    own = [record for record in records if record.place.role == "all2all" and not record.problem]
    listed = sum(record.metrics.get("support") == "list" for record in own)
    table.notes.append(
        "nothing was chosen on images that were not trained on; one configuration for all data sets; "
        f"{listed} of {len(own)} runs were trained on given lists (DATASET.SPLIT_LIST), the others on the rule's draws"
    )
    return table


register(Protocol("all2all", plan, _table, {"all2all": FIXED}, BENCHMARKS, (1, 2, 4, 8, 16), "1-3"))
