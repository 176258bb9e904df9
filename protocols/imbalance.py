"""Unbalanced support: the same number of training images, but some classes have many and others few.

A variant says how: `balanced`, `power_law_1.0` (the exponent), `Dirichlet_1.0` (the concentration). Which class has how
many is drawn by the seed, the same for every method (`datasets/imbalance.py`).
"""

from collections.abc import Sequence

from results.layout import BENCHMARKS, Role
from results.records import Record
from results.tables import Table, TableOptions, accuracies
from sweep.plan import Run, SweepConfig, variant_settings, varied
from sweep.protocol import Protocol, register

UNBALANCED = Role("imbalance/{dataset}/shots_{shots}/{trainer}/{cfg}{variant}/seed{seed}", variant_is="support")
USUAL = ("balanced", "power_law_1.0", "Dirichlet_1.0")
KEYS = {"power_law": ("DATASET.SHOTS_POWER_LAW",), "Dirichlet": ("DATASET.SHOTS_DIRICHLET",)}


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training and testing on all classes, with balanced and with unbalanced numbers of training images.

    Raises:
        ValueError: --variant names none.
    """
    chosen = [config.variant] if config.variant else USUAL
    variants = {name: variant_settings(name, KEYS, "balanced") for name in chosen}
    return varied(config, trainers, datasets, "imbalance", variants)


def _table(records: Sequence[Record], options: TableOptions) -> Table:
    own = [record for record in records if record.place.role == "imbalance"]
    table = accuracies(own, "Unbalanced support", options.seeds, options.order)
    table.notes.append(
        "behind the configuration: how the training images are shared among the classes, as many in all as in a "
        "balanced draw; macro F1 counts each class alike"
    )
    return table


register(Protocol("imbalance", plan, _table, {"imbalance": UNBALANCED}, BENCHMARKS, seeds="1-3"))
