"""The same sweep on SLURM, through submitit: an array of trainings, then an array of what follows each of them.

A job that runs out of time, or is preempted, saves its runs where they are, is put back into the queue and goes on.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from results.records import read_run
from sweep.plan import Run, SeedGroup
from sweep.pool import BUSY_SECONDS, THREADS, Outcome
from sweep.state import finished
from sweep.worker import Message, execute_pack

logger = logging.getLogger(__name__)

LARGEST_ARRAY = 1000  # SLURM's MaxArraySize is 1001 unless configured otherwise
POLL_SECONDS = 2.0
QUEUE_SECONDS = 30.0
END_SECONDS = 600.0  # a job that was asked to end is ended by SLURM long before


@dataclass
class Task:
    """What one job does: its packs of runs, one after the other.

    Attributes:
        packs: in order; the runs of a pack are carried out together.
        threads: CPU threads.
        over: directories of the runs that are over; they are not repeated when the job is put back into the queue.
    """

    packs: tuple[SeedGroup, ...]
    threads: int
    over: list[str] = field(default_factory=list)

    def __call__(self) -> None:
        """Carry out the runs, until they are over or SLURM asks the job to end: then they are saved where they are.

        Raises:
            RuntimeError: some failed. Of a pack of trainings it takes all of them, since then the job that needs this
                one is not started.
        """
        from dassl.utils.interruption import Interrupted, interruptible

        later: list[int] = []  # before a preemption there are two signals, of which submitit answers the second
        try:
            with interruptible(_handled(), end=later.append, note=later.append):
                self._carry_out_all()
        except Interrupted as interrupted:
            logger.warning("%s", interrupted)
            for number in dict.fromkeys((interrupted.number, *later)):
                signal.raise_signal(number)  # submitit puts the job back into the queue, if it is its signal
            time.sleep(END_SECONDS)  # else SLURM ends it, or puts it back itself
            raise RuntimeError(str(interrupted)) from None

    def _carry_out_all(self) -> None:
        """Carry out the packs, those that other processes are at when these are through."""
        import torch

        torch.set_num_threads(self.threads)
        reasons: list[str] = []
        waiting = list(self.packs)
        while waiting:
            pack = waiting.pop(0)
            held_up = self._carry_out(tuple(run for run in pack if run.output_dir not in self.over), reasons)
            if held_up:
                waiting.append(held_up)
                time.sleep(BUSY_SECONDS)
        if reasons and (len(self.packs) > 1 or len(reasons) == len(self.packs[0])):
            raise RuntimeError("; ".join(reasons))

    def _carry_out(self, pack: SeedGroup, reasons: list[str]) -> SeedGroup:
        """Carry out a pack; notes why runs failed, and returns those that another process is at."""
        held_up: list[Run] = []

        def note(message: Message) -> None:
            run = pack[message.index]
            if message.kind == "busy":
                held_up.append(run)
            elif message.kind in ("done", "failed"):
                self.over.append(run.output_dir)
                reasons.extend([f"{run.output_dir}: {message.reason}"] if message.reason else [])

        if pack:
            execute_pack(pack, note)
        return tuple(held_up)

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue at a time-out: the same, less the runs that are over."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _handled() -> list[int]:
    """The signals by which SLURM asks a job to end, of those that submitit answers."""
    names = ("SIGTERM", "SIGUSR1", "SIGUSR2")
    numbers = [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
    return [number for number in numbers if callable(signal.getsignal(number))]


@dataclass(frozen=True)
class Options:
    """What is asked of SLURM.

    Attributes:
        folder: of scripts and logs, on a file system that all nodes see.
        partition: name; "" for the default one.
        minutes: time limit of a job.
        gpus: per job.
        cpus: per job.
        memory_gb: per job; 0 leaves it to the cluster.
        at_a_time: jobs of an array.
        threads: CPU threads of a run.
        more: further parameters by sbatch's names, such as account or qos.
    """

    folder: str
    partition: str = ""
    minutes: int = 60
    gpus: int = 0
    cpus: int = 1
    memory_gb: int = 0
    at_a_time: int = 256
    threads: int = 1
    more: dict[str, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """For submitit's executor."""
        wanted: dict[str, Any] = {
            "name": "sweep",
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "slurm_array_parallelism": self.at_a_time,
            # or what follows a job that was killed would wait for ever
            "slurm_additional_parameters": {"kill_on_invalid_dep": "yes"},
            "slurm_setup": [f"export {name}={self.threads}" for name in THREADS],
        }
        if self.partition:
            wanted["slurm_partition"] = self.partition
        if self.gpus:
            wanted["gpus_per_node"] = self.gpus
        if self.memory_gb:
            wanted["mem_gb"] = self.memory_gb
        return {**wanted, **{f"slurm_{name.replace('-', '_')}": value for name, value in self.more.items()}}


Element = tuple[SeedGroup, ...]  # of an array: what one job does


def arrays(packs: Sequence[SeedGroup]) -> list[tuple[list[Element], list[Element]]]:
    """Packs as pairs of arrays: element `i` of the second follows element `i` of the first.

    Evaluations of one training, or of the trainings of one pack, are one element. What nothing follows, or what needs
    only things that are there, makes pairs whose second array is empty.
    """
    runs = [run for pack in packs for run in pack]
    own = {run.output_dir for run in runs}
    followers: dict[str, list[SeedGroup]] = {}
    for run in runs:
        if run.needs:
            followers.setdefault(run.needs, []).append((run,))
    first, second, alone = [], [], []
    for pack in packs:
        after = [follower for run in pack for follower in followers.get(run.output_dir, ())]
        if after:
            first.append((pack,))
            second.append(tuple(after))
        elif not pack[0].needs:
            alone.append((pack,))
    alone += [tuple(group) for need, group in followers.items() if need not in own]
    pairs = zip(_parts(first), _parts(second), strict=True)
    return [*pairs, *((part, []) for part in _parts(alone))]


def _parts(items: list) -> list[list]:
    """Lists of at most LARGEST_ARRAY."""
    return [items[start : start + LARGEST_ARRAY] for start in range(0, len(items), LARGEST_ARRAY)]


def submit(
    packs: Sequence[SeedGroup], options: Options, executor: Any = None
) -> list[tuple[Any, tuple[Run, ...], Any]]:
    """Hand the packs to SLURM; returns jobs with their runs, and the job that each of them follows (or None).

    Raises:
        ValueError: submitit is not installed, there is no SLURM here, or a parameter has no such name.
    """
    executor = executor or _executor(options)
    jobs = []
    for first, second in arrays(packs):
        executor.update_parameters(**options.parameters(), slurm_dependency=None)
        leading = _array(executor, first, options.threads)
        jobs += [(job, _runs(element), None) for job, element in zip(leading, first, strict=True)]
        if second:
            kind = "aftercorr" if len(leading) > 1 else "afterok"
            after = f"{kind}:{leading[0].job_id.split('_')[0]}"
            executor.update_parameters(slurm_dependency=after)
            following = _array(executor, second, options.threads)
            jobs += list(zip(following, map(_runs, second), leading, strict=True))
    return jobs


def _runs(element: Element) -> tuple[Run, ...]:
    """All runs of a job."""
    return tuple(run for pack in element for run in pack)


def _array(executor: Any, elements: Sequence[Element], threads: int) -> list[Any]:
    """Jobs of one array, one per element."""
    with executor.batch():
        return [executor.submit(Task(element, threads)) for element in elements]


def _executor(options: Options) -> Any:
    """submitit's executor for SLURM."""
    try:
        import submitit
    except ImportError as error:
        raise ValueError("--launcher slurm needs the package submitit: python -m pip install submitit") from error
    logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns on standard output, where the table goes
    try:
        return submitit.AutoExecutor(folder=os.path.join(options.folder, "%j"), cluster="slurm")
    except RuntimeError as error:
        raise ValueError(f"--launcher slurm: {error}") from error


class Queue:
    """What SLURM's queue says of jobs that end without a word: killed from outside, or with their node.

    submitit learns of these from SLURM's accounting, which not every cluster has.
    """

    def __init__(self):
        self.asked, self.missing = time.monotonic(), set()

    def left_by(self, jobs: set[str]) -> set[str]:
        """Those of the jobs that were not in the queue twice, half a minute apart; nobody if it is not time to ask."""
        if time.monotonic() - self.asked < QUEUE_SECONDS:
            return set()
        line = ["squeue", "--me", "--noheader", "--array", "--format", "%i"]
        answer = subprocess.run(line, capture_output=True, text=True)
        before, self.asked = self.missing, time.monotonic()
        self.missing = jobs - set(answer.stdout.split()) if answer.returncode == 0 else set()
        return self.missing & before


def work(packs: Sequence[SeedGroup], options: Options, tell: Callable[[Run, Message], None]) -> Outcome:
    """Carry out the packs on SLURM and wait for them; jobs are cancelled if the wait is interrupted."""
    jobs = submit(packs, options)
    logger.info("%d jobs in SLURM's queue, logs in %s", len(jobs), options.folder)
    outcome, open_jobs, queue = Outcome(), list(jobs), Queue()
    try:
        while open_jobs:
            time.sleep(POLL_SECONDS)
            gone = queue.left_by({job.job_id for job, _, _ in open_jobs})
            for entry in list(open_jobs):
                job, group, after = entry
                lost = after is not None and all(run.needs in _directories(outcome.failed) for run in group)
                if lost or job.done() or job.job_id in gone:
                    open_jobs.remove(entry)
                    _settle(group, job, lost, outcome, tell)
    finally:
        for job, _, _ in open_jobs:
            job.cancel(check=False)
    return outcome


def _directories(runs: Iterable[Run]) -> set[str]:
    return {run.output_dir for run in runs}


def _settle(group: Sequence[Run], job: Any, lost: bool, outcome: Outcome, tell: Callable[[Run, Message], None]) -> None:
    """Note what became of a job's runs; a job whose need failed is cancelled."""
    if lost:
        job.cancel(check=False)
    for run in group:
        if lost:
            reason = f"not tried: {run.needs} failed"
        elif finished(run):
            reason = ""
        else:
            record = read_run(run.output_dir, place=run.place)
            known = record.problem if record and record.problem not in ("", "unfinished") else "its job ended"
            known = known.removeprefix("failed: ")
            reason = f"{known} (see {job.paths.stderr})"
        if reason:
            outcome.failed[run] = reason
        else:
            outcome.done.append(run)
        tell(run, Message("failed", reason=reason) if reason else Message("done"))
