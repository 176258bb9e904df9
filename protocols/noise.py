"""Label noise: a share of the training images has the label of another class.

A variant says which share and how: `none`, `sym_0.5` (any other class), `asym_0.5` (always the next one). Which images
these are is drawn by the seed, the same for every method (`datasets/label_noise.py`).
"""

from collections.abc import Sequence

from results.layout import BENCHMARKS, Role
from results.records import Record
from results.tables import Table, TableOptions, accuracies
from sweep.plan import Run, SweepConfig, variant_settings, varied
from sweep.protocol import Protocol, register

NOISY = Role("noise/{dataset}/shots_{shots}/{trainer}/{cfg}{variant}/seed{seed}", variant_is="label_noise")
USUAL = ("none", "sym_0.25", "sym_0.5", "asym_0.25", "asym_0.5")
KEYS = {kind: ("DATASET.NOISE_TYPE", kind, "DATASET.NOISE_RATE") for kind in ("sym", "asym")}


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training and testing on all classes, with right labels and with shares of wrong ones.

    Raises:
        ValueError: --variant names none.
    """
    chosen = [config.variant] if config.variant else USUAL
    variants = {name: variant_settings(name, KEYS, "none") for name in chosen}
    return varied(config, trainers, datasets, "noise", variants)


def _table(records: Sequence[Record], options: TableOptions) -> Table:
    own = [record for record in records if record.place.role == "noise"]
    table = accuracies(own, "Label noise", options.seeds, options.order)
    table.notes.append(
        "behind the configuration: the share of training images with a wrong label, that of any other class (sym) or "
        "always of the next one (asym); validation and test labels are right"
    )
    return table


register(Protocol("noise", plan, _table, {"noise": NOISY}, BENCHMARKS, seeds="1-3"))
