"""Packs of runs over worker processes: which worker takes what next, and what happens when one dies."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection

from sweep.plan import Run, SeedGroup
from sweep.state import failed
from sweep.worker import Message, WorkerError, serve

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
        tell: called with a run and its message (`progress`, `done`, `failed`).
        life: what a worker process does, with its pipe, its log and its number of threads.
    """

    def __init__(
        self,
        slots: list[Slot],
        logs: str,
        tell: Callable[[Run, Message], None],
        life: Callable[[connection.Connection, str, int], None] = serve,
    ):
        self.slots, self.logs, self.tell, self.life = slots, logs, tell, life
        self.workers: dict[int, Worker] = {}  # by slot
        self.waiting: list[SeedGroup] = []
        self.outcome = Outcome()

    def work(self, packs: Sequence[SeedGroup]) -> Outcome:
        """Carry out the runs, each after the one that it needs; a run whose need failed is not tried.

        Runs of one pack need nothing, or things that are there together. A need that is not among the runs is taken to
        be there. Ends the workers however it ends.
        """
        self.waiting, own = list(packs), {run.output_dir for pack in packs for run in pack}
        try:
            while self.waiting or any(worker.pack for worker in self.workers.values()):
                self._give_up_on_unmet()
                self._assign(own)
                if any(worker.pack for worker in self.workers.values()):
                    self._listen()
        finally:
            self._end()
        return self.outcome

    def _give_up_on_unmet(self) -> None:
        """Drop the runs whose need failed."""
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
        there = {run.output_dir for run in self.outcome.done}
        ready = [pack for pack in self.waiting if all(run.needs not in own or run.needs in there for run in pack)]
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
        worker.pack, worker.open = pack, set(range(len(pack)))
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
        """Wait for messages and take in what they say."""
        busy = {worker.pipe: worker for worker in self.workers.values() if worker.pack}
        for pipe in connection.wait(list(busy), timeout=1.0):
            worker = busy[pipe]
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if message.kind == "ready":
                worker.ready = True
            elif message.kind == "progress":
                self.tell(worker.pack[message.index], message)
            else:
                run = worker.pack[message.index]
                worker.open.remove(message.index)
                if not worker.open:
                    worker.last, worker.pack = {run.output_dir for run in worker.pack}, ()
                self._settle(run, message.reason)

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
        worker.pipe.close()
        code = worker.process.exitcode
        if not worker.ready:
            raise WorkerError(f"a worker process ended while starting (exit code {code}); {worker.log} says why")
        lost, several = [worker.pack[index] for index in sorted(worker.open)], len(worker.pack) > 1
        worker.pack = ()
        if several:
            self.waiting[:0] = [(run,) for run in lost]
            return
        reason = f"its worker process died (exit code {code}; {worker.log})"
        failed(lost[0], reason)
        self._settle(lost[0], reason)

    def _end(self) -> None:
        """End all workers; one that is at work (only when the sweep itself is being ended) is stopped at once."""
        for worker in self.workers.values():
            if not worker.pack and worker.process.is_alive():
                worker.pipe.send(None)
            else:
                worker.process.terminate()
        for worker in self.workers.values():
            worker.process.join()
            worker.pipe.close()
