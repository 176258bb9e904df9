"""Which configuration file a method uses where, unless `--configs` says otherwise: the official scripts' choices."""

from pathlib import Path

CONFIGS = Path("configs")
CARRIED = ("drawn_", "digits")  # data sets that need no download, which go with the carried CLIP
CARRIED_CONFIGS = "tiny_vit*.yaml"
ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")

# trainer -> use -> configuration; the uses are those of `use_of`, and the first line is what the others fall back to
RECIPES: dict[str, dict[str, str]] = {
    "ZeroshotCLIP": {"base2new": "CoOp/vit_b16"},
    "ZeroshotCLIP2": {"base2new": "CoOp/vit_b16"},
    "CoOp": {
        "base2new": "vit_b16_ctxv1",
        "base2new imagenet": "vit_b16_ep50_ctxv1",
        "all": "vit_b16",
        "all 1": "vit_b16_ep50",
        "all 2": "vit_b16_ep100",
        "all 4": "vit_b16_ep100",
        "all imagenet": "vit_b16_ep50",
        "transfer": "vit_b16_ep50",
    },
    "APEX": {
        "base2new": "vit_b16_c2_ep15_batch16_2+2ctx",
        "base2new imagenet": "vit_b16_c2_ep5_batch16_2+2ctx_imagenet",
        "all imagenet": "vit_b16_c2_ep5_batch16_2+2ctx_imagenet",
        "transfer": "cross_eval",
    },
}


def config_of(trainer: str, use: str, dataset: str, shots: int) -> str:
    """`FOLDER/STEM` of the configuration file under `configs/trainers` for a trainer.

    Args:
        trainer: registered name.
        use: `base2new`, `all` or `transfer`.
        dataset: name of the data set's configuration file, without its suffix; of the one that is trained on.
        shots: training images per class.

    Raises:
        ValueError: nothing is declared for this trainer; the sentence names the files that there are.
    """
    if dataset.startswith(CARRIED):
        there = _files(trainer, CARRIED_CONFIGS)
        if len(there) == 1:
            return f"{trainer}/{there[0]}"
    else:
        declared = RECIPES.get(trainer, {})
        imagenet = f"{use} imagenet" if dataset == "imagenet" else ""
        for key in (imagenet, f"{use} {shots}", use, "base2new"):
            if key in declared:
                return declared[key] if "/" in declared[key] else f"{trainer}/{declared[key]}"
        there = _files(trainer, "*.yaml")
    raise ValueError(
        f"no configuration of {trainer} is declared for {dataset} ({use}): choose one with --configs {trainer}=NAME; "
        f"in {CONFIGS / 'trainers' / trainer} there are: {', '.join(there) or 'none'}"
    )


def _files(trainer: str, pattern: str) -> list[str]:
    """Names without suffix of a trainer's configuration files."""
    return sorted(path.stem for path in (CONFIGS / "trainers" / trainer).glob(pattern))
