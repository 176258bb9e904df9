"""A worker process that needs no heavy import: what it does with a run is said by the run's arguments."""

import os
import time
from pathlib import Path

from sweep.worker import Message


def live(pipe, log: str, threads: int) -> None:
    """Take runs; each leaves a line `worker run` in the file that its second argument names."""
    pipe.send(Message("ready"))
    while (pack := pipe.recv()) is not None:
        for index, run in enumerate(pack):
            deed, journal = run.argv
            with Path(journal).open("a") as file:
                file.write(f"{Path(log).stem} {os.environ['CUDA_VISIBLE_DEVICES'] or '-'} {run.output_dir}\n")
            pipe.send(Message("progress", 0.5, index=index))
            if deed == "die":
                os._exit(7)
            time.sleep(0.2 if deed == "slow" else 0)
            failure = Message("failed", reason="ValueError: no", index=index)
            pipe.send(failure if deed == "fail" else Message("done", index=index))


def die_at_birth(pipe, log: str, threads: int) -> None:
    """End before the first run."""
    os._exit(3)
