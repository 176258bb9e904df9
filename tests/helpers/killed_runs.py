"""Runs that are ended at seeded instants, continued by the same line, and compared with runs that were left alone.

    python tests/helpers/killed_runs.py --folder /tmp/killed --trials 300 --seed 1
    python tests/helpers/killed_runs.py --folder /tmp/killed --trials 30 --seed 1 --signal SIGTERM

Trial by trial another trainer, alone or as several seeds in one process, with keyed or global random streams, with
validation, with workers. SIGKILL comes at a step or at a file operation of the run, chosen among those that the run
has when it is left alone, or at an instant of time; a second one may follow. The other signals come at instants of time
alone, and the run has to end with status 75 and one sentence. Each run is a forked process: what it imports is there.

Prints a line for each trial that is not as it should be, then a summary; the exit status says whether there was one.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from dataset_trees import eurosat  # noqa: E402

import datasets  # noqa: E402, F401
import train  # noqa: E402
import trainers  # noqa: E402, F401
from adaptation.trainer import MethodTrainer  # noqa: E402
from dassl.engine import TRAINER_REGISTRY, TrainerX  # noqa: E402
from dassl.utils import load_checkpoint  # noqa: E402
from dassl.utils.checkpoints import last_checkpoint  # noqa: E402
from dassl.utils.digests import content_digest  # noqa: E402

SECONDS = 300.0  # that a run may take
METRICS = ("accuracy", "macro_f1", "per_class", "history", "epoch", "split_hash", "config_hash", "num_test")
VARIANTS: tuple[dict[str, str], ...] = (
    {"TRAIN.CHECKPOINT_MINUTES": "1e-9"},
    {"seeds": "1-3", "TRAIN.CHECKPOINT_MINUTES": "1e-9"},
    {"TRAIN.CHECKPOINT_FREQ": "1", "TRAIN.CHECKPOINT_MINUTES": "0.0"},
    {"DATALOADER.RANDOM_STREAMS": "global", "TEST.FINAL_MODEL": "best_val", "TRAIN.CHECKPOINT_MINUTES": "1e-9"},
    {"DATALOADER.NUM_WORKERS": "2", "TRAIN.CHECKPOINT_MINUTES": "1e-9"},
    {"seeds": "1-2", "TEST.FINAL_MODEL": "best_val", "TRAIN.CHECKPOINT_FREQ": "1"},
)


class Case(NamedTuple):
    """A command line without its output folder: a trainer and a variant of its settings."""

    name: str
    variant: int

    def argv(self, root: Path, out: Path) -> list[str]:
        """The arguments of train.py: two epochs of three steps."""
        opts = dict(VARIANTS[self.variant])
        seeds = opts.pop("seeds", "")
        argv = ["--root", str(root), "--trainer", self.name, "--backbone", "tiny-ViT", "--output-dir", str(out)]
        argv += ["--seeds", seeds] if seeds else ["--seed", "1"]
        argv += ["--dataset-config-file", str(ROOT / "configs/datasets/eurosat.yaml")]
        node = TRAINER_REGISTRY.get(self.name).config_node
        usual = {"DATALOADER.NUM_WORKERS": "0", "DATALOADER.TRAIN_X.BATCH_SIZE": "2", "DATASET.NUM_SHOTS": "3"}
        usual |= {"DATASET.SUBSAMPLE_CLASSES": "base", "OPTIM.MAX_EPOCH": "2", f"TRAINER.{node}.PREC": "fp32"}
        if "N_ITERS" in TRAINER_REGISTRY.get(self.name).CONFIG.get(node, {}):
            usual[f"TRAINER.{node}.N_ITERS"] = "0"
        return argv + [word for pair in (usual | opts).items() for word in pair]


def trainer_names() -> list[str]:
    """All trainers of methods."""
    return [name for name, kind in TRAINER_REGISTRY if issubclass(kind, MethodTrainer)]


def in_child(body: Callable[[], int], output: Path) -> int:
    """Start a forked process whose output goes to a file; returns its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = body()
        sys.stderr.flush()
    except BaseException:  # what nobody has answered with a sentence
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(status)


def ended(child: int) -> int:
    """Wait for a child; returns its status, negative for the signal that ended it."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def note_events(out: Path, at: Callable[[int], None]) -> None:
    """Call `at` with 1, 2, ... at each step of this process and each file operation below a folder."""
    count, prefix = 0, str(out)

    def event() -> None:
        nonlocal count
        count += 1
        at(count)

    def hook(name: str, args: tuple) -> None:
        files = name in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")
        if files and isinstance(args[0], str | bytes | os.PathLike) and prefix in os.fsdecode(args[0]):
            event()

    usual = TrainerX.step

    def step(self: TrainerX, batch: Any) -> Any:
        event()
        result = usual(self, batch)
        event()
        return result

    sys.addaudithook(hook)
    TrainerX.step = step  # type: ignore[method-assign]


def outcome(out: Path) -> dict[str, str]:
    """Digests of what each run below a folder left: its last checkpoint and its results, without times."""
    found: dict[str, str] = {}
    for path in sorted(out.rglob("metrics.json")):
        metrics = json.loads(path.read_text())
        found[str(path.relative_to(out))] = content_digest({key: metrics.get(key) for key in METRICS})
    for path in sorted(out.rglob("checkpoint")):
        state = load_checkpoint(last_checkpoint(str(path.parent)) or "")
        for key in ("random", "train_seconds"):
            state["progress"].pop(key, None)
        found[str(path.relative_to(out))] = content_digest(
            {k: v for k, v in state.items() if k not in ("config", "digest")}
        )
    found["files"] = json.dumps(sorted(p.name for p in out.rglob("[!.]*.pth.tar*")))
    return found


class Program:
    """Carries out trials in a folder.

    Args:
        folder: of data and runs.
        seed: of the instants.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.root = folder / "data"
        self.known: dict[Case, tuple[dict[str, str], int, float]] = {}  # outcome, events, seconds
        if not self.root.is_dir():
            eurosat(self.root)

    def run(self, case: Case, out: Path, **when: Any) -> tuple[int, str]:
        """Run a line, ended at an instant if one is given; returns its status and what it wrote to standard error."""
        said = self.folder / "stderr.txt"

        def body() -> int:
            os.environ["FEATURE_CACHE"] = str(when.get("cache", self.folder / "features"))
            if "events" in when:
                note_events(out, when["events"])
            return train.main(case.argv(self.root, out))

        child = in_child(body, said)
        if "seconds" in when:
            time.sleep(when["seconds"])
            os.kill(child, when["number"])
        status = ended(child)
        lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip() and "%|" not in line]
        return status, "\n".join(lines)

    def alone(self, case: Case) -> tuple[dict[str, str], int, float]:
        """What a case leaves when it is left alone, how many events it has, how long it takes."""
        if case not in self.known:
            out, counted = self.folder / "alone", self.folder / "events"
            shutil.rmtree(out, ignore_errors=True)
            start = time.monotonic()
            status, said = self.run(case, out, events=lambda count: counted.write_text(str(count)))
            assert status == 0, f"{case}: left alone it ends with {status}: {said}"
            self.known[case] = outcome(out), int(counted.read_text()), time.monotonic() - start
        return self.known[case]

    def trial(self, number: int, name: str) -> tuple[str, int]:
        """End one run once or twice, let it go on; returns what is wrong with it ("" if nothing), and how often it was
        ended."""
        rng = random.Random(f"{self.seed}/{number}")
        names = trainer_names()
        case = Case(names[number % len(names)], (number // len(names) + number) % len(VARIANTS))
        expected, events, seconds = self.alone(case)
        out = self.folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        cache = {"cache": self.folder / "own_features"} if rng.random() < 0.3 else {}
        shutil.rmtree(self.folder / "own_features", ignore_errors=True)
        kills, log = 0, []
        for _ in range(rng.choice((1, 1, 2))):
            if name == "SIGKILL" and rng.random() < 0.7:
                at = rng.randint(1, events)
                log.append(f"event {at} of {events}")
                status, said = self.run(case, out, events=_killer(at), **cache)
            else:
                after = rng.random() * seconds
                log.append(f"{after:.2f} s of {seconds:.2f}")
                status, said = self.run(case, out, seconds=after, number=signal.Signals[name], **cache)
            kills += status != 0
            if problem := _problem(name, status, said):
                return f"{case}, {log}: {problem}", kills
        status, said = self.run(case, out, **cache)
        if status:
            return f"{case}, {log}: the same line ended with {status}: {said}", kills
        left = outcome(out)
        wrong = [key for key in expected | left if expected.get(key) != left.get(key)]
        return (f"{case}, {log}: other {', '.join(wrong)}" if wrong else ""), kills


def _killer(at: int) -> Callable[[int], None]:
    def kill(count: int) -> None:
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def _problem(name: str, status: int, said: str) -> str:
    """What is wrong with how a run ended that a signal was sent to."""
    if status == 0:
        return ""  # it was faster
    if name == "SIGKILL":
        return "" if status == -signal.SIGKILL else f"status {status}: {said}"
    one = said.count("\n") == 0 and said.startswith(f"train.py: ended by {name}; the same command line goes on from ")
    return "" if status == 75 and one else f"status {status}: {said}"


def main() -> int:
    """Carry out the trials of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--signal", default="SIGKILL", choices=["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    import torch

    torch.set_num_threads(1)
    os.environ["FILE_HASHES"] = str(args.folder / "hashes.sqlite")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program, wrong, kills = Program(args.folder, args.seed), 0, 0
    for number in range(args.first, args.first + args.trials):
        problem, count = program.trial(number, args.signal)
        kills, wrong = kills + count, wrong + bool(problem)
        if problem:
            print(f"trial {number}: {problem}", flush=True)
    right = args.trials - wrong
    print(f"{right} of {args.trials} runs ended as if left alone; {kills} times {args.signal}, seed {args.seed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
