"""What `python -m sweep choose` is worth: regret over drawn tasks.

    python -m benchmarks.choice --root DATA --output OUT --json FILE

For each task (`synthetic.tasks`, drawn from seeds) a method is chosen by cross-validation over the support images, and
every method is trained on all of them and tested. Regret is the accuracy of the best method on the test images less
that of the chosen one, in points. The same line goes on where it was interrupted.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import protocols  # noqa: F401 - declares the directories of runs
from dassl.utils import atomic_write
from protocols.choose import REFERENCE, Comparison, groups
from results.statistics import Summary, paired_test, summarise
from results.tree import read_records
from sweep.cli import main as sweep

TRAINERS = ("CoOp", "APEX", "TipAdapterF", "LPPlusPlus", "LayerNormTuning", "CLIP_Adapter")
SHOTS = (4, 8, 4)  # task after task


def task_files(folder: Path, count: int) -> dict[int, list[str]]:
    """Configuration files of the tasks, written to a folder, by their numbers of shots."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[int, list[str]] = {}
    for number in range(count):
        path = folder / f"drawn_task_{number}.yaml"
        path.write_text(f'DATASET:\n  NAME: "DrawnTask"\n  TASK: {number}\n', encoding="utf-8")
        files.setdefault(SHOTS[number % len(SHOTS)], []).append(str(path))
    return files


def run(args: argparse.Namespace) -> None:
    """Carry out the cross-validations and the trainings of all tasks."""
    where = ["--root", args.root, "--output", str(args.output)]
    where += ["--jobs", str(args.jobs)] if args.jobs else []
    for shots, files in task_files(args.output / "tasks", args.tasks).items():
        what = ["--datasets", *files, "--shots", str(shots), "--seeds", "1", *where]
        folds = ["--folds", str(args.folds), "--repeats", str(args.repeats), "--part", "train"]
        for words in (
            ["choose", "--trainers", *args.trainers, *folds],
            ["fewshot", "--trainers", REFERENCE, *args.trainers],
        ):
            if status := sweep([*words, *what]):
                sys.exit(status)


def tasks_of(output: Path, repeats: int) -> list[dict]:
    """A row per task: its shots, classes, zero-shot accuracy, the accuracies of all methods, and what was chosen."""
    records = read_records(output)
    tested: dict[str, dict[str, float]] = {}
    for record in records:
        if record.place.role in ("all", "zeroshot") and not record.problem:
            tested.setdefault(record.place.dataset, {})[record.place.trainer] = record.accuracy
    wanted = {f"repeat{number}" for number in range(1, repeats + 1)}
    folds = [record for record in records if record.place.variant.partition("_")[2] in wanted]
    rows = []
    for (dataset, shots), by_trainer in groups(folds).items():
        compared = Comparison(by_trainer)
        unfinished = [r.path for own in by_trainer.values() for r in own if r.problem and "diverged" not in r.problem]
        if not compared.choice or unfinished:
            raise ValueError(f"{dataset}: no result in {unfinished[0] if unfinished else 'any fold'}")
        rows.append(
            {
                "task": int(dataset.rpartition("_")[2]),
                "shots": shots,
                "classes": by_trainer[REFERENCE][0].metrics["num_classes"],
                "accuracies": tested[dataset],
                "validated": {name: found.mean for name, found in compared.accuracies.items()},
                "seconds": compared.seconds,
                "best by folds": compared.choice.best,
                "cheapest of the equals": compared.choice.cheapest,
                "equals": len(compared.choice.equals),
                "diverged": compared.lacking,  # in a fold: not chosen
            }
        )
    return sorted(rows, key=lambda row: row["task"])


def regrets(rows: Sequence[Mapping]) -> dict[str, list[float]]:
    """Regret of each rule, task by task: the two answers of the command, every single method, and a method by lot."""
    names = sorted(rows[0]["accuracies"])
    best = [max(row["accuracies"].values()) for row in rows]
    found = {
        rule: [top - row["accuracies"][row[rule]] for top, row in zip(best, rows, strict=True)]
        for rule in ("best by folds", "cheapest of the equals")
    }
    found |= {
        f"always {name}": [top - row["accuracies"][name] for top, row in zip(best, rows, strict=True)] for name in names
    }
    found["by lot"] = [top - statistics.fmean(row["accuracies"].values()) for top, row in zip(best, rows, strict=True)]
    return found


def best_single(found: Mapping[str, Sequence[float]]) -> str:
    """The single method with the least mean regret over all tasks, which nobody knows beforehand."""
    return min((rule for rule in found if rule.startswith("always")), key=lambda rule: statistics.fmean(found[rule]))


def report(rows: Sequence[Mapping]) -> str:
    """The results as Markdown."""
    found = regrets(rows)
    single = best_single(found)
    lines = ["| rule | mean regret | least-regret tasks | against the best single method |", "|---|---|---|---|"]
    for rule, values in sorted(found.items(), key=lambda item: statistics.fmean(item[1])):
        hits = sum(value == 0 for value in values)
        gap = "" if rule == single else _shown(paired_test(found[single], values).difference, sign="+")
        lines.append(f"| {rule} | {_shown(summarise(values))} | {hits} of {len(rows)} | {gap} |")
    return "\n".join(lines) + "\n"


def _shown(found: Summary, sign: str = "") -> str:
    """Mean and 95% interval over the tasks."""
    half = found.ci95 or 0.0
    return f"{found.mean:{sign}.2f} ({found.mean - half:{sign}.2f} to {found.mean + half:{sign}.2f})"


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that the tasks are drawn into")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--trainers", nargs="+", default=list(TRAINERS))
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--json", type=Path, help="file for the numbers of all tasks")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not there yet, and print the table."""
    args = build_parser().parse_args(argv)
    run(args)
    rows = tasks_of(args.output, args.repeats)
    if args.json:
        with atomic_write(args.json) as file:
            json.dump({"folds": args.folds, "repeats": args.repeats, "tasks": rows}, file, indent=1)
    sys.stdout.write(report(rows))


if __name__ == "__main__":
    main()
