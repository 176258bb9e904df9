"""What training and evaluating cost: a plain configuration (the official code's structure) against the default one.

    python -m benchmarks.speed --size b16 --classes 10,50,100

APEX on random weights. The candidates of a row take turns; the best of `--rounds` turns counts. On a CPU seconds are
processor time, so that other programs count little. Writes `speed.json` and `speed.md` to `--output-dir`, and prints
the tables. `--quick` is a trial of everything at the smallest size.
"""

import argparse
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import loader
from benchmarks.parts import SIZES, Bench, Run, matrix_rate, operations, separate, stacked, table
from benchmarks.timing import alternate, clock, first_line, machine, peak_memory, seconds_of
from clip.memory import activations, readable, whole_batches
from clip.precision import free_memory
from dassl.utils import atomic_write, choose_device, write_json

ROOT = Path(__file__).resolve().parents[1]
Rows = list[dict[str, object]]
SEED_CLASSES = 24
SHOTS, EPOCHS, TEST_IMAGES = 16, 15, 50  # of the run that is computed from steps; test images of a class
SECTIONS = {
    "train": "Training step",
    "eval": "Evaluation on the classes that were trained on",
    "seeds": "Several seeds",
    "whole": "A whole run, computed",
    "memory": "Memory of a training step",
    "loader": "Loading images",
    "start": "Start-up",
}
SEED_COLUMNS = ("separate, s", "stacked, s", "ratio", "ratio to plain, seed after seed", "share of the rate")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="b16", help="of the model (default: %(default)s)")
    parser.add_argument("--classes", type=numbers, default=[10, 50, 100], metavar="N,N", help="of train and eval")
    parser.add_argument("--seeds", type=numbers, default=[1, 4, 20], metavar="N,N", help="stacked against separate")
    parser.add_argument("--batch", type=int, default=16, help="images of a training step (default: %(default)s)")
    parser.add_argument("--seed-batch", type=int, default=0, help="images of a seed's step (default: --batch)")
    parser.add_argument("--eval-batch", type=int, default=64, help="images of an evaluation (default: %(default)s)")
    parser.add_argument("--precision", default="fp32,bf16", help="of the default configuration (default: %(default)s)")
    parser.add_argument("--plain", default="fp32", help="precision of the plain one (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each candidate (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections (default: all)")
    parser.add_argument("--quick", action="store_true", help="everything once, at the smallest size")
    parser.add_argument("--output-dir", default="output/benchmarks", help="where the tables go (default: %(default)s)")
    return parser


def numbers(text: str) -> list[int]:
    """`10,50` as numbers."""
    return [int(part) for part in text.split(",")]


class Report:
    """Measures the sections on one machine.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = choose_device(use_cuda=True)
        self.bench = Bench(args.size, self.device, args.batch)
        self.precisions = args.precision.split(",")
        self.rates: dict[str, float] = {}

    def best(self, candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Seconds of the best turn of each candidate."""
        turns = alternate(candidates, self.args.rounds, self.device)
        return {name: min(seconds) for name, seconds in turns.items()}

    def share(self, precision: str, done: int, seconds: float) -> float:
        """The part of the machine's rate for matrix products that a computation reached."""
        if precision not in self.rates:
            self.rates[precision] = matrix_rate(precision, self.device, clock(self.device))
        return done / seconds / self.rates[precision]

    def compared(self, batch: int, use: str) -> Rows:
        """Plain against default in each precision: seconds of a `use` ("step" or "evaluate") and their ratio."""
        rows = []
        for classes in self.args.classes:
            runs = {"plain": self.bench.run("plain", self.args.plain, classes, batch=batch)}
            runs |= {p: self.bench.run("default", p, classes, batch=batch) for p in self.precisions}
            best = self.best({name: getattr(run, use) for name, run in runs.items()})
            row = {"classes": classes, "longest sentence": runs["plain"].longest, "images": batch}
            row |= {f"plain {self.args.plain}, s": best["plain"]}
            for p in self.precisions:
                done = operations(getattr(runs[p], use))
                row |= {f"default {p}, s": best[p], f"ratio {p}": best["plain"] / best[p]}
                row |= {f"share of the {p} rate": self.share(p, done, best[p])}
            rows.append(row)
        return rows

    def train(self) -> Rows:
        """A training step: forward, backward, optimiser."""
        return self.compared(self.args.batch, "step")

    def eval(self) -> Rows:
        """An evaluation of one batch on the classes that were trained on, with all that is computed once."""
        return self.compared(self.args.eval_batch, "evaluate")

    def seeds(self) -> Rows:
        """Steps of several runs, one after the other and together, and against plain ones one after the other."""
        rows = []
        for count in self.args.seeds:
            plain, runs = self.plain_and_runs(count)
            row = {"seeds": count, "classes": SEED_CLASSES, "images of each": len(plain.images)}
            if not self.fits(runs):
                rows.append({**row, **dict.fromkeys(SEED_COLUMNS), "note": f"not run: keeps {readable(kept_by(runs))}"})
                continue
            best = self.best({"plain": plain.step, "separate": separate(runs), "stacked": stacked(runs)})
            share = self.share(self.stack_precision, operations(stacked(runs)), best["stacked"])
            values = [best["separate"], best["stacked"], best["separate"] / best["stacked"]]
            values += [count * best["plain"] / best["stacked"], share]
            rows.append({**row, **dict(zip(SEED_COLUMNS, values, strict=True)), "note": self.stack_precision})
        return rows

    @property
    def stack_precision(self) -> str:
        """What stacked runs are measured in: the first precision on a CPU, the last on a GPU."""
        return self.precisions[0 if self.device.type == "cpu" else -1]

    def plain_and_runs(self, count: int) -> tuple[Run, list[Run]]:
        """A plain run, and so many default ones."""
        batch = self.args.seed_batch
        runs = [self.bench.run("default", self.stack_precision, SEED_CLASSES, seed, batch) for seed in range(count)]
        return self.bench.run("plain", self.args.plain, SEED_CLASSES, batch=batch), runs

    def fits(self, runs: list[Run]) -> bool:
        """Whether the steps of these runs can be computed together."""
        free = free_memory(self.device)
        return free is None or kept_by(runs) < free / 2

    def whole(self) -> Rows:
        """A run (16 shots, 15 epochs, base and new classes evaluated), computed from its steps and batches."""
        count = max((n for n in self.args.seeds if self.fits(self.plain_and_runs(n)[1])), default=1)
        plain, runs = self.plain_and_runs(count)
        p, batch = self.args.plain, self.args.eval_batch
        ours = self.bench.run("default", self.stack_precision, SEED_CLASSES, batch=batch)
        theirs = self.bench.run("plain", p, SEED_CLASSES, batch=batch)
        best = self.best(
            {"plain": plain.step, "ours": stacked(runs), "plain test": theirs.evaluate, "test": ours.evaluate}
        )
        steps, tests = EPOCHS * SEED_CLASSES * SHOTS // len(plain.images), 2 * SEED_CLASSES * TEST_IMAGES
        slow = steps * best["plain"] + tests / batch * best["plain test"]
        fast = steps * best["ours"] / count + tests / batch * best["test"]
        row = {"seeds": count, "steps": steps, "test images": tests, f"plain {p}, s per seed": slow}
        return [{**row, f"stacked {self.stack_precision}, s per seed": fast, "ratio": slow / fast}]

    def memory(self) -> Rows:
        """What the towers keep for the backward pass of a step if nothing is saved, and the most that the step took."""
        rows, many, limit = [], *((1000, 2**31) if self.args.size == "b16" else (100, 2**24))
        for classes in (max(self.args.classes), many):
            for kind, most in (("plain", None), ("default", None), ("default", limit)):
                run = self.bench.run(kind, "fp32", classes)
                keeps, row = kept_by([run]), {"configuration": kind, "classes": classes}
                if kind == "default":
                    object.__setattr__(run.model, "backbone", run.backbone.within(most))
                possible = kind == "default" or self.fits([run])
                peak = peak_memory(run.step, self.device) if possible else None
                row |= {"limit": readable(most) if most else "-", "in one piece": readable(keeps)}
                rows.append({**row, "taken by the step": readable(peak) if peak else "not run"})
        return rows

    def start(self) -> Rows:
        """Wall time of `train.py --help`, and of a training on the carried CLIP up to its first step."""
        python = [sys.executable, str(ROOT / "train.py")]
        recipe = ROOT / "configs/trainers/APEX/tiny_vit_c2_ep15_batch16_2+2ctx.yaml"
        with tempfile.TemporaryDirectory() as folder:
            words = ["--root", folder, "--seed", "1", "--trainer", "APEX", "--config-file", str(recipe)]
            words += ["--dataset-config-file", own_images(Path(folder)), "--output-dir", f"{folder}/out"]
            words += ["DATASET.NUM_SHOTS", "4", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "TRAIN.PRINT_FREQ", "1"]
            helped = min(seconds_of([*python, "--help"]) for _ in range(self.args.rounds))
            stepped = min(first_line([*python, *words], r"batch \[1/") for _ in range(self.args.rounds))
        return [{"train.py --help, s": helped, "first training step, s": stepped}]

    def loader(self) -> Rows:
        """Images per second of the loaders (see `benchmarks.loader`)."""
        count = 16 if self.args.quick else 96
        passes = loader.run(count, self.args.rounds)
        return [
            {"images": variant.pictures, "use": variant.use, "workers": variant.workers,
             "decoded images kept": variant.stored, "images/s": max(one.images_per_second for one in each)}
            for variant, each in passes.items()
        ]  # fmt: skip


def kept_by(runs: Sequence[Run]) -> int:
    """Bytes that the towers keep for the backward pass of a step of each of these runs."""
    run, method = runs[0], runs[0].model
    text = (run.backbone.encode_embeddings, [method.context(), method.context.end], [])
    images = (run.backbone.encode_image, [run.images], method.image_prompts())
    with run.precision.autocast(), whole_batches():
        return len(runs) * sum(_slope(*arguments) * len(arguments[1][0]) for arguments in (text, images))


def _slope(encode: Callable[..., torch.Tensor], samples: list[torch.Tensor], prompts: list) -> int:
    """Bytes that encoding one more sample keeps."""
    one, two = (activations(encode, [part[:n] for part in samples], prompts) for n in (1, 2))
    return two - one


def own_images(folder: Path) -> str:
    """Three classes of eight pictures as a data set of one's own; returns its YAML."""
    for name in ("circle", "square", "star"):
        (folder / "own" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "own" / name / f"{number}.png")
    path = folder / "own.yaml"
    path.write_text('DATASET:\n  NAME: "OwnData"\n  FOLDER: "own"\n')
    return str(path)


def markdown(record: dict) -> str:
    """The tables, with what they were measured on."""
    on = record["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in on["versions"].items())
    lines = [
        f"{on['date']}: {on['device']}, {on['processor']}, {on['threads']} of {on['cores']} "
        f"cores, load {on['load']}, {on['system']}; {versions}; commit {on['commit']}.",
        f"`{record['command']}`",
    ]
    for name, rows in record["sections"].items():
        if rows:
            lines += [f"### {SECTIONS[name]}", (getattr(Report, name).__doc__ or "").strip(), table(rows).rstrip()]
    return "\n\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(words)
    if args.quick:
        args.size, args.classes, args.seeds, args.rounds = "tiny", [10], [1, 2], 1
    torch.set_num_threads(args.threads)
    report = Report(args)
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.speed", *words]),
        "machine": machine(report.device),
        "arguments": vars(args),
        "sections": {name: getattr(report, name)() for name in SECTIONS if name in args.only},
        "matrix rate, FLOP/s": report.rates,
    }
    write_json(record, f"{args.output_dir}/speed.json")
    text = markdown(record)
    with atomic_write(f"{args.output_dir}/speed.md") as file:
        file.write(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    logging.getLogger("dassl").setLevel(logging.WARNING)
    sys.exit(main())
