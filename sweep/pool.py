"""Packs of runs over worker processes: which worker takes what next, and what happens when one dies or is silent."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection

from dassl.utils.interruption import Interrupted, asked, deferred
from results.records import FAILURE, read_failure
from sweep.heartbeat import Silence
from sweep.plan import Run, SeedGroup
from sweep.state import failed
from sweep.worker import SAVE, Message, WorkerError, serve

LISTEN_SECONDS = 1.0
SAY_SECONDS = 30.0  # after so much silence, and again after as much, it is said
BUSY_SECONDS = 5.0  # until a run that another process is at is looked at again
KILL_SECONDS = 10.0  # a process that is not gone so long after it was killed waits in the system's kernel
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Slot:
    """A place where one worker runs.

    Attributes:
        gpu: value of CUDA_VISIBLE_DEVICES; "" for none.
        threads: CPU threads of a worker.
    """

    gpu: str
    threads: int


@dataclass
class Worker:
    """A worker process as its parent sees it."""

    slot: Slot
    log: str
    process: multiprocessing.process.BaseProcess
    pipe: connection.Connection
    ready: bool = False
    pack: SeedGroup = ()
    open: set[int] = field(default_factory=set)  # places in the pack of the runs that are not over
    last: set[str] = field(default_factory=set)  # directories of the pack that it had before
    silence: Silence = field(default_factory=Silence)
    said: float = 0.0  # seconds of silence that were said


@dataclass
class Outcome:
    """What became of the runs: directories of the complete ones, and reasons for the others."""

    done: list[Run] = field(default_factory=list)
    failed: dict[Run, str] = field(default_factory=dict)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block; a process that is started in it keeps them."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Pool:
    """Worker processes, one per slot, started when there is work for them.

    Args:
        slots: where workers run.
        logs: folder of the workers' logs.
        tell: called with a run and its message (`progress`, `busy`, `silent`, `done`, `failed`).
        life: what a worker process does, with its pipe, its log and its number of threads.
        stall: seconds without a sign of life after which a worker is ended and its runs have failed; 0 for never.
    """

    def __init__(
        self,
        slots: list[Slot],
        logs: str,
        tell: Callable[[Run, Message], None],
        life: Callable[[connection.Connection, str, int], None] = serve,
        stall: float = 0.0,
    ):
        self.slots, self.logs, self.tell, self.life, self.stall = slots, logs, tell, life, stall
        self.workers: dict[int, Worker] = {}  # by slot
        self.later: dict[str, float] = {}  # directories of runs that others are at, and when to look again
        self.listened = time.monotonic()
        self.waiting: list[SeedGroup] = []
        self.outcome = Outcome()

    def work(self, packs: Sequence[SeedGroup]) -> Outcome:
        """Carry out the runs, each after the one that it needs; a run whose need failed is not tried.

        Runs of one pack need nothing, or things that are there together. A need that is not among the runs is taken to
        be there. A run that another process is at is put to the end, until it is complete or free. Ends the workers
        however it ends.

        Raises:
            Interrupted: this process was asked to end; the workers have saved their runs.
        """
        self.waiting, own = list(packs), {run.output_dir for pack in packs for run in pack}
        try:
            with deferred():
                while self.waiting or self._busy():
                    if asked():
                        raise Interrupted(asked(), self._save())
                    self._give_up_on_unmet()
                    self._assign(own)
                    if self.waiting or self._busy():
                        self._listen()
        finally:
            self._end()
        return self.outcome

    def _save(self) -> str:
        """Let the workers save their runs and end; returns where the same line goes on."""
        over = len(self.outcome.done)
        for worker in self._busy():
            if worker.ready and worker.process.pid:
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, SAVE)
            else:
                _kill(worker.process)  # it has not begun
                self._forget(worker)
        count = sum(len(worker.open) for worker in self._busy())
        while self._busy():
            self._listen()
        saved = count - (len(self.outcome.done) - over)
        return f"where {saved} run{'s were' if saved != 1 else ' was'} saved"

    def _busy(self) -> list[Worker]:
        """The workers that have runs."""
        return [worker for worker in self.workers.values() if worker.pack]

    def _give_up_on_unmet(self) -> None:
        """Drop the runs whose need failed, and those that failed in the process that was at them."""
        now = time.monotonic()
        for pack in [pack for pack in self.waiting if self.later.get(pack[0].output_dir, now) < now]:
            _, reason = read_failure(os.path.join(pack[0].output_dir, FAILURE))
            if reason:
                self.waiting.remove(pack)
                self._settle(pack[0], f"{reason} (in the process that was at it)")
        lost = {run.output_dir for run in self.outcome.failed}
        for pack in list(self.waiting):
            unmet = [run for run in pack if run.needs in lost]
            if unmet:
                self.waiting[self.waiting.index(pack)] = tuple(run for run in pack if run not in unmet)
            for run in unmet:
                self._settle(run, f"not tried: {run.needs} failed")
        self.waiting = [pack for pack in self.waiting if pack]

    def _assign(self, own: set[str]) -> None:
        """Give every idle worker a pack, starting workers where slots are free."""
        there, now = {run.output_dir for run in self.outcome.done}, time.monotonic()
        met = [pack for pack in self.waiting if all(run.needs not in own or run.needs in there for run in pack)]
        ready = [pack for pack in met if all(self.later.get(run.output_dir, 0.0) <= now for run in pack)]
        idle = [index for index in range(len(self.slots)) if not (self._at(index) and self._at(index).pack)]
        for index in list(idle):  # first what a worker has trained itself: it may have it in memory
            worker = self._at(index)
            pack = next((pack for pack in ready if worker and pack[0].needs in worker.last), None)
            if pack:
                idle.remove(index)
                ready.remove(pack)
                self._give(index, pack)
        for index, pack in zip(idle, ready, strict=False):
            self._give(index, pack)

    def _at(self, index: int) -> Worker | None:
        """The worker of a slot; None if there is none, or it died with nothing to do."""
        worker = self.workers.get(index)
        return worker if worker and (worker.pack or worker.process.is_alive()) else None

    def _give(self, index: int, pack: SeedGroup) -> None:
        """Send a pack to the worker of a slot, which is started if there is none."""
        worker = self._at(index)
        if worker is None:
            worker = self.workers[index] = self._start(self.slots[index], index)
        self.waiting.remove(pack)
        worker.pack, worker.open, worker.silence, worker.said = pack, set(range(len(pack))), Silence(), 0.0
        with suppress(OSError):  # it died; that is noticed when its pipe is listened to
            worker.pipe.send(pack)

    def _start(self, slot: Slot, index: int) -> Worker:
        """A new worker process."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        log = os.path.join(self.logs, f"worker{index}.log")
        process = context.Process(target=self.life, args=(theirs, log, slot.threads), name=f"worker{index}")
        with _environment({"CUDA_VISIBLE_DEVICES": slot.gpu, **dict.fromkeys(THREADS, str(slot.threads))}):
            process.start()
        theirs.close()
        return Worker(slot, log, process, ours)

    def _listen(self) -> None:
        """Wait for messages, take in what they say, and end workers that have given no sign of life for long."""
        by_pipe = {worker.pipe: worker for worker in self.workers.values() if not worker.pipe.closed}
        if not by_pipe:
            time.sleep(LISTEN_SECONDS)  # only runs of others are left
        for worker in [by_pipe[pipe] for pipe in connection.wait(by_pipe, timeout=LISTEN_SECONDS) if pipe in by_pipe]:
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                self._bury(worker)
            else:
                self._take_in(worker, message)
        now = time.monotonic()
        # time in which this process was itself stopped, or waited for a file, is nobody's silence
        passed, self.listened = min(now - self.listened, 2 * LISTEN_SECONDS), now
        for worker in self._busy():
            self._watch(worker, passed)

    def _take_in(self, worker: Worker, message: Message) -> None:
        """Note what a worker has told."""
        if message.kind == "alive":
            worker.silence.heard(message.fraction)
            return
        worker.silence.end()
        if message.kind == "ready":
            worker.ready = True
            return
        if message.kind == "interrupted":
            self.waiting[:0] = [(worker.pack[index],) for index in sorted(worker.open)]
            worker.pack = ()
            worker.process.join(KILL_SECONDS)
            self._forget(worker)
            return
        run = worker.pack[message.index]
        if message.kind == "progress":
            self.tell(run, message)
            return
        worker.open.remove(message.index)
        if not worker.open:
            worker.last, worker.pack = {run.output_dir for run in worker.pack}, ()
        if message.kind == "busy":
            self._put_off(run, message)
        else:
            self._settle(run, message.reason)

    def _put_off(self, run: Run, message: Message) -> None:
        """Put a run that another process is at to the end."""
        self.later[run.output_dir] = time.monotonic() + BUSY_SECONDS
        self.waiting.append((run,))
        self.tell(run, message)

    def _watch(self, worker: Worker, passed: float) -> None:
        """Let so much more time pass since a worker's last sign of life; say so, and end the worker when it is much."""
        silence = worker.silence
        silence.lasts(passed)
        if silence.seconds < worker.said:
            worker.said = 0.0
        if self.stall and silence.seconds >= self.stall:
            self._end_silent(worker)
        elif silence.seconds >= worker.said + min(SAY_SECONDS, self.stall / 2 or SAY_SECONDS):
            worker.said = silence.seconds
            said = f"{worker.process.name} gives no sign of life for {_span(silence.seconds)}"
            for index in sorted(worker.open):
                self.tell(worker.pack[index], Message("silent", reason=said, index=index))

    def _end_silent(self, worker: Worker) -> None:
        """End a worker that gives no sign of life; its runs have failed, the same line tries them again."""
        lost, worker.pack = [worker.pack[index] for index in sorted(worker.open)], ()
        _kill(worker.process)
        self._forget(worker)
        for run in lost:
            reason = (
                f"its worker process gave no sign of life for {_span(self.stall)} (--stall) and was ended; the same "
                f"line tries it again ({worker.log})"
            )
            self._settle(run, failed(run, reason))

    def _settle(self, run: Run, reason: str) -> None:
        """Note that a run is over."""
        if reason:
            self.outcome.failed[run] = reason
        else:
            self.outcome.done.append(run)
        self.tell(run, Message("failed", reason=reason) if reason else Message("done"))

    def _bury(self, worker: Worker) -> None:
        """A worker died: its run failed; a new worker takes its slot when there is work for it.

        Where it had several runs, those that are not over are tried again, each alone: together they may have been
        more than the machine bears.

        Raises:
            WorkerError: it died before it could take a run.
        """
        worker.process.join()
        self._forget(worker)
        if not worker.pack:
            return
        code = worker.process.exitcode
        if not worker.ready:
            raise WorkerError(f"a worker process ended while starting (exit code {code}); {worker.log} says why")
        lost, several = [worker.pack[index] for index in sorted(worker.open)], len(worker.pack) > 1
        worker.pack = ()
        if several:
            self.waiting[:0] = [(run,) for run in lost]
            return
        self._settle(lost[0], failed(lost[0], f"its worker process died (exit code {code}; {worker.log})"))

    def _forget(self, worker: Worker) -> None:
        """A worker is gone; its slot is free."""
        worker.pipe.close()
        self.workers = {index: other for index, other in self.workers.items() if other is not worker}

    def _end(self) -> None:
        """End all workers; one that is at work (only when the sweep itself is being ended) is stopped at once."""
        for worker in self.workers.values():
            if not worker.pack and worker.process.is_alive():
                with suppress(OSError):
                    worker.pipe.send(None)
            else:
                worker.process.terminate()  # in order, so that its loaders end theirs
        for worker in self.workers.values():
            worker.process.join(KILL_SECONDS)
            if worker.process.is_alive():
                _kill(worker.process)
            worker.pipe.close()


def _span(seconds: float) -> str:
    """A time in words."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    """Kill a process, which may be stopped; one that waits in the kernel is left behind, and not waited for at exit."""
    process.kill()
    process.join(KILL_SECONDS)
    if process.is_alive():
        children = vars(multiprocessing.process)["_children"]
        children.discard(process)
