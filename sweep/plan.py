"""The runs that a protocol consists of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from results.layout import BENCHMARKS, IMAGENET_VARIANTS, Place
from sweep.recipes import CONFIGS, config_of, kind, opts_of

PART_OF = {"base": "train", "all": "train", "zeroshot": "train", "new": "test", "transfer": "test"}


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

    @property
    def trains(self) -> bool:
        """Whether something is learned."""
        return "--eval-only" not in self.argv


Pack = tuple[Run, ...]  # what one process carries out together


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
        source: data set that is trained on, where others are tested.
        variant: a level of directories of its own (see `Place`).
        load_epoch: which checkpoint to test; "" for the last.
        files: data set -> its configuration file, where that is not the one of its name in configs/datasets.
    """

    root: str
    output: str
    shots: int
    seeds: tuple[int, ...]
    configs: dict[str, str] = field(default_factory=dict)
    opts: tuple[str, ...] = ()
    source: str = "imagenet"
    variant: str = ""
    load_epoch: str = ""
    files: dict[str, str] = field(default_factory=dict)

    def name(self, dataset: str) -> str:
        """What the runs of a data set are called: of a file of one's own its name in `files`."""
        return next((name for name, file in self.files.items() if file == dataset), dataset)

    def seeds_of(self, trainer: str) -> tuple[int, ...]:
        """The seeds to run: the first alone for a trainer that learns nothing."""
        return self.seeds if kind(trainer).learns else self.seeds[:1]

    def config(self, trainer: str, use: str, dataset: str) -> str:
        """`FOLDER/STEM` of the trainer's configuration file."""
        chosen = self.configs.get(trainer)
        if chosen is None:
            return config_of(trainer, use, dataset, self.shots)
        return chosen if "/" in chosen else f"{trainer}/{chosen}"

    def run(self, place: Place, config: str, opts: Sequence[str] = (), trained: Run | None = None) -> Run:
        """The run of a place; with `trained`, the evaluation of what that run learned."""
        directory = f"{self.output.rstrip('/')}/{place.path()}"
        learns = kind(place.trainer).learns
        needs = trained.output_dir if trained and learns else ""
        argv = ["--root", self.root, "--seed", str(place.seed), "--trainer", place.trainer]
        file = self.files.get(place.dataset, str(CONFIGS / "datasets" / f"{place.dataset}.yaml"))
        argv += ["--dataset-config-file", file]
        argv += ["--config-file", str(CONFIGS / "trainers" / f"{config}.yaml"), "--output-dir", directory]
        if needs or not learns:
            argv.append("--eval-only")
        if needs:
            argv += ["--model-dir", needs, *(["--load-epoch", self.load_epoch] if self.load_epoch else [])]
        argv += ["DATASET.NUM_SHOTS", str(self.shots)] if place.shots else []
        own = opts_of(place.trainer, place.cfg, place.source if place.role == "transfer" else place.dataset)
        return Run(place, (*argv, *opts, *own, *self.opts), directory, needs)


def base2new(setting: Setting, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training on the base classes, which ends with testing on them, then testing on the new classes.

    Raises:
        ValueError: a trainer whose learned state belongs to its classes.
    """
    _refuse_others(trainers, ("any",), "new classes")
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            config = setting.config(trainer, "base2new", dataset)
            for seed in setting.seeds_of(trainer):
                base = Place("base", dataset, trainer, Path(config).name, setting.shots, seed)
                first = setting.run(base, config, ("DATASET.SUBSAMPLE_CLASSES", "base"))
                second = ("DATASET.SUBSAMPLE_CLASSES", "new")
                runs += [first, setting.run(replace(base, role="new"), config, second, first)]
    return runs


def transfer(setting: Setting, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training on all classes of the source, then testing on the other sets.

    Raises:
        ValueError: a trainer whose learned state belongs to its classes, and cannot be tested on a part of them.
    """
    variants = set(datasets) <= set(IMAGENET_VARIANTS)
    _refuse_others(trainers, ("any", "part") if variants else ("any",), "other data sets")
    runs = []
    for trainer in trainers:
        config = setting.config(trainer, "transfer", setting.source)
        for seed in setting.seeds_of(trainer):
            source = Place("all", setting.source, trainer, Path(config).name, setting.shots, seed, setting.variant)
            first = setting.run(source, config)
            others = [name for name in datasets if name != setting.source]  # the training ends with testing on its own
            tested = [replace(source, role="transfer", dataset=name, source=setting.source) for name in others]
            runs += [first, *(setting.run(place, config, (), first) for place in tested)]
    return runs


def few_shot(setting: Setting, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Training and testing on all classes."""
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            config = setting.config(trainer, "all", dataset)
            for seed in setting.seeds_of(trainer):
                place = Place("all", dataset, trainer, Path(config).name, setting.shots, seed, setting.variant)
                runs.append(setting.run(place, config))
    return runs


def zero_shot(setting: Setting, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Testing on all classes without learning anything; ValueError for a trainer that learns."""
    runs = []
    for dataset in datasets:
        for trainer in trainers:
            if kind(trainer).learns:
                raise ValueError(f"{trainer} learns: the zero-shot protocol is for trainers that do not")
            config = setting.config(trainer, "all", dataset)
            place = Place("zeroshot", dataset, trainer, Path(config).name, seed=setting.seeds[0])
            runs.append(setting.run(place, config))
    return runs


def _refuse_others(trainers: Sequence[str], serving: Sequence[str], what: str) -> None:
    """Raise a ValueError if what a trainer learns serves classes of other kinds alone (`SimpleTrainer.serves`)."""
    bound = [name for name in trainers if kind(name).serves not in serving]
    if bound:
        raise ValueError(f"what {', '.join(bound)} learns belongs to its classes and cannot be tested on {what}")


@dataclass(frozen=True)
class Protocol:
    """A way to train and test.

    Attributes:
        plan: makes the runs of one number of shots.
        datasets: data sets of the papers' tables.
        shots: training images per class there.
        seeds: seeds there (for APEX's own protocols, those of its paper).
    """

    plan: Callable[[Setting, Sequence[str], Sequence[str]], list[Run]]
    datasets: tuple[str, ...]
    shots: tuple[int, ...]
    seeds: str


PROTOCOLS = {
    "base2new": Protocol(base2new, BENCHMARKS, (16,), "1-20"),
    "xd": Protocol(transfer, BENCHMARKS[1:], (16,), "1-5"),
    "dg": Protocol(transfer, IMAGENET_VARIANTS, (16,), "1-5"),
    "fewshot": Protocol(few_shot, BENCHMARKS, (1, 2, 4, 8, 16), "1-3"),
    "zeroshot": Protocol(zero_shot, (*BENCHMARKS, *IMAGENET_VARIANTS), (16,), "1"),
}
