"""Training and evaluating from Python: what the command lines do, with results as objects and as rows.

    result = train(trainer="APEX", dataset="drawn_thermal", seed=1, shots=16, classes="base")
    new = evaluate(result, classes="new")
    print(result.accuracy, new.accuracy, new.per_class)

Runs lie below `output` where sweeps put them, so tables and sweeps find them, and a run that is complete with the same
settings is read and not repeated.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

    from dassl.evaluation.predictions import Predictions
    from sweep.plan import Run

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What a run came to, as its `metrics.json` says.

    Attributes:
        trainer: registered name of the method.
        dataset: registered name of the data set that was tested on.
        classes: `all`, or the half of the classes that was tested on: `base` or `new`.
        seed: of the run.
        shots: training images per class.
        backbone: name of the frozen CLIP.
        accuracy: percent of the test images that were classified rightly; None for a run that was not tested.
        macro_f1: mean F1 over classes, percent.
        per_class: accuracy of each class, percent, by class name; of classes of one name the first has the bare name,
            the others their number behind it.
        history: for each epoch of the training `epoch`, `lr`, and the means over its steps of what the method logs,
            such as `loss` and `acc` (percent of the training images).
        folder: where the run lies, for `evaluate`, `Predictor` and the command lines.
        config: the resolved configuration, nested by node: `config["OPTIM"]["LR"]`.
        metrics: everything that `metrics.json` holds and is not null, such as times, versions, and what the method
            reports (for APEX `metrics["apex"]["alpha"]`).
    """

    trainer: str
    dataset: str
    classes: str
    seed: int
    shots: int
    backbone: str
    accuracy: float | None
    macro_f1: float | None
    per_class: dict[str, float]
    history: list[dict[str, float]]
    folder: Path
    config: dict[str, Any] = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)

    def predictions(self) -> "Predictions":
        """The answers to each test image; ValueError where the run kept none, FileNotFoundError where they are gone."""
        from results.predictions import NAME, read_predictions

        said = self.metrics.get("predictions", {})
        if "digest" not in said:
            raise ValueError(f"{self.folder} has no predictions ({said.get('reason', 'it is older than they are')})")
        return read_predictions(self.folder / NAME, said["digest"])

    def row(self) -> dict[str, Any]:
        """What a table needs of it: names, numbers, folder."""
        names = ("trainer", "dataset", "classes", "seed", "shots", "backbone", "accuracy", "macro_f1")
        return {name: getattr(self, name) for name in names} | {"folder": str(self.folder)}


def read_result(folder: str | os.PathLike[str]) -> Result:
    """The result of a run.

    Raises:
        FileNotFoundError: the folder has no `metrics.json`.
        ValueError: it is damaged, or a field is out of its range.
    """
    from results.records import METRICS, read_metrics

    path = Path(folder) / METRICS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no result of a run: there is no {METRICS}")
    metrics = read_metrics(path, ("trainer", "dataset", "seed"))
    per_class: dict[str, float] = {}
    for row in metrics.get("per_class", []):
        name = row["classname"]
        per_class[name if name not in per_class else f"{name} ({row['label']})"] = row["accuracy"]
    return Result(
        trainer=metrics["trainer"],
        dataset=metrics["dataset"],
        classes=metrics.get("subsample_classes", "all"),
        seed=metrics["seed"],
        shots=metrics.get("shots", -1),
        backbone=metrics.get("backbone", ""),
        accuracy=metrics.get("accuracy"),
        macro_f1=metrics.get("macro_f1"),
        per_class=per_class,
        history=metrics.get("history", []),
        folder=Path(folder),
        config=metrics.get("config", {}),
        metrics=metrics,
    )


def read_results(folder: str | os.PathLike[str]) -> list[Result]:
    """The results of all complete runs below a folder, in the order of their directories.

    Runs that are not to be averaged (diverged, or at odds with their directories) are left out: `apexvl tables` names
    them. FileNotFoundError if there is no such folder.
    """
    from results.tree import read_records

    return [read_result(record.path) for record in read_records(folder) if not record.problem]


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A plain row for each result; `data_frame` makes a table of them."""
    return [result.row() for result in results]


def data_frame(results: Sequence[Result]) -> "DataFrame":
    """The rows as a pandas data frame; ImportError where pandas is not installed, which this project does not need."""
    import pandas

    return pandas.DataFrame(rows(results))


def train(
    trainer: str,
    dataset: str | os.PathLike[str],
    seed: int = 1,
    shots: int = 16,
    classes: str = "all",
    *,
    config: str = "",
    root: str | os.PathLike[str] = "",
    output: str | os.PathLike[str] = "output",
    opts: Options | None = None,
    redo: bool = False,
    verbose: bool = False,
) -> Result:
    """Train a method on a data set and test it on the classes that it was trained on.

    Args:
        trainer: registered name in any case, such as `APEX`, or the path of a Python file that registers one.
        dataset: name of a file in `configs/datasets`, such as `dtd`, or the path of a YAML file of one's own.
        seed: of draws, order, augmentation and initial values.
        shots: training images per class.
        classes: `all`, or `base` for the first half of them; `evaluate` then tests on `new` ones.
        config: name of a file in `configs/trainers/<METHOD>`, or the path of one of one's own; by default the one that
            sweeps take for this data set.
        root: folder of the data sets; by default $DATA, else `data`. Drawn data sets are made there.
        output: folder of all results.
        opts: configuration keys and values, `{"OPTIM.LR": 0.01}`.
        redo: delete what is there of a run with other settings, and repeat it.
        verbose: show on standard output what the log of the run gets.

    Returns:
        The result of the run; of a complete one with the same settings without repeating it.

    Raises:
        ValueError: an unknown name, key or value; the folder of the run holds one with other settings.
        FileNotFoundError: data, weights or a configuration file are not there.
    """
    run = _training(trainer, dataset, seed, shots, classes, config, root, output, opts or {})
    _carry_out(run, redo, verbose)
    return read_result(run.output_dir)


def _training(
    trainer: str,
    dataset: str | os.PathLike[str],
    seed: int,
    shots: int,
    classes: str,
    config: str,
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    opts: Options,
) -> "Run":
    """The run of a training, in the directory that a sweep would give it."""
    import protocols  # noqa: F401 - declares the directories of runs
    from results.layout import RunDirectory
    from sweep.plan import SweepConfig

    if classes not in ("all", "base"):
        raise ValueError(
            f"classes={classes!r}: a training has all or base classes; evaluate(run, 'new') tests new ones"
        )
    if shots < 1:
        raise ValueError(f"shots={shots}: at least one image per class is needed")
    name, known = _trainer_name(trainer), _dataset(dataset)
    given = tuple(str(word) for pair in opts.items() for word in pair)
    files = {Path(known).stem: known} if known.endswith((".yaml", ".yml")) else {}
    own = config if config.endswith((".yaml", ".yml")) else ""
    if own and not os.path.isfile(own):
        raise FileNotFoundError(f"config={own!r}: there is no such file")
    chosen = {name: Path(config).stem if own else config} if config else {}
    plan = SweepConfig(_root(root), str(output), shots, (seed,), chosen, given, files=files)
    file = plan.config(name, "base2new" if classes == "base" else "all", plan.name(known))
    role = "zeroshot" if classes == "all" and not _learns(name) else classes
    place = RunDirectory(role, plan.name(known), name, Path(file).name, 0 if role == "zeroshot" else shots, seed)
    run = plan.run(place, file, ("DATASET.SUBSAMPLE_CLASSES", classes))
    index = run.argv.index("--config-file") + 1
    return replace(run, argv=(*run.argv[:index], own, *run.argv[index + 1 :])) if own else run


def evaluate(
    run: Result | str | os.PathLike[str],
    classes: str = "",
    *,
    dataset: str | os.PathLike[str] = "",
    root: str | os.PathLike[str] = "",
    output: str | os.PathLike[str] = "",
    epoch: int | None = None,
    opts: Options | None = None,
    verbose: bool = False,
) -> Result:
    """Test what a run learned on other classes, or on another data set.

    Args:
        run: a training: its result, or its folder.
        classes: `base`, `new` or `all`; by default those of the training, of another data set all.
        dataset: another data set, named as in `train`; by default that of the training.
        root: folder of the data sets; by default $DATA, else `data`.
        output: folder of the evaluation. By default where a sweep has it (new classes after base ones), otherwise below
            the folder of the training, `evaluations/<dataset>_<classes>`.
        epoch: of the checkpoint; by default the last.
        opts: configuration keys and values, also for what is elsewhere now: `{"MODEL.BACKBONE.PATH": "weights.pt"}`.
        verbose: show on standard output what the log of the evaluation gets.

    Raises:
        FileNotFoundError: there is no such run, checkpoint or data.
        ValueError: an unknown name, key or value; what was learned belongs to its classes; the folder holds another
            run.
    """
    from predict import stored_configuration, trained_with

    folder = run.folder if isinstance(run, Result) else Path(run)
    given = [str(word) for pair in (opts or {}).items() for word in pair]
    tree, _ = trained_with(folder, epoch)
    cfg = stored_configuration(tree, given, str(folder))
    chosen = classes or ("all" if dataset else str(cfg.DATASET.SUBSAMPLE_CLASSES))
    if chosen not in ("all", "base", "new"):
        raise ValueError(f"classes={classes!r}: choose base, new or all")
    known = _dataset(dataset) if dataset else ""
    place = output or _evaluation_folder(folder, Path(known).stem or cfg.DATASET.NAME, chosen, bool(known))
    words = ["--root", _root(root), "--trainer", cfg.TRAINER.NAME, "--seed", str(cfg.SEED), "--output-dir", str(place)]
    words += ["--eval-only"] + (["--model-dir", str(folder)] if _learns(cfg.TRAINER.NAME) else [])
    words += ["--load-epoch", str(epoch)] if epoch is not None else []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "evaluation.yaml"
        if known:
            words += ["--dataset-config-file", _yaml(known)]
            given = ["DATASET.NUM_SHOTS", str(cfg.pop("DATASET").NUM_SHOTS), *given]
        file.write_text(cfg.dump(), encoding="utf-8")
        words += ["--config-file", str(file), "DATASET.SUBSAMPLE_CLASSES", chosen, *given]
        _run(words, verbose)
    return read_result(place)


def compare(
    trainers: Sequence[str],
    datasets: Sequence[str | os.PathLike[str]],
    seeds: Sequence[int] = (1,),
    shots: int = 16,
    classes: str = "all",
    **settings: Any,
) -> list[Result]:
    """Train every method on every data set with every seed, one after the other.

    With `classes="base"` each training is followed by its evaluation on the new classes. Methods that learn nothing run
    with the first seed alone. Other settings are those of `train`. Many runs are the business of `apexvl sweep`, which
    spreads them over cores, GPUs and clusters, and finds these.
    """
    results = []
    for dataset in datasets:
        for trainer in map(_trainer_name, trainers):
            for seed in seeds if _learns(trainer) else seeds[:1]:
                results.append(train(trainer, dataset, seed, shots, classes, **settings))
                if classes == "base":
                    more = {key: settings[key] for key in ("root", "opts", "verbose") if key in settings}
                    results.append(evaluate(results[-1], "new", **more))
    return results


def _trainer_name(trainer: str) -> str:
    """The registered name of a method, given in any case or by a file that registers it; ValueError if unknown."""
    import trainers  # noqa: F401 - registers what is in the folder
    from adaptation.plugins import load_plugin
    from commands.names import trainer_name
    from dassl.engine import TRAINER_REGISTRY

    if not trainer.endswith(".py"):
        return trainer_name(trainer)
    module = load_plugin(trainer)
    name = getattr(module, "__name__", "")
    own = [one for one in TRAINER_REGISTRY.registered_names() if TRAINER_REGISTRY.get(one).__module__ == name]
    if len(own) != 1:
        raise ValueError(f"{trainer} registers {' and '.join(own) or 'no trainer'}: name one of them after loading it")
    return own[0]


def _learns(trainer: str) -> bool:
    from sweep.method_configs import trainer_class

    return bool(trainer_class(trainer).learns)


def _dataset(dataset: str | os.PathLike[str]) -> str:
    """The name of a shipped data set, or the path of a YAML file; ValueError or FileNotFoundError for others."""
    from commands.names import configs
    from dassl.utils import check_availability

    name = os.fspath(dataset)
    if not name.endswith((".yaml", ".yml")):
        check_availability(name, [path.stem for path in (configs() / "datasets").glob("*.yaml")], "data set")
    elif not os.path.isfile(name):
        raise FileNotFoundError(f"dataset={name!r}: there is no such file")
    return name


def _yaml(dataset: str) -> str:
    """The configuration file of a data set that `_dataset` knows."""
    from commands.names import configs

    return dataset if dataset.endswith((".yaml", ".yml")) else str(configs() / "datasets" / f"{dataset}.yaml")


def _root(root: str | os.PathLike[str]) -> str:
    return os.fspath(root) or os.environ.get("DATA", "data")


def _evaluation_folder(folder: Path, dataset: str, classes: str, other: bool) -> Path:
    """Where an evaluation lies: that of new classes where base-to-new tables look for it."""
    import protocols  # noqa: F401 - declares the directories of runs
    from results.layout import recognise

    place = recognise(folder.absolute().as_posix())
    if place and place.role == "base" and classes == "new" and not other:
        above = folder.absolute().as_posix().removesuffix(place.path())
        return Path(above, replace(place, role="new").path())
    return folder / "evaluations" / f"{dataset}_{classes}"


def _carry_out(run: "Run", again: bool, verbose: bool) -> None:
    """Carry out a run unless it is complete with the same settings."""
    from sweep.state import finished, redo

    if again:
        redo([run])
    if not finished(run):
        _run(run.argv, verbose)


def _run(words: Sequence[str], verbose: bool) -> None:
    """One call of train.py in this process; raises what it raises."""
    import train as program

    with nullcontext() if verbose else _silence():
        args = program.build_parser().parse_args(list(words))
        program.check_args(args)
        program.run(args)


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
        yield
