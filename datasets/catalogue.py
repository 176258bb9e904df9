"""Data sets by the names that people use for them: YAML stem, class name, or a YAML file of one's own."""

from pathlib import Path

from yacs.config import CfgNode

from dassl.config import declared_cfg, merge_file
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import did_you_mean

from .fewshot import FewShotDataset

YAML_FOLDER = Path(__file__).resolve().parents[1] / "configs" / "datasets"


def stems() -> dict[str, Path]:
    """The data set files that come with the project, by stem."""
    return {path.stem: path for path in sorted(YAML_FOLDER.glob("*.yaml"))}


def benchmarks() -> list[str]:
    """Stems of the published benchmarks: the data sets that declare where they are fetched from."""
    return [stem for stem in stems() if _kind(configuration(stem, "")).parts]


def configuration(name: str, root: str) -> CfgNode:
    """The configuration of the data set called `name`: YAML stem in any case, registered class name, path of a YAML
    file, or a folder of class folders, which lies where it lies.

    Raises ValueError with the nearest names if there is none, or if it is not built on the few-shot base class.
    """
    cfg = declared_cfg()
    known = stems()
    if name.lower().endswith((".yaml", ".yml")):
        merge_file(cfg, name)
    elif stem := {own.lower(): own for own in known}.get(name.lower()):
        merge_file(cfg, str(known[stem]))
    elif name in DATASET_REGISTRY.registered_names():
        cfg.DATASET.NAME = name
    elif Path(name).is_dir():
        folder = Path(name).absolute()
        cfg.DATASET.NAME, cfg.DATASET.FOLDER, root = "OwnData", folder.name, str(folder.parent)
    else:
        raise ValueError(did_you_mean(name, [*known, *DATASET_REGISTRY.registered_names()], "data set"))
    cfg.DATASET.ROOT = root
    _kind(cfg)
    return cfg


def short_name(name: str) -> str:
    """What a data set is called in tables: of a file its stem, of a folder its last part, else its name."""
    path = Path(name)
    if name.lower().endswith((".yaml", ".yml")):
        return path.stem
    return path.absolute().name if path.is_dir() else name


def configurations(names: list[str], root: str) -> dict[str, CfgNode]:
    """The configuration of each name; `all` as the only name stands for every benchmark."""
    return {name: configuration(name, root) for name in chosen(names)}


def chosen(names: list[str]) -> list[str]:
    """The names of data sets; `all` as the only one stands for every benchmark."""
    return benchmarks() if names == ["all"] else names


def _kind(cfg: CfgNode) -> type[FewShotDataset]:
    name = cfg.DATASET.NAME
    if name not in DATASET_REGISTRY.registered_names():
        raise ValueError(did_you_mean(name, DATASET_REGISTRY.registered_names(), "data set"))
    kind = DATASET_REGISTRY.get(name)
    if not issubclass(kind, FewShotDataset):
        raise ValueError(f"{name} is not built on FewShotDataset, which declares the files that a data set needs")
    return kind


def located(cfg: CfgNode) -> FewShotDataset:
    """The data set that `cfg` describes, its paths set and nothing read."""
    return _kind(cfg).located(cfg)
