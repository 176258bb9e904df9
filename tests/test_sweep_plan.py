"""Plans: every registered trainer in every protocol that it can take part in, with files that exist."""

from pathlib import Path

import pytest

import trainers  # noqa: F401 - registers
from dassl.engine import TRAINER_REGISTRY
from results.layout import BENCHMARKS, IMAGENET_VARIANTS, ZERO_SHOT
from sweep.plan import PROTOCOLS, Setting
from sweep.recipes import ALSO_PARTS, CLASS_BOUND, RECIPES
from sweep.state import requested

OWN = sorted(name for name, kind in TRAINER_REGISTRY if kind.__module__.startswith("trainers."))


@pytest.fixture(autouse=True)
def _in_the_repository(repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)


def _runs(protocol: str, trainer: str, datasets=None, shots=(16,), source="imagenet"):
    made = PROTOCOLS[protocol]
    setting = {"root": "data", "output": "out", "seeds": (1,), "source": source}
    plans = (made.plan(Setting(**setting, shots=n), [trainer], datasets or made.datasets) for n in shots)
    return [run for runs in plans for run in runs]


def test_every_trainer_has_a_recipe():
    assert set(OWN) == set(RECIPES)


@pytest.mark.parametrize("trainer", OWN)
@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_official_recipes(protocol, trainer):
    if protocol == "zeroshot" and not trainer.startswith(ZERO_SHOT):
        with pytest.raises(ValueError, match="learns"):
            _runs(protocol, trainer)
        return
    bound = trainer in CLASS_BOUND and not (protocol == "dg" and trainer in ALSO_PARTS)
    if bound and protocol in ("base2new", "xd", "dg"):
        with pytest.raises(ValueError, match="belongs to its classes"):
            _runs(protocol, trainer)
        return
    made = PROTOCOLS[protocol]
    some = [name for name in ("imagenet", "dtd", "oxford_flowers", "imagenet_r") if name in made.datasets]
    runs = _runs(protocol, trainer, some, made.shots)
    places = {run.output_dir for run in runs}
    assert len(places) == len(runs)
    for run in runs:
        assert not run.needs or run.needs in places
        config = requested(run.argv)
        assert config["TRAINER.NAME"] == trainer
        assert config["MODEL.BACKBONE.NAME"] == "ViT-B/16"


@pytest.mark.parametrize("trainer", OWN)
def test_the_carried_sets_have_configurations_of_their_own(trainer):
    names = ["drawn_thermal", "digits"]
    for run in _runs("fewshot", trainer, names):
        assert requested(run.argv)["MODEL.BACKBONE.NAME"] == "tiny-ViT"
    if trainer not in CLASS_BOUND:
        runs = _runs("xd", trainer, names[1:], source=names[0])
        assert all(requested(run.argv)["MODEL.BACKBONE.NAME"] == "tiny-ViT" for run in runs)


def test_number_of_runs():
    assert len(_runs("base2new", "APEX")) == 2 * len(BENCHMARKS)
    assert len(_runs("xd", "APEX")) == 1 + 10
    assert len(_runs("dg", "APEX")) == 1 + len(IMAGENET_VARIANTS)
    assert len(_runs("fewshot", "CoOp", shots=(1, 2, 4, 8, 16))) == 5 * len(BENCHMARKS)
    assert len(_runs("zeroshot", "ZeroshotCLIP")) == 15


def test_what_recipes_change_for_single_sets():
    cars, pets = _runs("fewshot", "PromptSRC", ["stanford_cars", "oxford_pets"])
    assert requested(cars.argv)["TRAINER.PROMPTSRC.GPA_MEAN"] == 45.0
    assert requested(pets.argv)["TRAINER.PROMPTSRC.GPA_MEAN"] == 30
    flowers, dtd = _runs("fewshot", "TaskRes", ["oxford_flowers", "dtd"])
    assert requested(flowers.argv)["TRAINER.TaskRes.RESIDUAL_SCALE"] == 1.0
    assert requested(dtd.argv)["TRAINER.TaskRes.RESIDUAL_SCALE"] == 0.5


def test_shots_choose_the_configuration():
    names = [Path(run.output_dir).parent.name for run in _runs("fewshot", "CoOp", ["dtd"], (1, 2, 4, 8, 16))]
    assert names == [
        "vit_b16_ep50_1shots",
        "vit_b16_ep100_2shots",
        "vit_b16_ep100_4shots",
        "vit_b16_8shots",
        "vit_b16_16shots",
    ]
