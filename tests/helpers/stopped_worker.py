"""A worker of a sweep, as far as it holds semaphores, is ended by its parent while it works."""

import multiprocessing
import signal
import time

from sweep.worker import end_in_order


def work(ready) -> None:
    """Hold semaphores, as loaders with processes do, until the parent ends this."""
    signal.signal(signal.SIGTERM, end_in_order)
    queue = multiprocessing.get_context("spawn").Queue()
    ready.send(queue is not None)
    time.sleep(60)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,))
    process.start()
    assert ours.recv()
    process.terminate()
    process.join()
    raise SystemExit(process.exitcode)
