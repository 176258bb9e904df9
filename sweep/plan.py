"""Runs of train.py, and what the runs of a sweep share."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from commands.names import configs
from results.layout import USUAL_SOURCE, RunDirectory
from sweep.method_configs import Unserved, config_of, named_config, settings_of, trainer_class


@dataclass(frozen=True)
class Run:
    """One call of train.py.

    Attributes:
        place: what it is; gives its directory.
        argv: arguments of train.py.
        output_dir: its directory.
        needs: directory of the run whose checkpoint it evaluates; "" if it trains, or learns nothing.
    """

    place: RunDirectory
    argv: tuple[str, ...]
    output_dir: str
    needs: str = ""

    @property
    def trains(self) -> bool:
        """Whether something is learned."""
        return "--eval-only" not in self.argv


SeedGroup = tuple[Run, ...]  # what one process carries out together


@dataclass(frozen=True)
class SweepConfig:
    """What the runs of a sweep share.

    Attributes:
        root: folder of the data sets.
        output: folder of all results.
        shots: training images per class.
        seeds: one run each.
        configs: trainer -> name of its configuration file (`STEM` or `FOLDER/STEM`), where not the declared one.
        opts: `KEY VALUE` pairs for every run.
        source: data set that is trained on, where others are tested.
        variant: a level of directories of its own (see `RunDirectory`).
        load_epoch: which checkpoint to test; "" for the last.
        folds: in how many the support images are dealt to choose a method.
        repeats: how often.
        files: data set -> its configuration file, or the folder of its images, where it is none of configs/datasets.
        point: KEY -> VALUE of a grid's point, as the command line gives them.
        level: the directory of that point (`results.layout.grid_level`).
    """

    root: str
    output: str
    shots: int
    seeds: tuple[int, ...]
    configs: dict[str, str] = field(default_factory=dict)
    opts: tuple[str, ...] = ()
    source: str = USUAL_SOURCE
    variant: str = ""
    load_epoch: str = ""
    folds: int = 4
    repeats: int = 2
    files: dict[str, str] = field(default_factory=dict)
    point: dict[str, str] = field(default_factory=dict)
    level: str = ""

    def name(self, dataset: str) -> str:
        """What the runs of a data set are called: of a file of one's own its name in `files`."""
        return next((name for name, file in self.files.items() if file == dataset), dataset)

    def seeds_of(self, trainer: str) -> tuple[int, ...]:
        """The seeds to run: the first alone for a trainer that learns nothing."""
        return self.seeds if trainer_class(trainer).learns else self.seeds[:1]

    def config(self, trainer: str, training: str, dataset: str, one_for_all: bool = False) -> str:
        """`FOLDER/STEM` of the trainer's configuration file; arguments and errors as of `config_of`."""
        chosen = self.configs.get(trainer)
        if chosen is None:
            return config_of(trainer, training, dataset, self.shots, one_for_all)
        return named_config(trainer, chosen)

    def run(
        self,
        place: RunDirectory,
        config: str,
        opts: Sequence[str] = (),
        trained: Run | None = None,
        one_for_all: bool = False,
    ) -> Run:
        """The run of a directory.

        Args:
            place: the directory.
            config: `FOLDER/STEM` of the trainer's configuration file.
            opts: `KEY VALUE` pairs that the protocol gives this run.
            trained: the training that it evaluates; None if it trains itself.
            one_for_all: leave out the method's settings for single data sets.

        Raises:
            ValueError: the sweep's own `KEY VALUE` pairs have a key of `opts`.
        """
        if twice := sorted(set(opts[::2]) & {*self.opts[::2], *self.point}):
            raise ValueError(f"{twice[0]}: the protocol gives each run its own value; leave it out")
        place = replace(place, grid=self.level)
        directory = f"{self.output.rstrip('/')}/{place.path()}"
        learns = trainer_class(place.trainer).learns
        needs = trained.output_dir if trained and learns else ""
        file = self.files.get(place.configured, str(configs() / "datasets" / f"{place.configured}.yaml"))
        own_folder = os.path.isdir(file)
        root = os.path.dirname(os.path.abspath(file)) if own_folder else self.root
        argv = ["--root", root, "--seed", str(place.seed), "--trainer", place.trainer]
        argv += ["--dataset-folder" if own_folder else "--dataset-config-file", file]
        argv += ["--config-file", str(configs() / "trainers" / f"{config}.yaml"), "--output-dir", directory]
        if needs or not learns:
            argv.append("--eval-only")
        if needs:
            argv += ["--model-dir", needs, *(["--load-epoch", self.load_epoch] if self.load_epoch else [])]
        argv += ["DATASET.NUM_SHOTS", str(self.shots)] if place.shots else []
        own = () if one_for_all else settings_of(place.trainer, place.cfg, place.trained_on)
        point = [word for pair in self.point.items() for word in pair]
        return Run(place, (*argv, *opts, *own, *self.opts, *point), directory, needs)


def varied(
    config: SweepConfig,
    trainers: Sequence[str],
    datasets: Sequence[str],
    role: str,
    variants: Mapping[str, Sequence[str]],
) -> list[Run]:
    """Training and testing on all classes, once for each variant: a level of directories with its `KEY VALUE` pairs.

    What learns nothing has the first variant alone.
    """
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            file = config.config(trainer, "all", dataset)
            for variant, opts in list(variants.items())[: None if trainer_class(trainer).learns else 1]:
                for seed in config.seeds_of(trainer):
                    place = RunDirectory(role, dataset, trainer, Path(file).name, config.shots, seed, variant)
                    runs.append(config.run(place, file, opts))
    return runs


def variant_settings(variant: str, keys: Mapping[str, Sequence[str]], usual: str) -> tuple[str, ...]:
    """The `KEY VALUE` pairs of a variant such as `sym_0.5`: a kind and a number above 0.

    Args:
        variant: its name.
        keys: kind -> the pairs, with the key of the number at the end.
        usual: the variant without any pairs.

    Raises:
        ValueError: it is neither, or the number is not written as it will be recorded (`0.50`).
    """
    kind, _, number = variant.rpartition("_")
    if variant == usual:
        return ()
    if kind not in keys or not re.fullmatch(r"\d+\.\d+", number) or str(float(number)) != number or not float(number):
        raise ValueError(f"--variant {variant}: write {usual} or {' or '.join(f'{kind}_0.5' for kind in keys)}")
    return (*keys[kind], number)


def require_no_selection(runs: list[Run]) -> list[Run]:
    """The runs; a ValueError if the settings of one take the best model by validation."""
    import train

    for run in {replace(run.place, seed=0): run for run in runs if run.trains}.values():
        cfg = train.build_config(train.build_parser().parse_args(list(run.argv)))
        if cfg.TEST.FINAL_MODEL != "last_step":
            raise ValueError(
                f"TEST.FINAL_MODEL {cfg.TEST.FINAL_MODEL} of {run.place.trainer} chooses by images that are not "
                "trained on, and this protocol has none: set it to last_step"
            )
    return runs


def transferable(runs: list[Run], allowed: Sequence[str], what: str) -> list[Run]:
    """The runs; `Unserved` if one evaluates classes that what its trainer learns, as configured, does not serve."""
    import train

    configured = {replace(run.place, seed=0): run for run in runs if run.needs}
    for place, run in configured.items():
        cfg = train.build_config(train.build_parser().parse_args(list(run.argv)))
        if trainer_class(place.trainer).class_transfer(cfg) not in allowed:
            raise Unserved(
                f"what {place.trainer} learns with these settings belongs to its classes and cannot be tested on {what}"
            )
    return runs


def refuse_others(trainers: Sequence[str], serving: Sequence[str], what: str) -> None:
    """Raise `Unserved` if what a trainer learns belongs to its classes (`SimpleTrainer.class_transfer`)."""
    from dassl.config import declared_cfg

    bound = [name for name in trainers if trainer_class(name).class_transfer(declared_cfg()) not in serving]
    if bound:
        raise Unserved(f"what {', '.join(bound)} learns belongs to its classes and cannot be tested on {what}")
