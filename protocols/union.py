"""Union of base and new classes, also called generalised base-to-new or open world: trained on the base classes, tested
on all images with all class names in one list, so that base and new classes are confused where they are alike.

The checkpoints are those of base-to-new. OpenworldAUC: Hua et al., ICML 2025; base-against-new AUROC: Zhou et al.
(DeCoOp), ICML 2024.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from protocols.base2new import BASE
from results.layout import BENCHMARKS, Role, RunDirectory
from results.records import Record
from results.statistics import Summary, harmonic_mean
from results.tables import Table, TableOptions, accuracies
from sweep.plan import Run, SweepConfig, refuse_others, transferable
from sweep.protocol import Protocol, register

UNION = Role("base2new/test_union/{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}", classes="all", evaluates="base")
WHAT = "base and new classes together"
MEASURES = {
    "base": "base_accuracy",
    "new": "new_accuracy",
    "HM": "harmonic_mean",
    "AUROC": "base_new_auroc",
    "OpenworldAUC": "openworld_auc",
    "accuracy": "accuracy",
}


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training on the base classes as in base-to-new, then testing on base and new classes in one list.

    Raises:
        ValueError: a trainer whose learned state belongs to its classes.
    """
    refuse_others(trainers, ("any",), WHAT)
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            file = config.config(trainer, "base2new", dataset)
            for seed in config.seeds_of(trainer):
                base = RunDirectory("base", dataset, trainer, Path(file).name, config.shots, seed)
                first = config.run(base, file, ("DATASET.SUBSAMPLE_CLASSES", "base"))
                opts = ("DATASET.SUBSAMPLE_CLASSES", "all", "TEST.EVALUATOR", "OpenWorld")
                runs += [first, config.run(replace(base, role="union"), file, opts, first)]
    return transferable(runs, ("any",), WHAT)


def _table(records: Sequence[Record], options: TableOptions) -> Table:
    own = [record for record in records if record.place.role == "union"]
    table = accuracies(own, "Base and new classes in one list:", options.seeds, options.order, MEASURES)
    at = {name: table.columns.index(name) for name in MEASURES}
    for row in table.rows:
        base, new, both = (row[at[name]] for name in ("base", "new", "HM"))
        if isinstance(base, Summary) and isinstance(new, Summary) and isinstance(both, Summary):
            row[at["HM"]] = replace(both, mean=harmonic_mean(base.mean, new.mean))
    table.notes.append(
        "base, new: accuracy over all classes on base and on new images; HM: of the two means beside it; AUROC: base "
        "against new images by the largest probability of a base class; OpenworldAUC: share of pairs of base and new "
        "images with both classes right, each among its own side's, and the base image scored higher"
    )
    return table


register(Protocol("union", plan, _table, {"base": BASE, "union": UNION}, BENCHMARKS, seeds="1-20"))
