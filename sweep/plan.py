"""The runs that a protocol consists of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from results.layout import Place
from sweep.recipes import CONFIGS, config_of


@dataclass(frozen=True)
class Run:
    """One call of train.py.

    Attributes:
        place: what it is; gives its directory.
        argv: arguments of train.py.
        output_dir: its directory.
        needs: directory of the run whose checkpoint it evaluates; "" if it trains, or learns nothing.
    """

    place: Place
    argv: tuple[str, ...]
    output_dir: str
    needs: str = ""


@dataclass(frozen=True)
class Setting:
    """What the runs of a sweep share.

    Attributes:
        root: folder of the data sets.
        output: folder of all results.
        shots: training images per class.
        seeds: one run each.
        configs: trainer -> name of its configuration file (`STEM` or `FOLDER/STEM`), where not the declared one.
        opts: `KEY VALUE` pairs for every run.
        learnless: trainers that learn nothing, so that one seed says all.
    """

    root: str
    output: str
    shots: int
    seeds: tuple[int, ...]
    configs: dict[str, str] = field(default_factory=dict)
    opts: tuple[str, ...] = ()
    learnless: frozenset[str] = frozenset()

    def seeds_of(self, trainer: str) -> tuple[int, ...]:
        """The seeds to run: the first alone for a trainer that learns nothing."""
        return self.seeds[:1] if trainer in self.learnless else self.seeds

    def config(self, trainer: str, use: str, dataset: str) -> str:
        """`FOLDER/STEM` of the trainer's configuration file."""
        chosen = self.configs.get(trainer)
        if chosen is None:
            return config_of(trainer, use, dataset, self.shots)
        return chosen if "/" in chosen else f"{trainer}/{chosen}"

    def run(self, place: Place, config: str, opts: Sequence[str], trained: Run | None = None) -> Run:
        """The run of a place; with `trained`, the evaluation of what that run learned."""
        directory = f"{self.output.rstrip('/')}/{place.path()}"
        argv = ["--root", self.root, "--seed", str(place.seed), "--trainer", place.trainer]
        argv += ["--dataset-config-file", str(CONFIGS / "datasets" / f"{place.dataset}.yaml")]
        argv += ["--config-file", str(CONFIGS / "trainers" / f"{config}.yaml"), "--output-dir", directory]
        if trained or place.trainer in self.learnless:
            argv.append("--eval-only")
        if trained:
            argv += ["--model-dir", trained.output_dir]
        argv += ["DATASET.NUM_SHOTS", str(self.shots), *opts, *self.opts]
        return Run(place, tuple(argv), directory, trained.output_dir if trained else "")


def base2new(setting: Setting, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training on the base classes, which ends with testing on them, then testing on the new classes."""
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            config = setting.config(trainer, "base2new", dataset)
            for seed in setting.seeds_of(trainer):
                base, new = (
                    Place(role, dataset, trainer, Path(config).name, setting.shots, seed) for role in ("base", "new")
                )
                first = setting.run(base, config, ("DATASET.SUBSAMPLE_CLASSES", "base"))
                trained = None if trainer in setting.learnless else first
                runs += [first, setting.run(new, config, ("DATASET.SUBSAMPLE_CLASSES", "new"), trained)]
    return runs


PROTOCOLS = {"base2new": base2new}
