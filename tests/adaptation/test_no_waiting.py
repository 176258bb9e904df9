"""No training step and no evaluation batch of a registered trainer waits for the device; nor do stacked seeds.

On a CPU: the operations that would wait on a GPU are counted. The first step and the first batch compute constants.
"""

from collections.abc import Iterator, Sequence

import conformance
import pytest
from torch import Tensor

import trainers  # noqa: F401 - registers what is in the folder
from adaptation import stacking
from adaptation.trainer import MethodTrainer
from benchmarks.kernels import OperationCounter
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.steps import StepReader
from dassl.evaluation.collector import PredictionCollector

NAMES = [name for name, cls in TRAINER_REGISTRY if issubclass(cls, MethodTrainer)]
STACKED = [name for name in NAMES if conformance.kind(name).learns and conformance.kind(name).supports_stacking]
WITHOUT_STEPS = ("ZeroshotCLIP", "ZeroshotCLIP2", "TipAdapter", "LPPlusPlus", "TipAdapterF")  # or one an epoch
OPTS = {"OPTIM.MAX_EPOCH": "1", "DATASET.NUM_SHOTS": "4", "TRAIN.PRINT_FREQ": "100", "TEST.CACHE_FEATURES": "False"}
OPTS |= {"DATALOADER.TEST.BATCH_SIZE": "2"}


def on_host(runs: Sequence[MethodTrainer]) -> Iterator[Tensor]:
    """What stays on the host where there is a device: steps that an optimiser counts, streams of random numbers."""
    for trainer in runs:
        for state in trainer.optim.state.values() if hasattr(trainer, "optim") else ():
            yield from (value for key, value in state.items() if key == "step")
        yield from (value for name, value in trainer.model.named_buffers() if name.endswith("stream"))


def waits(monkeypatch, owner: object, name: str, runs: Sequence[MethodTrainer]) -> list[list[str]]:
    """A list of what waited in each call of a function of an object, as the calls come."""
    calls: list[list[str]] = []
    function = getattr(owner, name)

    def counted(*arguments):
        with OperationCounter(lambda: on_host(runs)) as counter:
            result = function(*arguments)
        calls.append(counter.synchronisations)
        return result

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize("name", NAMES)
def test_neither_a_step_nor_an_evaluation_batch_waits(name, eurosat_root, tmp_path, monkeypatch):
    trainer = conformance.make(name, eurosat_root, tmp_path, **OPTS)
    step, batch = ("forward_backward", "gradients_to_check"), ("parse_batch_test", "model_inference")
    calls = {own: waits(monkeypatch, trainer, own, [trainer]) for own in (*step, *batch)}
    calls["add"] = waits(monkeypatch, StepReader, "add", [trainer])
    calls["process"] = waits(monkeypatch, trainer.evaluator, "process", [trainer])
    calls["collect"] = waits(monkeypatch, PredictionCollector, "add", [trainer])
    trainer.train()
    if name == "TwoSFS":  # its stages begin
        calls["forward_backward"] = [waited for waited in calls["forward_backward"] if not waited]
    assert {own: [waited for waited in each[1:] if waited] for own, each in calls.items()} == {own: [] for own in calls}
    assert len(calls["process"]) == len(calls["model_inference"]) == len(calls["collect"]) == 3
    assert 0 <= len(calls["add"]) - len(calls["forward_backward"]) <= 2 * (name == "TwoSFS")
    assert len(calls["add"]) >= 4 or name in WITHOUT_STEPS


@pytest.mark.parametrize("name", STACKED)
def test_steps_of_several_seeds_do_not_wait(name, eurosat_root, tmp_path, monkeypatch):
    opts = {**OPTS, "OPTIM.MAX_EPOCH": "2", "TEST.NO_TEST": "True"}
    runs = [conformance.make(name, eurosat_root, tmp_path / f"{seed}", seed=seed, **opts) for seed in (1, 2)]
    calls = waits(monkeypatch, stacking, "stacked_losses", runs)
    assert stacking.run_together([run.train for run in runs]) == [None, None]
    assert len(calls) >= 8 or name in WITHOUT_STEPS
    again = [waited for waited in calls[4:] if waited]  # until then constants were compared
    assert again == [] or (name == "TwoSFS" and len(again) == 1)  # its stages begin
