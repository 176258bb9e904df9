"""Made result trees for the tests of tables."""

import json
from pathlib import Path

from results.layout import RunDirectory


def write_run(root: Path, place: RunDirectory, accuracy: float, **fields) -> Path:
    """Write a `metrics.json` as a run leaves it; returns the run's directory."""
    metrics = {
        "trainer": place.trainer,
        "dataset": fields.get("config", {}).get("DATASET", {}).get("NAME", place.dataset),
        "seed": place.seed,
        "shots": place.shots,
        "backbone": "ViT-B/16",
        "accuracy": accuracy,
        "macro_f1": accuracy - 1,
        "num_classes": 10,
        "history": [{"epoch": 1, "lr": 0.1, "loss": 2.0}, {"epoch": 2, "lr": 0.1, "loss": 1.0}],
        **fields,
    }
    directory = root / place.path()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.json").write_text(json.dumps(metrics))
    return directory


APEX = "vit_b16_c2_ep15_batch16_2+2ctx"


def base2new_tree(root: Path, datasets=("dtd", "eurosat"), seeds=(1, 2, 3)) -> None:
    """APEX on some sets and seeds, zero-shot CLIP on the first seed; accuracies depend on set and seed."""
    for i, dataset in enumerate(datasets):
        for seed in seeds:
            offset = (seed - 1) % 10 + 1
            write_run(root, RunDirectory("base", dataset, "APEX", APEX, 16, seed), 80.0 + i + offset)
            write_run(root, RunDirectory("new", dataset, "APEX", APEX, 16, seed), 60.0 + i - offset)
        for role, accuracy in (("base", 50.0), ("new", 60.0)):
            write_run(root, RunDirectory(role, dataset, "ZeroshotCLIP", "vit_b16", 16, 1), accuracy)
