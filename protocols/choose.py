"""Which method to use for a data set, by repeated cross-validation over its support images; then the training of it.

Test images are not looked at before the answer is there. Zero-shot CLIP always takes part: it is what learning has to
be better than, and it tells how hard the transfer is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from protocols import fewshot
from results.choice import Choice, answer, choose, cross_validated
from results.layout import BENCHMARKS, ZERO_SHOT, Role, RunDirectory
from results.records import Record
from results.rows import in_order
from results.statistics import Summary
from results.tables import Difference, Table, TableOptions, Value, complaints, mean_of
from sweep.plan import Run, SweepConfig
from sweep.protocol import FollowUp, Protocol, register

FOLD = Role("choose/{dataset}/shots_{shots}/{trainer}/{cfg}{variant}/seed{seed}")
REFERENCE = f"{ZERO_SHOT}CLIP"
Key = tuple[str, int]  # data set, shots


def plan(config: SweepConfig, trainers: Sequence[str], datasets: Sequence[str]) -> list[Run]:
    """Cross-validation over the support images of all classes; the best method is then trained on all of them.

    Raises:
        ValueError: fewer than two folds, or more than there are shots.
    """
    folds, repeats = config.folds, config.repeats
    if config.variant:
        raise ValueError(f"--variant {config.variant}: the directories of choose have a level of folds there")
    if not 2 <= folds <= config.shots:
        raise ValueError(f"--folds {folds}: of {config.shots} shots there can be 2 to {config.shots} folds")
    runs = []
    for dataset in datasets:
        for trainer in dict.fromkeys((REFERENCE, *trainers)):
            file = config.config(trainer, "all", dataset)
            for seed in config.seeds:
                for index in range(folds * repeats):
                    number, repetition = index % folds + 1, index // folds + 1
                    level = f"fold{number}of{folds}_repeat{repetition}"
                    place = RunDirectory("fold", dataset, trainer, Path(file).name, config.shots, seed, level)
                    fold = f"{number}/{folds}@{repetition}"
                    runs.append(config.run(place, file, ("DATASET.NUM_SHOTS", str(config.shots), "DATASET.FOLD", fold)))
    return runs


def cost(config: SweepConfig, runs: Sequence[Run]) -> str:
    """What the trainings of a cross-validation cost, in a sentence."""
    trained = sum(run.trains for run in runs)
    whole = trained * (config.folds - 1) / config.folds
    return f"{trained} trainings of folds, together about as much as {whole:.0f} on all support images"


def groups(records: Iterable[Record]) -> dict[Key, dict[str, list[Record]]]:
    """Records of folds by data set and shots, then by trainer, in the order of their seeds and folds."""
    found: dict[Key, dict[str, list[Record]]] = {}
    own = (record for record in records if record.place.role == "fold")
    for record in sorted(own, key=lambda record: (record.place.seed, record.place.variant)):
        place = record.place
        found.setdefault((place.dataset, place.shots), {}).setdefault(place.trainer, []).append(record)
    return found


def seconds_of(records: Sequence[Record]) -> float:
    """The mean time of a training, in seconds."""
    return mean_of(r.metrics.get("train_seconds", 0.0) / r.metrics.get("runs_in_process", 1) for r in records)


class Comparison:
    """The methods of one data set and number of shots.

    Attributes:
        accuracies: of each method that has all folds.
        seconds: of a training, by method.
        choice: the answer; None if no method has all folds.
        lacking: the methods without all folds.
    """

    def __init__(self, by_trainer: dict[str, list[Record]]):
        folds = {(r.place.seed, r.place.variant) for own in by_trainer.values() for r in own}
        sound = {name: [r for r in own if not r.problem] for name, own in by_trainer.items()}
        whole = {name: own for name, own in sound.items() if len(own) == len(folds)}
        self.lacking = [name for name in by_trainer if name not in whole]
        self.seconds = {name: seconds_of(own) for name, own in whole.items()}
        values = {name: [record.accuracy for record in own] for name, own in whole.items()}
        count = int(next(iter(folds))[1].partition("of")[2].partition("_")[0])
        self.accuracies: dict[str, Summary] = {name: cross_validated(own, count) for name, own in values.items()}
        self.choice: Choice | None = choose(values, self.seconds, count) if values else None


def table(records: Sequence[Record], options: TableOptions) -> Table:
    """Accuracy on the folds per data set and method, the difference to the best, and the answer below."""
    columns = ["data set", "shots", "method", "n", "accuracy", "less the best", "no difference", "seconds", "chosen"]
    made = Table("Choice by cross-validation over the support images: accuracy in percent", columns)
    made.notes.append(
        "mean over n folds; ± is their sample standard deviation, in brackets half the width of the 95% interval, "
        "corrected for the images that trainings share (Nadeau and Bengio 2003)"
    )
    found = groups(records)
    for dataset in in_order({dataset for dataset, _ in found}, options.order):
        for shots in sorted(shots for name, shots in found if name == dataset):
            by_trainer = found[dataset, shots]
            compared = Comparison(by_trainer)
            choice = compared.choice
            for name in in_order(by_trainer, options.order):
                row: list[Value] = [dataset, shots, name, sum(not r.problem for r in by_trainer[name])]
                if not choice or name in compared.lacking:
                    made.rows.append([*row, None, None, "", None, ""])
                    continue
                gap = Difference(-choice.differences[name].mean) if name != choice.best else None
                equal = "yes" if name in choice.equals else ""
                chosen = "chosen" if name == choice.best else ""
                made.rows.append([*row, compared.accuracies[name], gap, equal, compared.seconds[name], chosen])
            if choice:
                made.notes.append(f"{dataset}, {shots} shots: {answer(choice, compared.accuracies, compared.seconds)}")
            made.notes += _difficulty(f"{dataset}, {shots} shots", by_trainer.get(REFERENCE, []))
            made.complete &= not compared.lacking
    own = [record for record in records if record.place.role == "fold"]
    made.notes += complaints(own, _Names())
    return made


class _Names(dict):
    """Methods are called by their trainers."""

    def __missing__(self, method: tuple[str, str, int]) -> str:
        return method[0]


def _difficulty(title: str, records: Sequence[Record]) -> list[str]:
    """How hard the transfer is, by zero-shot CLIP on the support images: a sentence.

    Relative transfer difficulty is 1 / (classes * accuracy) (paper, section 2); `d_nn` and `d_avg` are the distances of
    a class's sentence to the nearest other one and to the others on average (paper, section 3.3), meaned over classes.
    """
    first = [r for r in records if not r.problem and r.place.variant.endswith("_repeat1")]
    first = [r for r in first if r.place.seed == first[0].place.seed and r.metrics.get("num_test")]
    if not first:
        return []
    tested = sum(r.metrics["num_test"] for r in first)
    accuracy = sum(r.accuracy * r.metrics["num_test"] for r in first) / tested
    classes, distances = first[0].metrics["num_classes"], first[0].metrics.get("text_distances", {})
    relative = f"{100 / (classes * accuracy):.3f}" if accuracy else "without bound"
    parts = [f"zero-shot accuracy on the {tested} support images {accuracy:.2f}"]
    parts.append(f"relative transfer difficulty {relative}")
    parts += [f"mean {name} {value:.3f}" for name, value in distances.items()]
    return [f"{title}: {', '.join(parts)}"]


def follow(config: SweepConfig, records: Sequence[Record]) -> list[Run]:
    """The few-shot training of the chosen method, for each data set that has an answer."""
    runs = []
    for (dataset, shots), by_trainer in groups(records).items():
        choice = Comparison(by_trainer).choice
        if choice:
            runs += fewshot.plan(replace(config, shots=shots), [choice.best], [dataset])
    return runs


register(Protocol("choose", plan, table, {"fold": FOLD}, BENCHMARKS, follow=FollowUp("fewshot", follow, cost)))
