"""Which configuration file a method uses where, unless `--configs` says otherwise: the official scripts' choices."""

from pathlib import Path

CONFIGS = Path("configs")
CARRIED = ("drawn_", "digits")  # data sets that need no download, which go with the carried CLIP
CARRIED_CONFIGS = "tiny_vit*.yaml"

# trainer -> use -> configuration. A use is followed by the data set or the number of shots that it is meant for; where
# it is not declared, that of base-to-new counts. A trainer that is not here has the only file of its folder.
RECIPES: dict[str, dict[str, str]] = {
    "ZeroshotCLIP": {"base2new": "CoOp/vit_b16", "carried": "ZeroshotCLIP/tiny_vit"},
    "ZeroshotCLIP2": {"base2new": "CoOp/vit_b16", "carried": "ZeroshotCLIP/tiny_vit"},
    "CoOp": {
        "base2new": "vit_b16_ctxv1",
        "base2new imagenet": "vit_b16_ep50_ctxv1",
        "all": "vit_b16",
        "all imagenet": "vit_b16_ep50",
        "all 1": "vit_b16_ep50",
        "all 2": "vit_b16_ep100",
        "all 4": "vit_b16_ep100",
        "transfer": "vit_b16_ep50",
    },
    "CoCoOp": {"base2new": "vit_b16_c4_ep10_batch1_ctxv1"},
    "VPT": {"base2new": "vit_b16_c2_ep5_batch4_4"},
    "IVLP": {"base2new": "vit_b16_c2_ep5_batch4_2+2ctx", "carried": "tiny_vit_c2_ep5_batch4_2+2ctx"},
    "MaPLe": {
        "base2new": "vit_b16_c2_ep5_batch4_2ctx",
        "transfer": "vit_b16_c2_ep5_batch4_2ctx_cross_datasets",
    },
    "PromptSRC": {
        "base2new": "vit_b16_c2_ep20_batch4_4+4ctx",
        "all": "vit_b16_c2_ep50_batch4_4+4ctx_few_shot",
        "transfer": "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets",
    },
    "CLIP_Adapter": {"base2new": "vit_b16_ep50"},
    "CLIP_LoRA": {"base2new": "vit_b16_r2_it500"},
    "KgCoOp": {"base2new": "vit_b16_ep100_ctxv1"},
    "ProGrad": {"base2new": "vit_b16_ep100"},
    "TaskRes": {
        "all": "adam_lr2e-3_B256_ep200_ViT16",
        "all 1": "adam_lr2e-3_B256_ep100_ViT16",
        "all 2": "adam_lr2e-3_B256_ep100_ViT16",
        "all 4": "adam_lr2e-3_B256_ep100_ViT16",
        "all imagenet": "adam_lr2e-4_B256_ep200_ViT16",
        "all imagenet 1": "adam_lr2e-4_B256_ep100_ViT16",
        "all imagenet 2": "adam_lr2e-4_B256_ep100_ViT16",
        "all imagenet 4": "adam_lr2e-4_B256_ep100_ViT16",
        "transfer": "generalization_ViT16",
    },
    "TipAdapter": {"all": "vit_b16"},
    "TipAdapterF": {"all": "vit_b16_ep20"},
    "APEX": {
        "base2new": "vit_b16_c2_ep15_batch16_2+2ctx",
        "base2new imagenet": "vit_b16_c2_ep5_batch16_2+2ctx_imagenet",
        "all imagenet": "vit_b16_c2_ep5_batch16_2+2ctx_imagenet",
        "transfer": "cross_eval",
    },
}


# What a recipe changes for single data sets: (trainer, configuration) -> data sets and KEY VALUE pairs.
FOR_SETS: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("PromptSRC", "vit_b16_c2_ep50_batch4_4+4ctx_few_shot"): (
        ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"),
        ("TRAINER.PROMPTSRC.GPA_MEAN", "45.0", "TRAINER.PROMPTSRC.GPA_STD", "5.0"),
    ),
    ("TaskRes", "adam_lr2e-3_B256_ep100_ViT16"): (("oxford_flowers",), ("TRAINER.TaskRes.RESIDUAL_SCALE", "1.0")),
    ("TaskRes", "adam_lr2e-3_B256_ep200_ViT16"): (("oxford_flowers",), ("TRAINER.TaskRes.RESIDUAL_SCALE", "1.0")),
    ("TipAdapterF", "vit_b16_ep20"): (("eurosat",), ("OPTIM.MAX_EPOCH", "100")),
}


def kind(trainer: str) -> type:
    """The class of a registered trainer: it says whether it learns, and which classes it serves (`SimpleTrainer`)."""
    import trainers  # noqa: F401 - registers what is in the folder
    from dassl.engine import TRAINER_REGISTRY

    return TRAINER_REGISTRY.get(trainer)


def opts_of(trainer: str, cfg: str, dataset: str) -> tuple[str, ...]:
    """The KEY VALUE pairs that a recipe has for a data set (the one that is trained on)."""
    datasets, opts = FOR_SETS.get((trainer, cfg), ((), ()))
    return opts if dataset in datasets else ()


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
    declared = RECIPES.get(trainer, {})
    if dataset.startswith(CARRIED):
        there = [declared["carried"]] if "carried" in declared else _files(trainer, CARRIED_CONFIGS)
        if len(there) == 1:
            return there[0] if "/" in there[0] else f"{trainer}/{there[0]}"
    else:
        on_imagenet = (f"{use} imagenet {shots}", f"{use} imagenet") if dataset == "imagenet" else ()
        for key in (*on_imagenet, f"{use} {shots}", use, "base2new"):
            if key in declared:
                return declared[key] if "/" in declared[key] else f"{trainer}/{declared[key]}"
        there = _files(trainer, "*.yaml")
        if len(there) == 1 and not declared:
            return f"{trainer}/{there[0]}"
    raise ValueError(
        f"no configuration of {trainer} is declared for {dataset} ({use}): choose one with --configs {trainer}=NAME; "
        f"in {CONFIGS / 'trainers' / trainer} there are: {', '.join(there) or 'none'}"
    )


def _files(trainer: str, pattern: str) -> list[str]:
    """Names without suffix of a trainer's configuration files."""
    return sorted(path.stem for path in (CONFIGS / "trainers" / trainer).glob(pattern))
