"""Processes that belong to another one end with it."""

import multiprocessing
import os
import threading
from multiprocessing import connection

from dassl.utils.interruption import leave_signals_to_parent

LOOK_SECONDS = 1.0


def end_with_parent() -> None:
    """From now on end this process soon after the one that started it is gone, however that went.

    To be called once in a process of :mod:`multiprocessing`; what it computes nobody would hear of.
    """
    threading.Thread(target=_await_end_of_parent, name="parent", daemon=True).start()


def _await_end_of_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    direct = os.getppid() == parent.pid  # not so where a server forks in the parent's place
    # processes that were forked later hold the other end of the sentinel of the earlier ones, so it may stay silent
    while not connection.wait([parent.sentinel], timeout=LOOK_SECONDS):
        if direct and os.getppid() != parent.pid:
            break
    os._exit(1)


def start_loader_worker(number: int) -> None:
    """Let worker ``number`` of a loader end with the process that it loads for, and by its signals alone."""
    end_with_parent()
    leave_signals_to_parent()
