"""The pool: dependencies, failures, dead workers, slots."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_stub import die_at_birth, fork_workers, live

from dassl.utils import write_json
from dassl.utils.interruption import SIGNALS, Interrupted, interruptible
from results.layout import RunDirectory
from sweep.heartbeat import Silence, cpu_seconds
from sweep.plan import Run
from sweep.pool import Pool, Slot, WorkerError

PLACE = RunDirectory("base", "dtd", "APEX", "c", 16, 1)


class Made:
    """Runs in a folder, and what workers did with them."""

    def __init__(self, folder: Path):
        self.folder, self.journal, self.told, self.said = folder, folder / "journal", [], []

    def run(self, name: str, deed: str = "do", needs: Run | None = None) -> Run:
        directory = str(self.folder / name)
        return Run(PLACE, (deed, str(self.journal)), directory, needs.output_dir if needs else "")

    def work(self, runs, slots=1, life=live, stall=0.0):
        places = [Slot("", 1)] * slots if isinstance(slots, int) else slots
        pool = Pool(places, str(self.folder / "logs"), self.hear, life, stall)
        return pool.work([run if isinstance(run, tuple) else (run,) for run in runs])

    def hear(self, run, message):
        self.told.append((run, message.kind))
        if message.kind == "silent":
            self.said.append(message.reason)

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.journal.read_text().splitlines()]


@pytest.fixture
def made(tmp_path, monkeypatch):
    fork_workers(monkeypatch)
    return Made(tmp_path)


def test_a_worker_goes_on_with_what_it_trained(made):
    trained = [made.run(f"train{i}", "slow") for i in range(2)]
    tests = [made.run(f"test{i}", needs=trained[i]) for i in range(2)]
    outcome = made.work([*trained, *tests], slots=2)
    assert set(outcome.done) == {*trained, *tests}
    worker = {Path(directory).name: name for name, _, directory in made.lines()}
    assert worker["train0"] == worker["test0"]
    assert worker["train1"] == worker["test1"]
    assert [kind for run, kind in made.told if run == tests[0]] == ["progress", "done"]


def test_nothing_runs_before_what_it_needs(made):
    train = made.run("train", "slow")
    tests = [made.run(f"test{i}", needs=train) for i in range(3)]
    made.work([*reversed(tests), train], slots=2)
    assert Path(made.lines()[0][2]).name == "train"


def test_a_need_that_is_not_among_the_runs_is_there(made):
    test = made.run("test", needs=made.run("train"))
    assert made.work([test]).done == [test]


def test_failures_are_named_and_the_rest_goes_on(made):
    bad, good = made.run("bad", "fail"), made.run("good")
    bad_test, good_test = made.run("bad_test", needs=bad), made.run("good_test", needs=good)
    outcome = made.work([bad, bad_test, good, good_test])
    assert outcome.done == [good, good_test]
    assert outcome.failed == {bad: "ValueError: no", bad_test: f"not tried: {bad.output_dir} failed"}


def test_a_dead_worker_fails_its_run_and_is_replaced(made):
    dying, good = made.run("dying", "die"), made.run("good")
    outcome = made.work([dying, good])
    assert outcome.done == [good]
    assert "exit code 7" in outcome.failed[dying]
    assert "exit code 7" in json.loads(Path(dying.output_dir, "failed.json").read_text())["reason"]


def test_a_pack_is_one_workers_and_its_runs_end_one_by_one(made):
    pack = (made.run("one"), made.run("two", "fail"), made.run("three"))
    tests = [made.run(f"test_{Path(run.output_dir).name}", needs=run) for run in pack]
    outcome = made.work([pack, *tests], slots=2)
    assert outcome.done[:2] == [pack[0], pack[2]]
    assert set(outcome.done) == {pack[0], pack[2], tests[0], tests[2]}
    assert set(outcome.failed) == {pack[1], tests[1]}
    assert len({name for name, _, directory in made.lines() if Path(directory).name in ("one", "two", "three")}) == 1


def test_what_a_dead_worker_leaves_of_a_pack_is_tried_alone(made):
    pack = (made.run("one"), made.run("dying", "die"), made.run("three"))
    outcome = made.work([pack])
    assert set(outcome.done) == {pack[0], pack[2]}
    assert "exit code 7" in outcome.failed[pack[1]]
    names = [Path(directory).name for *_, directory in made.lines()]
    assert names == ["one", "dying", "dying", "three"]


def test_workers_that_cannot_start_end_the_sweep(made):
    with pytest.raises(WorkerError, match=r"exit code 3.*worker0.log says why"):
        made.work([made.run("a"), made.run("b")], life=die_at_birth)


def test_slots_and_workers(made):
    runs = [made.run(str(i), "slow") for i in range(4)]
    made.work(runs, slots=[Slot("0", 1), Slot("1", 1), Slot("", 1)])
    assert {(name, gpu) for name, gpu, _ in made.lines()} == {("worker0", "0"), ("worker1", "1"), ("worker2", "-")}


def test_no_more_workers_than_runs(made):
    made.work([made.run("a")], slots=5)
    assert len(made.lines()) == 1


def test_an_interrupt_ends_the_workers_at_once(made):
    def interrupted(run, message):
        raise KeyboardInterrupt

    pool = Pool([Slot("", 1)], str(made.folder), interrupted, live)
    with pytest.raises(KeyboardInterrupt):
        pool.work([(made.run("a", "slow"),), (made.run("b"),)])
    assert not any(worker.process.is_alive() for worker in pool.workers.values())
    assert len(made.lines()) == 1


@pytest.mark.parametrize("deed", ["stop", "hang"])
def test_a_worker_without_a_sign_of_life_is_ended_and_the_rest_goes_on(made, deed):
    """One is stopped and sends nothing; the other sends beats, but computes nothing, as where a file system hangs."""
    silent, good = made.run("silent", deed), made.run("good")
    test = made.run("test", needs=silent)
    outcome = made.work([silent, test, good], stall=3.0)
    assert outcome.done == [good]
    assert (
        "gave no sign of life for 3 s (--stall) and was ended; the same line tries it again" in outcome.failed[silent]
    )
    assert outcome.failed[test].startswith("not tried")
    assert "no sign of life" in json.loads(Path(silent.output_dir, "failed.json").read_text())["reason"]
    assert made.said
    assert all(text.startswith("worker0 gives no sign of life for ") for text in made.said)


def test_a_long_step_is_no_silence(made):
    """It says nothing for longer than the limit, but computes."""
    long = made.run("long", "compute")
    assert made.work([long], stall=3.0).done == [long]


def test_without_a_limit_a_silent_worker_is_waited_for(made, monkeypatch):
    monkeypatch.setattr("sweep.pool.SAY_SECONDS", 1.0)
    monkeypatch.setattr("sweep.pool.KILL_SECONDS", 1.0)

    def said(run, message):
        if message.kind == "silent":
            raise KeyboardInterrupt

    pool = Pool([Slot("", 1)], str(made.folder), said, live)
    with pytest.raises(KeyboardInterrupt):
        pool.work([(made.run("silent", "stop"),)])
    assert not any(worker.process.is_alive() for worker in pool.workers.values()), "a stopped process outlived the end"


def test_time_in_which_the_parent_was_stopped_is_no_silence(made, monkeypatch):
    """As after Ctrl-Z and fg: both had been stopped, and the worker goes on."""
    pool = Pool([Slot("", 1)], str(made.folder), made.hear, live, stall=60.0)
    listen = pool._listen

    def late():
        pool.listened -= 3600
        listen()

    monkeypatch.setattr(pool, "_listen", late)
    run = made.run("a", "slow")
    assert pool.work([(run,)]).done == [run]


def test_a_run_of_others_is_put_to_the_end_and_looked_at_again(made, monkeypatch):
    monkeypatch.setattr("sweep.pool.BUSY_SECONDS", 0.3)
    busy, good = made.run("busy", "busy"), made.run("good", "slow")
    test = made.run("test", needs=busy)
    free = Path(f"{busy.output_dir}.free")

    def hear(run, message):
        made.hear(run, message)
        if run == good and message.kind == "done":
            free.touch()

    pool = Pool([Slot("", 1)], str(made.folder / "logs"), hear, live)
    assert pool.work([(busy,), (test,), (good,)]).done == [good, busy, test]
    kinds = [kind for run, kind in made.told if run == busy]
    assert kinds[:2] == ["progress", "busy"]
    assert kinds[-1] == "done"


def test_what_failed_in_the_process_that_was_at_it_has_failed(made, monkeypatch):
    monkeypatch.setattr("sweep.pool.BUSY_SECONDS", 0.3)
    busy = made.run("busy", "busy")

    def hear(run, message):
        if message.kind == "busy":
            write_json({"reason": "ValueError: there"}, str(Path(run.output_dir) / "failed.json"))

    pool = Pool([Slot("", 1)], str(made.folder / "logs"), hear, live)
    assert pool.work([(busy,)]).failed == {busy: "ValueError: there (in the process that was at it)"}
    assert len(made.lines()) == 1


def test_of_a_pack_only_the_runs_of_others_are_put_off(made, monkeypatch):
    monkeypatch.setattr("sweep.pool.BUSY_SECONDS", 0.3)
    pack = (made.run("one"), made.run("busy", "busy"), made.run("three"))
    Path(f"{pack[1].output_dir}.free").parent.mkdir(exist_ok=True)

    def hear(run, message):
        if message.kind == "busy":
            Path(f"{run.output_dir}.free").touch()

    pool = Pool([Slot("", 1)], str(made.folder / "logs"), hear, live)
    assert pool.work([pack]).done == [pack[0], pack[2], pack[1]]


def test_signs_of_life():
    """Beats count where processors were used, by more than threads use that only wait."""
    silence = Silence()
    silence.heard(5.0)
    silence.lasts(60.0)
    silence.heard(5.05)
    assert silence.seconds == 60.0
    silence.heard(5.2)
    assert silence.seconds == 0.0
    silence.lasts(1000.0)
    silence.heard(5.9)
    assert silence.seconds == 1000.0, "a thousandth of the time is the least"
    silence.heard(6.3)
    assert silence.seconds == 0.0
    silence.lasts(7.0)
    silence.heard(1.0)
    assert silence.seconds == 0.0, "a loader's worker that had used much has ended"
    silence.lasts(7.0)
    silence.end()
    assert silence.seconds == 0.0


def test_what_children_use_counts():
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before = cpu_seconds()
        deadline = time.monotonic() + 60
        while cpu_seconds() < before + 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_passed_on_to_the_workers_which_save(made, number):
    """The same runs again are then carried out; what had not begun is not begun."""
    first, second = made.run("first", "hang"), made.run("second")

    def hear(run, message):
        made.hear(run, message)
        os.kill(os.getpid(), number)

    heeded = signal.signal(number, signal.SIG_DFL)  # a shell may have started the tests with signals ignored
    pool = Pool([Slot("", 1)], str(made.folder), hear, live)
    try:
        with interruptible(), pytest.raises(Interrupted, match=r"goes on from where 1 run was saved") as caught:
            pool.work([(first,), (second,)])
    finally:
        signal.signal(number, heeded)
    assert caught.value.number == number
    assert [Path(directory).name for *_, directory in made.lines()] == ["first"]
    assert pool.outcome.failed == {}
    assert not Path(first.output_dir, "failed.json").exists()
    assert not any(worker.process.is_alive() for worker in pool.workers.values())


def test_a_run_whose_worker_was_asked_to_end_is_continued(made):
    """As where somebody ends a worker process alone."""
    pack, good = (made.run("one"), made.run("two", "interrupted"), made.run("three")), made.run("good")
    outcome = made.work([pack, good])
    assert set(outcome.done) == {*pack, good}
    assert outcome.failed == {}
