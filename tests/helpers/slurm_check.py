"""Run under scripts/dev/slurm_local.sh: what SLURM does with preempted and with failed trainings.

Arguments: the folders of data and output. Prints a JSON object.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from protocols.base2new import plan as base2new
from sweep import slurm
from sweep.plan import SweepConfig


def wait_for(condition, seconds: float = 400.0) -> None:
    """Wait until a condition holds; TimeoutError if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(condition)
        time.sleep(0.05)


def preempted(data: str, output: str) -> dict:
    """A training is preempted after its first checkpoint; SLURM starts it again, then what follows it."""
    opts = ("OPTIM.MAX_EPOCH", "6", "TRAIN.CHECKPOINT_FREQ", "1")
    setting = SweepConfig(root=data, output=output, shots=16, seeds=(1,), opts=opts)
    train, test = base2new(setting, ["CoOp"], ["drawn_thermal"])
    jobs = slurm.submit([(train,), (test,)], slurm.Options(folder=f"{output}/logs/slurm"))
    job = jobs[0][0]
    first = Path(train.output_dir, "prompt_learner", "model.pth.tar-1")
    wait_for(lambda: first.exists() or job.done())
    job._interrupt()
    show = ["squeue", "--noheader", "--format", "%r", "--job", job.job_id]
    wait_for(lambda: "BeginTime" in subprocess.run(show, capture_output=True, text=True, check=True).stdout)
    soon = "StartTime=now+5"  # not in two minutes, nor within the second in which the node was told to refuse this job
    subprocess.run(["scontrol", "update", f"JobId={job.job_id}", soon], check=True)
    for entry in jobs:
        entry[0].result()
    logs = [log.read_text() for log in Path(train.output_dir).glob("log.txt*")]
    return {
        "starts": len(logs),
        "resumed": sum("will resume training" in log for log in logs),
        "tested": Path(test.output_dir, "metrics.json").exists(),
        "epochs": len(json.loads(Path(train.output_dir, "metrics.json").read_text())["history"]),
    }


def failed(data: str, output: str) -> dict:
    """One of two trainings fails: what follows it is not tried, the other is complete."""
    from sweep import cli

    broken = Path(output, "base2new/train_base/drawn_thermal/shots_16/CoOp/tiny_vit_ep50_ctxv1/seed2/prompt_learner")
    broken.parent.mkdir(parents=True)
    broken.write_text("a file where the folder of checkpoints should be")
    words = ["base2new", "--launcher", "slurm", "--trainers", "CoOp", "--datasets", "drawn_thermal", "--seeds", "1-2"]
    status = cli.main([*words, "--root", data, "--output", output, "OPTIM.MAX_EPOCH", "1"])
    queue = subprocess.run(
        ["squeue", "--noheader", "--states", "PENDING"], capture_output=True, text=True, check=True
    ).stdout
    return {"status": status, "queue": queue.strip()}


if __name__ == "__main__":
    data, output = sys.argv[1:]
    answers = {"preempted": preempted(data, f"{output}/a"), "failed": failed(data, f"{output}/b")}
    Path(output, "answers.json").write_text(json.dumps(answers))
