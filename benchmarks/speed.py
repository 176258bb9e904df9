"""What training and evaluating cost: a plain configuration (the official code's structure) against the default one.

    python -m benchmarks.speed --size b16 --classes 10,50,100

APEX on random weights. The candidates of a row take turns; the best of `--rounds` turns counts. On a CPU seconds are
processor time, so that other programs count little. After each part its table is printed, and `speed.json` and
`speed.md` in `--output-dir` are written with it and with the parts that were measured there before: `--parts seeds`
repeats one part, or goes on with what is missing. `--quick` is a trial of everything at the smallest size.
"""

import argparse
import logging
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import loader
from benchmarks.parts import SIZES, Bench, Run, matrix_rate, operations, repeated, separate, stacked, table
from benchmarks.timing import alternate, clock, first_line, machine, peak_memory, seconds_of
from clip.chunking import SHARE, activations, format_bytes, unchunked
from clip.precision import free_memory
from dassl.utils import atomic_write, choose_device, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
Rows = list[dict[str, object]]
SEED_CLASSES = 24
SHOTS, EPOCHS, TEST_IMAGES = 16, 15, 50  # of the whole run; test images of a class
PARTS = {
    "train": "Training step",
    "eval": "Evaluation on the classes that were trained on",
    "seeds": "Several seeds",
    "whole": "Whole runs",
    "memory": "Memory of a training step",
    "loader": "Loading images",
    "start": "Start-up",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    parser.add_argument("--size", choices=SIZES, default="b16", help="of the model (default: %(default)s)")
    parser.add_argument("--classes", type=numbers, default=[10, 50, 100], metavar="N,N", help="of train and eval")
    parser.add_argument("--seeds", type=numbers, default=[1, 4, 20], metavar="N,N", help="stacked against separate")
    parser.add_argument("--batch", type=int, default=16, help="images of a training step (default: %(default)s)")
    parser.add_argument("--seed-batch", type=int, default=0, help="images of a seed's step (default: --batch)")
    parser.add_argument("--eval-batch", type=int, default=64, help="images of an evaluation (default: %(default)s)")
    parser.add_argument("--precision", default="fp32,bf16", help="of the default configuration (default: %(default)s)")
    same = "precision of the plain one (default: fp32 on a CPU; on a GPU that of the default one)"
    parser.add_argument("--plain", default="", help=same)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each candidate (default: %(default)s)")
    measured = "steps and test batches of a whole run that are measured (default: all on a GPU, 1 and 2 on a CPU)"
    parser.add_argument("--measured", type=int, default=0, help=measured)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="everything once, at the smallest size")
    parser.add_argument("--output-dir", default="output/benchmarks", help="where the tables go (default: %(default)s)")
    return parser


def numbers(text: str) -> list[int]:
    """`10,50` as numbers."""
    return [int(part) for part in text.split(",")]


class Report:
    """Measures the parts on one machine.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = choose_device(use_cuda=True)
        self.on_cpu = self.device.type == "cpu"
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

    def plain(self, precision: str) -> str:
        """The precision of the plain configuration that one in this precision is compared with."""
        return self.args.plain or ("fp32" if self.on_cpu else precision)

    def compared(self, batch: int, use: str) -> Rows:
        """Plain against default in each precision: seconds of a `use` ("step" or "evaluate") and their ratio."""
        rows = []
        plain = {p: self.plain(p) for p in self.precisions}
        for classes in self.args.classes:
            runs = {f"plain {q}": self.bench.run("plain", q, classes, batch=batch) for q in plain.values()}
            runs |= {p: self.bench.run("default", p, classes, batch=batch) for p in self.precisions}
            best = self.best({name: getattr(run, use) for name, run in runs.items()})
            row = {"classes": classes, "longest sentence": next(iter(runs.values())).longest, "images": batch}
            row |= {f"{name}, s": seconds for name, seconds in best.items() if name not in plain}
            for p, q in plain.items():
                row |= {f"default {p}, s": best[p], f"ratio {p}": best[f"plain {q}"] / best[p]}
                row |= {f"share of the {p} rate": self.share(p, operations(getattr(runs[p], use)), best[p])}
            rows.append(row)
        return rows

    def train(self) -> Rows:
        """A training step: forward, backward, optimiser."""
        return self.compared(self.args.batch, "step")

    def eval(self) -> Rows:
        """The first batch of an evaluation on the classes that were trained on, with all that is computed once."""
        return self.compared(self.args.eval_batch, "evaluate")

    def seeds(self) -> Rows:
        """Steps of several runs, one after the other and together, as many at once as memory allows; and against plain
        ones one after the other."""
        rows, p = [], self.stack_precision
        for count in self.args.seeds:
            plain, runs = self.plain_and_runs(count)
            at_once = self.together(runs)
            best = self.best({"plain": plain.step, "separate": separate(runs), "stacked": stacked(runs, at_once)})
            row = {"seeds": count, "classes": SEED_CLASSES, "images of each": len(plain.images), "at once": at_once}
            row |= {f"separate {p}, s": best["separate"], f"stacked {p}, s": best["stacked"]}
            row |= {"ratio": best["separate"] / best["stacked"]}
            row |= {f"ratio to plain {self.plain(p)}, seed after seed": count * best["plain"] / best["stacked"]}
            done = count * operations(runs[0].step)
            rows.append({**row, f"share of the {p} rate": self.share(p, done, best["stacked"])})
        return rows

    @property
    def stack_precision(self) -> str:
        """What stacked runs are measured in: the first precision on a CPU, the last on a GPU."""
        return self.precisions[0 if self.on_cpu else -1]

    def plain_and_runs(self, count: int) -> tuple[Run, list[Run]]:
        """A plain run, and so many default ones."""
        p, batch = self.stack_precision, self.args.seed_batch
        runs = [self.bench.run("default", p, SEED_CLASSES, seed, batch) for seed in range(count)]
        return self.bench.run("plain", self.plain(p), SEED_CLASSES, batch=batch), runs

    def together(self, runs: Sequence[Run]) -> int:
        """How many of the runs' steps are computed together: all, or as many as there is room for."""
        return min(max(self.room(runs[0]), 1), len(runs))

    def room(self, run: Run) -> int:
        """How many such runs' steps there is room for."""
        free = free_memory(self.device)
        return sys.maxsize if free is None else int(SHARE * free) // kept_by(run)

    def whole(self) -> Rows:
        """Runs of several seeds (16 shots, 15 epochs, then base and new classes evaluated), the default ones together,
        against plain ones one after the other; without reading images. The seeds share the frozen features of the new
        classes' images. What is not measured is computed from what is: the steps of a run are alike, and so are the
        batches of an evaluation, of a default one all but the first."""
        count, p = max(self.args.seeds), self.stack_precision
        plain, runs = self.plain_and_runs(count)
        steps = EPOCHS * SEED_CLASSES * SHOTS // len(plain.images)
        batches = math.ceil(SEED_CLASSES * TEST_IMAGES / self.args.eval_batch)
        measured = min(self.args.measured or (1 if self.on_cpu else steps), steps)
        tried = min(measured + 1, batches)
        candidates = {"plain": repeated(plain.step, measured)}
        candidates |= {"default": repeated(stacked(runs, self.together(runs)), measured)}
        with tempfile.TemporaryDirectory() as folder:
            for name, run in self.evaluations(Path(folder)).items():
                candidates |= {name: run.evaluate, f"{name}, more": partial(run.evaluate, tried)}
            best = self.best(candidates)

        def evaluated(name: str) -> float:
            first, more = best[name], best[f"{name}, more"]
            return first + (batches - 1) * (more - first) / max(tried - 1, 1)

        slow = steps / measured * best["plain"] + evaluated("plain base") + evaluated("plain new")
        fast = steps / measured * best["default"] + count * evaluated("base")
        fast += evaluated("new") + (count - 1) * evaluated("new again")
        row = {"seeds": count, "steps of each": steps, "measured": measured, "test batches of each": 2 * batches}
        row |= {f"plain {self.plain(p)}, s per seed": slow, f"default {p}, s per seed": fast / count}
        return [{**row, "ratio": slow / (fast / count)}]

    def evaluations(self, folder: Path) -> dict[str, Run]:
        """A run on a batch of test images: plain and default, on the classes it was trained on and on new ones; and the
        latter again, as of a second seed, for which the frozen features are there."""
        precisions, batch = (
            {"plain": self.plain(self.stack_precision), "default": self.stack_precision},
            self.args.eval_batch,
        )
        plain, base = (self.bench.run(kind, p, SEED_CLASSES, batch=batch) for kind, p in precisions.items())
        new = base.on_new_classes()
        again = new.with_cached_features(folder / "features.npy")
        return {"plain base": plain, "plain new": plain.on_new_classes(), "base": base, "new": new, "new again": again}

    def memory(self) -> Rows:
        """What the towers keep for the backward pass of a step if nothing is saved, and the most that the step took."""
        rows, many, limit = [], *((1000, 2**31) if self.args.size == "b16" else (100, 2**24))
        for classes in (max(self.args.classes), many):
            for kind, most in (("plain", None), ("default", None), ("default", limit)):
                run = self.bench.run(kind, "fp32", classes)
                keeps, row = kept_by(run), {"configuration": kind, "classes": classes}
                if kind == "default":
                    object.__setattr__(run.model, "backbone", run.backbone.with_memory_limit(most))
                possible = kind == "default" or self.room(run) > 0
                peak = peak_memory(run.step, self.device) if possible else None
                row |= {"limit": format_bytes(most) if most else "-", "in one piece": format_bytes(keeps)}
                rows.append({**row, "taken by the step": format_bytes(peak) if peak else "not run"})
        return rows

    def start(self) -> Rows:
        """Wall time of `train.py --help`, and of a training on the carried CLIP up to its first step."""
        python = [sys.executable, str(ROOT / "train.py")]
        configuration = ROOT / "configs/trainers/APEX/tiny_vit_c2_ep15_batch16_2+2ctx.yaml"
        with tempfile.TemporaryDirectory() as folder:
            words = ["--root", folder, "--seed", "1", "--trainer", "APEX", "--config-file", str(configuration)]
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


def kept_by(run: Run) -> int:
    """Bytes that the towers keep for the backward pass of a step of this run."""
    method = run.model
    text = (run.backbone.encode_embeddings, [method.context(), method.context.layout], [])
    images = (run.backbone.encode_image, [run.images], method.image_prompts())
    with run.precision.autocast(), unchunked(run.backbone):
        return sum(_slope(*arguments) * len(arguments[1][0]) for arguments in (text, images))


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
    lines, before = [], ""
    for name, part in record["parts"].items():
        lines += [f"### {PARTS[name]}", " ".join(getattr(Report, name).__doc__.split()), table(part["rows"]).rstrip()]
        measured = f"{described(part['machine'])} `{part['command']}`"
        lines += [measured] if measured != before else []
        before = measured
    return "\n\n".join(lines) + "\n"


def described(on: Mapping[str, Any]) -> str:
    """A machine in one line."""
    versions = ", ".join(f"{name} {value}" for name, value in on["versions"].items())
    return (
        f"{on['date']}: {on['device']}, {on['processor']}, {on['threads']} of {on['cores']} cores, load {on['load']}, "
        f"{on['system']}; {versions}; commit {on['commit']}."
    )


def measure(report: Report, name: str, command: str) -> str:
    """Measure a part, and write it beside those that were measured before; returns its table."""
    place, on = Path(report.args.output_dir) / "speed.json", machine(report.device)
    part = {"command": command, "machine": on, "arguments": vars(report.args), "rows": getattr(report, name)()}
    part["matrix rate, FLOP/s"] = dict(report.rates)
    parts = {**(read_json(str(place))["parts"] if place.is_file() else {}), name: part}
    record = {"parts": {name: parts[name] for name in PARTS if name in parts}}
    write_json(record, str(place))
    with atomic_write(place.with_suffix(".md")) as file:
        file.write(markdown(record))
    return markdown({"parts": {name: part}})


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(words)
    if args.quick:
        args.size, args.classes, args.seeds, args.rounds = "tiny", [10], [1, 2], 1
    torch.set_num_threads(args.threads)
    report, command = Report(args), shlex.join(["python", "-m", "benchmarks.speed", *words])
    for name in args.parts:
        sys.stdout.write(measure(report, name, command) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    logging.getLogger("dassl").setLevel(logging.WARNING)
    sys.exit(main())
