"""Seeds computed together end where they end alone, and what happens to one does not touch the others."""

import logging
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import conformance
import pytest
import torch
from small_methods import BASE, batch, small_vit

import datasets  # noqa: F401 - registers what is in the folder
import train
from adaptation import stacking
from adaptation.stacking import RunBatcher, run_together
from adaptation.trainer import MethodTrainer
from clip import backbone
from clip.precision import CPU, Precision
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import load_checkpoint, set_random_seed
from dassl.utils.checkpoints import last_checkpoint
from dassl.utils.digests import content_digest
from dassl.utils.interruption import Interrupted, interruptible
from sweep.method_configs import config_of
from trainers.apex import APEXMethod

LEARN = [
    name
    for name, cls in TRAINER_REGISTRY
    if issubclass(cls, MethodTrainer) and cls.__module__ != "toys" and cls.learns and cls.supports_stacking
]
SEEDS = (1, 2, 3)
# Steps that jump with the sign of a number that is rounding alone: those of an L1 distance, Adam's where a gradient is
# rounding, as that of a bias of keys, which no attention depends on
FROM_ROUNDING = {"TaskRes": 1e-3, "PromptSRC": 1e-3, "BitFit": 1e-3}


def learned(trainer: MethodTrainer) -> torch.Tensor:
    """All that a run has learned, as one vector."""
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def distance(one: MethodTrainer, other: MethodTrainer) -> float:
    """How far what two runs have learned is apart, relative to its length."""
    x, y = learned(one), learned(other)
    return (torch.linalg.norm(x - y) / torch.linalg.norm(x)).item()


def by_recipe(name: str, seed: int, root: Path, out: Path) -> MethodTrainer:
    """The trainer of the carried recipe, with fewer epochs."""
    argv = ["--root", str(root), "--seed", str(seed), "--trainer", name, "--output-dir", str(out)]
    argv += ["--config-file", f"configs/trainers/{config_of(name, 'all', 'drawn_easy', 4)}.yaml"]
    argv += ["--dataset-config-file", "configs/datasets/drawn_easy.yaml", "DATASET.NUM_SHOTS", "4"]
    argv += ["DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "3"]
    argv += ["DATALOADER.TRAIN_X.BATCH_SIZE", "8", "TEST.NO_TEST", "True"]
    argv += ["TRAINER.CLIP_LORA.N_ITERS", "0", f"TRAINER.{TRAINER_REGISTRY.get(name).config_node}.PREC", "fp32"]
    return build_trainer(train.build_config(train.build_parser().parse_args(argv)))


@pytest.mark.parametrize("name", LEARN)
def test_runs_of_the_recipes(name, drawn_root, tmp_path, repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)
    alone, together = (
        [by_recipe(name, seed, drawn_root, tmp_path / f"{how}{seed}") for seed in SEEDS]
        for how in ("alone", "together")
    )
    for trainer in alone:
        trainer.train()
    assert run_together([trainer.train for trainer in together]) == [None] * len(SEEDS)
    for one, other in zip(alone, together, strict=True):
        assert distance(one, other) <= FROM_ROUNDING.get(name, 1e-5)
        assert torch.equal(conformance.logits(one).argmax(dim=1), conformance.logits(other).argmax(dim=1))
    assert distance(alone[0], alone[1]) > 1e-4  # seeds differ


def test_no_step_is_computed_without_runs_that_were_ended_while_they_started(eurosat_root, tmp_path):
    trainer = conformance.make("CoOp", eurosat_root, tmp_path / "run")

    def ends():
        os.kill(os.getpid(), signal.SIGTERM)

    with interruptible(), pytest.raises(Interrupted):
        run_together([trainer.train, ends])
    assert not trainer.stacking
    assert not list((tmp_path / "run").rglob("*.pth.tar*"))


def checkpoint_of(trainer: MethodTrainer) -> dict:
    """The last checkpoint of a run, without what a clock says."""
    state = load_checkpoint(last_checkpoint(str(Path(trainer.output_dir) / trainer.checkpoint_dir)))
    for key in ("random", "train_seconds"):  # runs in one process do not draw from the global generators
        del state["progress"][key]
    del state["digest"], state["config"]
    return state


@pytest.mark.parametrize("name", ["CoOp", "APEX", "PromptSRC", "TaskRes"])
def test_seeds_go_on_exactly_wherever_they_stand(name, drawn_root, tmp_path, repo_root, monkeypatch):
    """One is where it was ended, one a step before that, one at its start, one is over."""
    monkeypatch.chdir(repo_root)
    seeds = (1, 2, 3, 4)

    def runs(how: str) -> list[MethodTrainer]:
        made = [by_recipe(name, seed, drawn_root, tmp_path / f"{how}{seed}") for seed in seeds]
        for trainer in made:
            trainer.cfg.defrost()
            trainer.cfg.TRAIN.CHECKPOINT_MINUTES = 1e-9
        return made

    whole, cut = runs("whole"), runs("cut")
    assert run_together([trainer.train for trainer in whole]) == [None] * 4
    usual = cut[1].forward_backward

    def ask(batch):
        if (cut[1].epoch, cut[1].batch_idx) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(batch)

    cut[1].forward_backward = ask
    with interruptible(), pytest.raises(Interrupted, match="goes on from where each run was saved"):
        run_together([trainer.train for trainer in cut])
    folders = [tmp_path / f"cut{seed}" for seed in seeds]
    (folders[1] / cut[1].checkpoint_dir / "interim.pth.tar-1.2").unlink()
    shutil.rmtree(folders[2])
    shutil.rmtree(folders[3])
    shutil.copytree(tmp_path / "whole4", folders[3])
    again = runs("cut")
    assert run_together([trainer.train for trainer in again]) == [None] * 4
    for one, other in zip(whole, again, strict=True):
        assert content_digest(checkpoint_of(one)) == content_digest(checkpoint_of(other))


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # every step of one seed is skipped
def test_an_overflow_skips_the_step_of_its_own_seed_only(eurosat_root, tmp_path):
    def make(folder: str, seed: int, scale: float):
        trainer = conformance.make("APEX", eurosat_root, tmp_path / folder, seed=seed, **{"OPTIM.NAME": "sgd"})
        trainer.precision.scaler = torch.amp.GradScaler(CPU.type, init_scale=scale)
        return trainer

    alone, first, second = make("a", 1, 256.0), make("b", 1, 256.0), make("c", 2, float("inf"))
    start = learned(second)
    alone.train()
    assert run_together([first.train, second.train]) == [None, None]
    assert distance(alone, first) <= 1e-5
    assert torch.equal(learned(second), start)


def test_a_diverged_seed_ends_alone(eurosat_root, tmp_path):
    rates = {1: "0.01", 2: "1e30", 3: "0.01"}
    together = [
        conformance.make(
            "CoOp", eurosat_root, tmp_path / f"{seed}", seed=seed, **{"OPTIM.MAX_EPOCH": "3", "OPTIM.LR": rate}
        )
        for seed, rate in rates.items()
    ]
    one, two, three = run_together([trainer.train for trainer in together])
    assert one is three is None
    assert isinstance(two, FloatingPointError)
    assert together[2].model_epoch == 3


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", ["CoOp", "MMA", "FullFineTuning"])
def test_a_step_without_memory_is_computed_in_smaller_chunks(name, together, eurosat_root, tmp_path, caplog):
    opts = {"OPTIM.NAME": "sgd", "OPTIM.LR": "0.01", "DATALOADER.TRAIN_X.BATCH_SIZE": "4", "TRAIN.MEMORY_GB": "0.05"}
    usual, short = (conformance.make(name, eurosat_root, tmp_path / folder, **opts) for folder in ("usual", "short"))
    usual.train()
    own, loss = short.backbone.model, short.model.loss

    def needs_much(images, labels):
        found = loss(images, labels)
        if not any(copy.is_chunked for copy in backbone._living if copy.model is own):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found

    short.model.loss = needs_much
    logging.getLogger("adaptation").propagate = True
    with caplog.at_level(logging.WARNING, "adaptation"):
        assert run_together([short.train]) == [None] if together else short.train() is None
    assert "Out of memory: the activations of a step may take" in caplog.text
    assert distance(usual, short) <= 1e-5
    short.model.loss = lambda images, labels: _no_memory()
    with pytest.raises(torch.OutOfMemoryError):
        short.compute_gradients(*short.parse_batch_train(next(iter(short.train_loader_x))))


def _no_memory():
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_runs_on_the_global_generators_take_no_turns(eurosat_root, tmp_path):
    """They would share them: each is carried out whole, and learns what it learns alone."""

    def body(folder: str, seed: int):
        def go() -> MethodTrainer:
            set_random_seed(seed)
            opts = {"DATALOADER.RANDOM_STREAMS": "global", "OPTIM.MAX_EPOCH": "2"}
            trainer = conformance.make("CoOp", eurosat_root, tmp_path / f"{folder}{seed}", seed=seed, **opts)
            trainer.train()
            return trainer

        return go

    alone = [body("alone", seed)() for seed in (1, 2)]
    together = run_together([body("together", seed) for seed in (1, 2)])
    for one, other in zip(alone, together, strict=True):
        assert not other.supports_stacking
        assert torch.equal(learned(one), learned(other))


def requests(count: int) -> list:
    """Steps of so many runs on a small backbone."""
    backbone = small_vit()
    shared = {"precision": Precision("fp32", CPU), "backbone": backbone}
    methods = [APEXMethod(backbone, BASE).train() for _ in range(count)]
    own = {"backward": torch.Tensor.backward, "stacking": {}, "cfg": SimpleNamespace(SEED=1)}
    made = [SimpleNamespace(**shared, **own, model=method) for method in methods]
    return [(trainer, *batch(trainer.model)) for trainer in made]


def test_what_fails_together_is_tried_in_smaller_packs(monkeypatch, caplog):
    usual, sizes = stacking._mapped_losses, []

    def short_of_memory(steps, same):
        sizes.append(len(steps))
        if len(steps) > 2:
            raise torch.OutOfMemoryError("out of memory\nTried to allocate")
        return usual(steps, same)

    monkeypatch.setattr(stacking, "_mapped_losses", short_of_memory)
    packing, steps = RunBatcher(), requests(6)
    with caplog.at_level(logging.WARNING, "adaptation"):
        answers = packing.outputs("step", steps)
    assert all(torch.isfinite(loss) for loss, _ in answers)
    assert sizes == [6, 3, 3]  # and then each alone
    assert "6 runs could not be computed together (out of memory): trying 3 at a time" in caplog.text
    sizes.clear()
    packing.outputs("step", steps)
    assert sizes == []


def test_a_step_that_cannot_be_computed_is_its_own_runs_failure(monkeypatch):
    usual = stacking.stacked_losses
    steps = requests(4)
    guilty = steps[2][0]

    def fails(some, same):
        if any(trainer is guilty for trainer, *_ in some):
            raise ValueError("no")
        return usual(some, same)

    monkeypatch.setattr(stacking, "stacked_losses", fails)
    answers = RunBatcher().outputs("step", steps)
    assert [isinstance(answer, ValueError) for answer in answers] == [False, False, True, False]
    methods = [trainer.model for trainer, *_ in steps if trainer is not guilty]
    assert all(p.grad.abs().sum() > 0 for method in methods for p in method.context.parameters())
