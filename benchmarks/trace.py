"""How much code a reader meets: which functions of this project one training step and one evaluation batch run through.

    python -m benchmarks.trace --trainers APEX CoOp --list

Each trainer trains for two epochs on the carried CLIP and a few pictures, with its configuration as it is, and is
evaluated twice. "functions" counts distinct pairs of file and name, so that `forward` of two classes in one file is
one; "functions by class" counts it twice. Comprehensions and generator expressions count with the function that they
stand in; code outside the project (PyTorch, the standard library) does not count. What is counted:

- training step: all that runs below the loop's call of `forward_backward`, at the last batch of the last epoch: loss,
  gradients, optimiser step, learning rate. What only the first step of a shape does (measuring its memory) is over.
- rest of an epoch: loader, loop, meters, log line, of all epochs.
- first and later batch of an evaluation: below the loop's calls of `parse_batch_test`, `model_inference` and the
  evaluator's `process`; the first batch also computes the features of the classes. The image features come from the
  tower in the first evaluation; "from the cache" is a later batch of the second.
- rest of an evaluation: loader, feature cache, loop, results, `metrics.json`.
"""

import argparse
import functools
import logging
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import train
from benchmarks.parts import table
from benchmarks.speed import own_images
from dassl.engine import build_trainer

ROOT = Path(train.__file__).resolve().parent
CONFIGS = {"APEX": "tiny_vit_c2_ep15_batch16_2+2ctx", "CoOp": "tiny_vit_ep50_ctxv1"}
INLINE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<module>")
STEP, EPOCH, FIRST, LATER, CACHED, REST = (
    "training step", "rest of an epoch", "first batch of an evaluation", "later batch of an evaluation",
    "later batch of an evaluation, from the cache", "rest of an evaluation",
)  # fmt: skip
Functions = set[tuple[str, str]]  # file below the project's folder, qualified name


class Tracer:
    """A profile function that notes the project's functions by what is going on.

    Attributes:
        phase: what is going on.
        functions: what was entered or resumed in each phase.
    """

    def __init__(self) -> None:
        self.phase = ""
        self.functions: dict[str, Functions] = defaultdict(set)

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        """Note the function of a frame; the signature is that of `sys.setprofile`."""
        if event == "call" and (function := of_project(frame.f_code)):
            self.functions[self.phase].add(function)

    def during(self, phase: Callable[[], str], call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, which counts as the phase that is told when it begins."""

        @functools.wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            outer, self.phase = self.phase, phase()
            try:
                return call(*args, **kwargs)
            finally:
                self.phase = outer

        return counted

    def numbered(self, owner: object, name: str, title: str) -> list[str]:
        """Let each call of a method be a phase of its own; returns the phases, a list that grows with the calls."""
        phases: list[str] = []

        def begin() -> str:
            phases.append(f"{title} {len(phases)}")
            return phases[-1]

        setattr(owner, name, self.during(begin, getattr(owner, name)))
        return phases


@functools.cache
def of_project(code: CodeType) -> tuple[str, str] | None:
    """File and name of a function of this project; None for all others, and for what stands in a function."""
    path = Path(code.co_filename)
    if code.co_filename == __file__ or code.co_name in INLINE or not path.is_relative_to(ROOT):
        return None
    file = path.relative_to(ROOT)
    return None if file.parts[0].startswith(".") else (str(file), code.co_qualname)


def traced(name: str, config: str, folder: Path) -> dict[str, Functions]:
    """The functions that training and evaluating this trainer runs through, by phase.

    Args:
        name: a registered trainer.
        config: path of a configuration file for the carried CLIP.
        folder: where pictures and results go.
    """
    words = ["--root", str(folder), "--seed", "1", "--trainer", name, "--config-file", config]
    words += ["--dataset-config-file", own_images(folder), "--output-dir", str(folder / name)]
    words += ["DATASET.NUM_SHOTS", "4", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "DATALOADER.TEST.BATCH_SIZE", "4"]
    words += ["OPTIM.MAX_EPOCH", "2"]
    trainer, tracer = build_trainer(train.build_config(train.build_parser().parse_args(words))), Tracer()
    steps = tracer.numbered(trainer, "forward_backward", STEP)
    batches = tracer.numbered(trainer, "parse_batch_test", LATER)
    for owner, call in ((trainer, "model_inference"), (trainer.evaluator, "process")):
        setattr(owner, call, tracer.during(lambda: batches[-1], getattr(owner, call)))
    trainer.run_epoch = tracer.during(lambda: EPOCH, trainer.run_epoch)
    trainer.test = tracer.during(lambda: REST, trainer.test)
    sys.setprofile(tracer)
    try:
        trainer.train()
        computed = len(batches)
        trainer.test()
    finally:
        sys.setprofile(None)
    noted = {STEP: steps[-1], EPOCH: EPOCH, FIRST: batches[0], LATER: batches[computed - 1], CACHED: batches[-1]}
    return {phase: tracer.functions[name] for phase, name in {**noted, REST: REST}.items()}


def trace(trainers: Sequence[str]) -> dict[str, dict[str, Functions]]:
    """By trainer, a key of `CONFIGS`: the functions of each phase."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as silence:
        before = os.environ.get("FEATURE_CACHE")
        os.environ["FEATURE_CACHE"] = str(Path(folder) / "features")
        try:
            with redirect_stdout(silence):
                return {
                    name: traced(name, f"{ROOT}/configs/trainers/{name}/{CONFIGS[name]}.yaml", Path(folder) / name)
                    for name in trainers
                }
        finally:
            os.environ.pop("FEATURE_CACHE")
            os.environ.update({"FEATURE_CACHE": before} if before is not None else {})


def files(functions: Functions) -> set[str]:
    """The files that these functions stand in."""
    return {file for file, _ in functions}


def names(functions: Functions) -> set[tuple[str, str]]:
    """File and plain name of these functions, in which `forward` of two classes of a file is one."""
    return {(file, name.rpartition(".")[2]) for file, name in functions}


def rows(found: Mapping[str, Mapping[str, Functions]]) -> list[dict[str, object]]:
    """A row for each trainer and phase: how many functions in how many files."""
    return [
        {"trainer": name, "what": phase, "functions": len(names(functions)), "in files": len(files(functions)),
         "functions by class": len(functions)}
        for name, phases in found.items()
        for phase, functions in phases.items()
    ]  # fmt: skip


def listing(found: Mapping[str, Mapping[str, Functions]]) -> str:
    """Every function below its trainer, phase and file."""
    lines = []
    for name, phases in found.items():
        for phase, functions in phases.items():
            lines += ["", f"{name}, {phase}:"]
            for file in sorted(files(functions)):
                lines.append(f"  {file}: {', '.join(sorted(own for where, own in functions if where == file))}")
    return "\n".join(lines) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainers", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="(default: all)")
    parser.add_argument("--list", action="store_true", help="name every function")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Trace and print."""
    args = build_parser().parse_args(argv)
    found = trace(args.trainers)
    sys.stdout.write(table(rows(found)) + (listing(found) if args.list else ""))
    return 0


if __name__ == "__main__":
    logging.getLogger("dassl").setLevel(logging.WARNING)
    sys.exit(main())
