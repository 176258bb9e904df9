"""The pool: dependencies, failures, dead workers, slots."""

import json
from pathlib import Path

import pytest
from sweep_stub import die_at_birth, live

from results.layout import RunDirectory
from sweep.plan import Run
from sweep.pool import Pool, Slot, WorkerError

PLACE = RunDirectory("base", "dtd", "APEX", "c", 16, 1)


class Made:
    """Runs in a folder, and what workers did with them."""

    def __init__(self, folder: Path):
        self.folder, self.journal, self.told = folder, folder / "journal", []

    def run(self, name: str, deed: str = "do", needs: Run | None = None) -> Run:
        directory = str(self.folder / name)
        return Run(PLACE, (deed, str(self.journal)), directory, needs.output_dir if needs else "")

    def work(self, runs, slots=1, life=live):
        places = [Slot("", 1)] * slots if isinstance(slots, int) else slots
        pool = Pool(places, str(self.folder / "logs"), lambda run, message: self.told.append((run, message.kind)), life)
        return pool.work([run if isinstance(run, tuple) else (run,) for run in runs])

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.journal.read_text().splitlines()]


@pytest.fixture
def made(tmp_path):
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
