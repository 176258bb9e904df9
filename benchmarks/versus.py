"""A training step of this commit against that of another one, measured in turns.

    git worktree add ../before <commit>
    python -m benchmarks.versus --other ../before --methods CoOp CoCoOp --classes 100

Each checkout has a process of its own with the same random weights, class names and images; they take turns, one thread
each, and the median of the rounds' processor times counts. The losses of both are shown, so that one sees that they
compute the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts import SIZES, class_names, table

ROOT = Path(__file__).resolve().parents[1]
METHODS = {  # module and class of a method, images of a step
    "APEX": ("trainers.apex", "APEXMethod", 16),
    "CoOp": ("trainers.coop", "CoOpMethod", 16),
    "CoCoOp": ("trainers.cocoop", "CoCoOpMethod", 1),
    "IVLP": ("trainers.ivlp", "IVLPMethod", 16),
    "MaPLe": ("trainers.maple", "MaPLeMethod", 16),
}
# what a process does: a step for each line that it reads; written so that older commits can run it
STEPS = """
import importlib, json, sys, time
import torch
from clip.loading import openai_backbone
from clip.model import CLIP
torch.set_num_threads(1)
module, name, images, sizes, names = json.loads(sys.argv[1])
torch.manual_seed(0)
backbone = openai_backbone("ViT-B/16", CLIP(*sizes).state_dict())
torch.manual_seed(0)
method = getattr(importlib.import_module(module), name)(backbone, names).train()
optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.002)
x = torch.randn(images, 3, backbone.image_size, backbone.image_size)
y = torch.arange(images) % len(names)
for _ in sys.stdin:
    start = time.process_time()
    optimiser.zero_grad()
    loss, _ = method.loss(x, y)
    loss.backward()
    optimiser.step()
    print(json.dumps([time.process_time() - start, loss.item()]), flush=True)
"""


class Stepper:
    """A process that makes a training step of a method whenever it is asked to.

    Args:
        checkout: the folder whose code it runs.
        job: what `STEPS` reads.
    """

    def __init__(self, checkout: Path, job: Sequence[object]):
        command = [sys.executable, "-P", "-c", STEPS, json.dumps(job)]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=checkout, env=environment, **pipes)

    def step(self) -> tuple[float, float]:
        """Processor seconds and loss of the next step.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            seconds, loss = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise RuntimeError(f"no step came from the process in {self._process.args!r:.60}: see above") from error
        return seconds, loss

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def row(name: str, other: Path, classes: int, rounds: int, size: str = "b16") -> dict[str, object]:
    """A line of the table: the median step of both, the first one, which allocates, left out."""
    module, method, images = METHODS[name]
    job = (module, method, images, SIZES[size], class_names(classes))
    steppers = [Stepper(checkout, job) for checkout in (other, ROOT)]
    try:
        steps = [[stepper.step() for stepper in steppers] for _ in range(rounds + 1)]
    finally:
        for stepper in steppers:
            stepper.end()
    before, now = (statistics.median(turn[i][0] for turn in steps[1:]) for i in (0, 1))
    ratios = sorted(turn[0][0] / turn[1][0] for turn in steps[1:])
    return {
        "method": name,
        "classes": classes,
        "images": images,
        "before, s": before,
        "now, s": now,
        "ratio": before / now,
        "ratios of the rounds": f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        "losses of the first step": " / ".join(f"{loss:.6f}" for _, loss in steps[0]),
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.versus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--other", type=Path, required=True, help="folder of a checkout of the other commit")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="(default: all)")
    parser.add_argument("--classes", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that count (default: %(default)s)")
    parser.add_argument("--size", choices=SIZES, default="b16", help="of the model (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print, a line as soon as it is known."""
    args = build_parser().parse_args(argv)
    for i, name in enumerate(args.methods):
        lines = table([row(name, args.other.resolve(), args.classes, args.rounds, args.size)]).splitlines(keepends=True)
        sys.stdout.write("".join(lines[2 if i else 0 :]))
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
