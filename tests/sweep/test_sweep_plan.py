"""Plans: every registered trainer in every protocol that it can take part in, with files that exist."""

import shutil
from pathlib import Path

import pytest

import trainers  # noqa: F401 - registers
from dassl.config import declared_cfg
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.trainer import SimpleTrainer
from protocols import PROTOCOLS
from protocols.choose import REFERENCE
from results.layout import BENCHMARKS, IMAGENET_VARIANTS
from sweep.method_configs import RULES
from sweep.method_configs import trainer_class as kind
from sweep.plan import SweepConfig
from sweep.state import requested

OWN = sorted(name for name, kind in TRAINER_REGISTRY if kind.__module__.startswith("trainers."))


@pytest.fixture(autouse=True)
def _in_the_repository(repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)


def _runs(protocol: str, trainer: str, datasets=None, shots=(16,), source="imagenet"):
    made = PROTOCOLS[protocol]
    setting = {"root": "data", "output": "out", "seeds": (1,), "source": source}
    plans = (made.plan(SweepConfig(**setting, shots=n), [trainer], datasets or made.datasets) for n in shots)
    return [run for runs in plans for run in runs]


def test_every_trainer_declares_its_configurations(repo_root):
    declared = {path.parent.name for path in (repo_root / "configs/trainers").glob(f"*/{RULES}")}
    assert set(OWN) == declared


@pytest.mark.parametrize("trainer", OWN)
@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_official_recipes(protocol, trainer):
    if protocol == "zeroshot" and kind(trainer).learns:
        with pytest.raises(ValueError, match="learns"):
            _runs(protocol, trainer)
        return
    bound = kind(trainer).class_transfer(declared_cfg()) not in (("any", "subset") if protocol == "dg" else ("any",))
    if bound and protocol in ("base2new", "xd", "dg", "union", "ood"):
        with pytest.raises(ValueError, match="belongs to its classes"):
            _runs(protocol, trainer)
        return
    made = PROTOCOLS[protocol]
    some = [name for name in ("imagenet", "dtd", "oxford_flowers", "imagenet_r") if name in made.datasets]
    runs = _runs(protocol, trainer, some, made.shots)
    places = {run.output_dir for run in runs}
    assert len(places) == len(runs)
    assert trainer in {run.place.trainer for run in runs}
    for run in runs:
        assert not run.needs or run.needs in places
        config = requested(run.argv)
        assert config["TRAINER.NAME"] in (trainer, *([REFERENCE] if protocol == "choose" else []))
        assert config["MODEL.BACKBONE.NAME"] == "ViT-B/16"


@pytest.mark.parametrize("trainer", OWN)
def test_the_carried_sets_have_configurations_of_their_own(trainer):
    names = ["drawn_thermal", "digits"]
    for run in _runs("fewshot", trainer, names):
        assert requested(run.argv)["MODEL.BACKBONE.NAME"] == "tiny-ViT"
    if kind(trainer).class_transfer(declared_cfg()) == "any":
        runs = _runs("xd", trainer, names[1:], source=names[0])
        assert all(requested(run.argv)["MODEL.BACKBONE.NAME"] == "tiny-ViT" for run in runs)


def test_what_trainers_declare_of_themselves():
    assert [name for name in OWN if not kind(name).learns] == ["ZeroshotCLIP", "ZeroshotCLIP2"]
    transfers = {name: kind(name).class_transfer(declared_cfg()) for name in OWN}
    expected = {"TaskRes": "subset", "TipAdapter": "none", "TipAdapterF": "none", "APEX": "any", "CoOp": "any"}
    assert transfers | expected == transfers


@pytest.fixture
def dropped_in(repo_root, tmp_path, monkeypatch):
    """A trainer that nobody has heard of, which learns nothing, with one configuration file in a copy of `configs`."""
    name = "Guessing"
    shutil.copytree(repo_root / "configs", tmp_path / "configs")
    folder = tmp_path / "configs" / "trainers" / name
    folder.mkdir()
    shutil.copy(repo_root / "configs/trainers/CoOp/vit_b16.yaml", folder / "usual.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("commands.names.OWN", tmp_path / "configs")
    monkeypatch.setitem(TRAINER_REGISTRY._objects, name, type(name, (SimpleTrainer,), {"learns": False}))
    return name


def test_a_dropped_in_trainer_says_itself_that_it_learns_nothing(dropped_in):
    zero, new = PROTOCOLS["base2new"].plan(SweepConfig("data", "out", 16, (1, 2, 3)), [dropped_in], ["dtd"])
    assert "--eval-only" in zero.argv
    assert not new.needs
    assert zero.argv[zero.argv.index("--config-file") + 1] == "configs/trainers/Guessing/usual.yaml"
    assert len(_runs("zeroshot", dropped_in, ["dtd"])) == 1


def test_a_dropped_in_trainer_may_be_bound_to_its_classes(dropped_in, monkeypatch):
    monkeypatch.setattr(TRAINER_REGISTRY.get(dropped_in), "class_transfer", lambda cfg: "none")
    with pytest.raises(ValueError, match="Guessing learns belongs to its classes"):
        _runs("base2new", dropped_in, ["dtd"])


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
