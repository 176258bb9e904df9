"""Out-of-distribution detection: trained on the base classes of a data set, tested on telling their images from others.

Others are near, the images of the new classes, or far, those of other data sets. The checkpoints are those of
base-to-new.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from protocols.base2new import BASE
from results.layout import BENCHMARKS, USUAL_SOURCE, Role, RunDirectory
from results.records import Record
from results.rows import in_order
from results.tables import Table, TableOptions, accuracies
from sweep.plan import Run, SweepConfig, refuse_others, transferable
from sweep.protocol import Protocol, register

OUTLIERS = Role(
    "ood{origin}/{trainer}/{cfg}_{shots}shots/{dataset}/seed{seed}", classes="base", evaluates="base", adds_images=True
)
WHAT = "images of other classes"
MEASURES = {
    "AUROC (MCM)": "mcm_auroc",
    "FPR95 (MCM)": "mcm_fpr95",
    "AUROC (energy)": "energy_auroc",
    "FPR95 (energy)": "energy_fpr95",
    "base accuracy": "accuracy",
}


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training on the source's base classes, then telling their images from its new classes' and other sets'.

    Raises:
        ValueError: a trainer whose learned state belongs to its classes.
    """
    refuse_others(trainers, ("any",), WHAT)
    runs = []
    for trainer in trainers:
        file = config.config(trainer, "base2new", config.source)
        for seed in config.seeds_of(trainer):
            base = RunDirectory("base", config.source, trainer, Path(file).name, config.shots, seed)
            half = ("DATASET.SUBSAMPLE_CLASSES", "base")
            first = config.run(base, file, half)
            runs.append(first)
            for dataset in dict.fromkeys((config.source, *datasets)):
                others = "new" if dataset == config.source else config.files.get(dataset, dataset)
                test = ("DATASET.OOD", others, "TEST.EVALUATOR", "OutOfDistribution", "TEST.KEEP_PREDICTIONS", "False")
                place = replace(base, role="ood", dataset=dataset, source=config.source)
                runs.append(config.run(place, file, (*half, *test), first))
    return transferable(runs, ("any",), WHAT)


def table_of_source(records: Iterable[Record], source: str, options: TableOptions) -> Table:
    """The table of what was trained on one data set's base classes."""
    own = [record for record in records if record.place.role == "ood" and record.place.source == source]
    order = [source, *options.order]
    title = f"Out-of-distribution detection, trained on the base classes of {source}:"
    table = accuracies(own, title, options.seeds, order, MEASURES)
    for row in table.rows:
        row[0] = f"{source}, new classes" if row[0] == source else row[0]
    table.columns[0] = "others"
    table.notes.append(
        "images of the base classes against others; MCM: largest softmax probability of the cosines, temperature 1; "
        "energy: log of the sum of the exponentials of the logits; FPR95: others that are taken for base where 95% of "
        "the base images are; lower is better"
    )
    return table


def _table(records: Sequence[Record], options: TableOptions) -> Table:
    return table_of_source(records, options.source or USUAL_SOURCE, options)


def _tables(records: Sequence[Record], options: TableOptions) -> dict[str, Table]:
    there = in_order(record.place.source for record in records if record.place.role == "ood")
    sources = [options.source] if options.source else there
    names = {source: "ood" if source == USUAL_SOURCE else f"ood_from_{source}" for source in sources}
    return {names[source]: table_of_source(records, source, options) for source in sources}


register(Protocol("ood", plan, _table, {"base": BASE, "ood": OUTLIERS}, BENCHMARKS[1:], seeds="1-3", tables=_tables))
