"""A worker of a sweep, as far as it holds semaphores, is ended by its parent while it works."""

import multiprocessing
import signal
import time
from contextlib import suppress

from sweep.worker import SAVE


def work(ready) -> None:
    """Hold semaphores, as loaders with processes do, until the parent ends this."""
    from dassl.utils.interruption import Interrupted, interruptible

    with suppress(Interrupted), interruptible((signal.SIGTERM, SAVE)):
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
