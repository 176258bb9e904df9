"""Runs on a disk that is full at some stage: how each ends, and what the same line makes of it when there is room.

    unshare --mount python tests/helpers/full_disks.py --folder /tmp/full --trials 30 --seed 1

needs the right to mount. Trial by trial another trainer runs on a tmpfs of 2 MB with so much room left, or so many
inodes, or read-only. It has to end with one sentence that names a file of the disk and the cause, status 2, or well: a
log, events and cached features may be lost. Then the disk gets room, and the same line has to leave what it leaves on
an empty disk. `--shm` gives the workers of its loaders 64 kB of shared memory instead.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from killed_runs import Case, Program, outcome, trainer_names

CAUSES = ("No space left on device", "Read-only file system", "Disk quota exceeded", "File too large")


def mount(folder: Path, options: str) -> None:
    """Mount a tmpfs, in the place of one that is there."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["umount", folder], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def size_of(folder: Path) -> tuple[int, int]:
    """Bytes and inodes that a file system has in use."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize, status.f_files - status.f_ffree


def trial(program: Program, number: int) -> str:
    """Run a line on a disk that is too small, then on the same disk with room; returns what is wrong, or ""."""
    rng, names, disk = random.Random(f"{program.seed}/{number}"), trainer_names(), program.folder / "disk"
    case = Case(names[(7 * number) % len(names)], number % 3)
    mount(disk, "size=64m")
    status, said = program.run(case, disk / "run", cache=disk / "features")
    if status:
        return f"{case}: on an empty disk it ends with {status}: {said}"
    expected, (used, inodes) = outcome(disk / "run"), size_of(disk)
    mount(disk, "size=64m")
    kind = ("bytes", "bytes", "inodes", "read-only")[number % 4]
    room = rng.randrange(4096, used) if kind == "bytes" else rng.randrange(2, inodes) if kind == "inodes" else 0
    limit = {"bytes": f"size={room}", "inodes": f"nr_inodes={room}", "read-only": "ro"}[kind]
    subprocess.run(["mount", "-o", f"remount,{limit}", disk], check=True)
    status, said = program.run(case, disk / "run", cache=disk / "features")
    what = f"{case}, {kind} {room} of {used if kind == 'bytes' else inodes}"
    if wrong := _wrong(status, said, disk):
        return f"{what}: {wrong}"
    subprocess.run(["mount", "-o", "remount,rw,size=64m,nr_inodes=10000", disk], check=True)
    status, said = program.run(case, disk / "run", cache=disk / "features")
    if status:
        return f"{what}: with room again it ends with {status}: {said}"
    left = outcome(disk / "run")
    wrong = ", ".join(key for key in expected if expected[key] != left.get(key))
    return f"{what}: other {wrong}" if wrong else ""


def _wrong(status: int, said: str, disk: Path) -> str:
    """What is wrong with how a run ended on a full disk."""
    ends = [line for line in said.splitlines() if line.startswith("train.py: ")]
    if "Traceback" in said or status not in (0, 2):
        return f"status {status}: {said}"
    if status == 2 and not all(str(disk) in line and any(cause in line for cause in CAUSES) for line in ends):
        return f"a sentence without path or cause: {said}"
    return "" if bool(status) == bool(ends) else f"status {status}, but {said!r}"


def shared_memory(program: Program) -> str:
    """Run with workers and 64 kB of shared memory; returns what is wrong, or ""."""
    mount(Path("/dev/shm"), "size=64k")
    out = program.folder / "shm"
    shutil.rmtree(out, ignore_errors=True)
    status, said = program.run(Case("CoOp", 4), out)
    right = status == 2 and "Traceback" not in said and "NUM_WORKERS 0" in said.splitlines()[-1]
    return "" if right else f"status {status}: {said}"


def main() -> int:
    """Carry out the trials of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shm", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    import torch

    torch.set_num_threads(1)
    os.environ["FILE_HASHES"] = str(args.folder / "hashes.sqlite")
    program = Program(args.folder, args.seed)
    problems = [shared_memory(program)] if args.shm else [trial(program, number) for number in range(args.trials)]
    for problem in filter(None, problems):
        print(problem)
    print(f"{problems.count('')} of {len(problems)} runs said what was short and went on exactly, seed {args.seed}")
    return 1 if any(problems) else 0


if __name__ == "__main__":
    sys.exit(main())
