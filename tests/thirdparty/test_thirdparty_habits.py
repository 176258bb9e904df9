"""What single repositories do beside the common surface: one small test each, which touches exactly what they touch."""

# ruff: noqa: B020 - `for self.batch_idx, ... in enumerate(self.train_loader_x)` is how such code writes its loops

import copy
import os
import time

import pytest
import torch
from clip_models import VIT, random_state
from dassl_toys import CLASSES, PER_CLASS, SIDE, ToyTrainer, draw_samples, toy_config
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dassl.config import clean_cfg, get_cfg_default
from dassl.data import DatasetWrapper
from dassl.data.datasets import DatasetBase
from dassl.data.samplers import build_sampler
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerX, build_trainer
from dassl.engine.trainer import AverageMeter, MetricMeter, SummaryWriter
from dassl.engine.trainer import TrainerX as TrainerOfModule
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.radam import RAdam
from dassl.utils import load_checkpoint


def make(monkeypatch, folder, kind, **keys):
    """The trainer of a class, on the toy data."""
    cfg = toy_config(monkeypatch, folder, kind.__name__, **keys)
    monkeypatch.setitem(TRAINER_REGISTRY._objects, kind.__name__, kind)
    cfg.freeze()
    return build_trainer(cfg)


def accuracy_lines(capsys):
    return capsys.readouterr().out.count("* accuracy:")


# DePT


class DePT(TrainerOfModule):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.seen = []

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, self.num_classes))
        groups = [{"params": [self.model[1].weight], "lr": 0.01}, {"params": [self.model[1].bias]}]
        self.optim = RAdam(groups, lr=self.cfg.OPTIM.LR * self.cfg.OPTIM.LR_EXP, weight_decay=5e-4, betas=(0.9, 0.999))
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("PromptLearner", self.model, self.optim, self.sched)

    def run_epoch(self):
        self.set_model_mode("train")
        losses, batch_time = MetricMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        end = time.time()
        for self.batch_idx, batch in enumerate(self.train_loader_x):
            losses.update(self.forward_backward(batch))
            batch_time.update(time.time() - end)
            step = self.epoch * self.num_batches + self.batch_idx
            for name, meter in losses.meters.items():
                self.write_scalar("train/" + name, meter.avg, step)
            self.write_scalar("train/lr", self.get_current_lr(), step)
            end = time.time()
        self.seen.append((self.epoch, self.max_epoch, str(losses)))

    forward_backward = ToyTrainer.forward_backward
    loss = ToyTrainer.loss


def test_dept(tmp_path, monkeypatch):
    """Names of the module `dassl.engine.trainer`, an epoch of its own, `clean_cfg` before the keys are declared."""
    cfg = get_cfg_default()
    clean_cfg(cfg, "COOP")
    assert set(cfg.TRAINER) == {"NAME"}
    cfg = toy_config(monkeypatch, tmp_path, "DePT")
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "DePT", DePT)
    cfg.OPTIM.LR_EXP = 2.0
    trainer = build_trainer(cfg)
    trainer.train()
    assert [row[:2] for row in trainer.seen] == [(0, 2), (1, 2)]
    assert "loss " in trainer.seen[0][2]
    writer = SummaryWriter(log_dir=str(tmp_path / "own"))
    writer.add_scalar("a", 1.0, 1)
    writer.close()
    batch = next(iter(trainer.val_loader))
    images, labels = trainer.parse_batch_test(batch)
    assert trainer.model_inference(images).shape == (len(labels), trainer.dm.num_classes)


# CLAP


class CLAP(SimpleTrainer):
    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, self.num_classes))
        self.cfg.OPTIM["LR"] = 0.01
        for name in ("first", "adapter"):
            optim = build_optimizer(self.model, self.cfg.OPTIM)
            self.register_model(name, self.model, optim, build_lr_scheduler(optim, self.cfg.OPTIM))
        for table in (self._models, self._optims, self._scheds):
            assert table.popitem()[0] == "adapter"

    def train(self):
        self.before_train()
        loader = copy.deepcopy(self.train_loader_x)
        loader.dataset.transform = self.test_loader.dataset.transform
        self.loader = DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            num_workers=loader.num_workers,
            drop_last=False,
            pin_memory=loader.pin_memory,
        )
        self.epoch = -1
        self.after_epoch()  # saves nothing
        assert not os.path.exists(os.path.join(self.output_dir, "first"))
        for self.epoch in range(self.start_epoch, self.max_epoch):
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def run_epoch(self):
        self.set_model_mode("train")
        meter = MetricMeter()
        self.num_batches = len(self.loader)
        for self.batch_idx, batch in enumerate(self.loader):
            images, labels = self.parse_batch_test(batch)
            output = self.model(images)
            loss = F.cross_entropy(output, labels)
            self.model_backward_and_update(loss)
            if (self.batch_idx + 1) == self.num_batches:
                self.update_lr()
            meter.update({"loss": loss.item(), "acc_train": compute_accuracy(output, labels)[0].item()})
        self.last = meter

    def after_train(self):
        print("Finish training")
        self.test()
        elapsed = round(time.time() - self.time_start)
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    def load_model(self, directory, cfg, epoch=None):
        checkpoint = load_checkpoint(os.path.join(directory, "first", f"model.pth.tar-{epoch}"))
        self._models["first"].load_state_dict(checkpoint["state_dict"], strict=False)


def test_clap(tmp_path, monkeypatch, capsys):
    """A training loop of its own over `SimpleTrainer`, copied loaders, a key set in the frozen configuration."""
    trainer = make(monkeypatch, tmp_path, CLAP)
    before = trainer.train_loader_x.dataset.transform
    trainer.train()
    assert trainer.train_loader_x.dataset.transform is before
    assert trainer.num_batches == -(-CLASSES * PER_CLASS // 6)
    assert (trainer.cfg.OPTIM.LR, sorted(trainer.last.meters)) == (0.01, ["acc_train", "loss"])
    trainer.load_model(str(tmp_path / "out"), trainer.cfg, epoch=2)
    assert accuracy_lines(capsys) == 1


# DAPT


class DAPT(ToyTrainer):
    def build_data_loader(self):
        super().build_data_loader()
        node = self.cfg.DATALOADER.TRAIN_X
        source = self.dm.dataset.train_x
        sampler = build_sampler(node.SAMPLER, self.cfg, source, node.BATCH_SIZE, node.N_DOMAIN, node.N_INS)
        data = DatasetWrapper(self.cfg, source, transform=build_transform(self.cfg, is_train=False), is_train=False)
        self.prototypes = DataLoader(data, batch_size=node.BATCH_SIZE, sampler=sampler, drop_last=False)

    def model_inference(self, input):
        output = self.model(input)
        return output, input.flatten(1), torch.ones(1)


def test_dapt(tmp_path, monkeypatch, capsys):
    """A loader from `build_sampler` and `DatasetWrapper`; three outputs of a model, of which the first is evaluated."""
    trainer = make(monkeypatch, tmp_path, DAPT)
    assert sum(len(batch["label"]) for batch in trainer.prototypes) == CLASSES * PER_CLASS
    trainer.train()
    assert accuracy_lines(capsys) == 1


# PromptKD


class PromptKD(ToyTrainer):
    splits = ()

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        if split is None:
            split = self.cfg.TEST.SPLIT
        loader = self.val_loader if split == "val" and self.val_loader is not None else self.test_loader
        self.splits = (*self.splits, split)
        print(f"Evaluate on the *{split}* set")
        for batch in loader:
            images, labels = self.parse_batch_test(batch)
            self.evaluator.process(self.model(images), labels)
        results = self.evaluator.evaluate()
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        return next(iter(results.values()))


def test_promptkd(tmp_path, monkeypatch, capsys):
    """An evaluation of its own, with the evaluator, the two loaders and the writer; the best model by it."""
    trainer = make(monkeypatch, tmp_path, PromptKD, TEST__FINAL_MODEL="best_val")
    trainer.train()
    assert trainer.splits == ("val", "val", "test")
    assert (tmp_path / "out" / "linear" / "model-best.pth.tar").is_file()
    assert accuracy_lines(capsys) == 3


# ATPrompt


class ATPrompt(TrainerX):
    """Two models with optimisers of their own, an epoch over both, a test with another order of arguments."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.final = []

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 8), nn.Linear(8, self.num_classes))
        for name, part in (("prompt", self.model[1]), ("attribute", self.model[2])):
            optim = build_optimizer(part, self.cfg.OPTIM)
            self.register_model(name, part, optim, build_lr_scheduler(optim, self.cfg.OPTIM))

    def run_epoch(self):
        self.set_model_mode("train")
        losses, data_time = MetricMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        for name in self.get_model_names():
            for self.batch_idx, batch in enumerate(self.train_loader_x):
                images, labels, _ = self.parse_batch_train(batch)
                loss = F.cross_entropy(self.model(images), labels)
                self._optims[name].zero_grad()
                self.model_backward(loss)
                self.model_update(name)
                losses.update({"loss": loss})
                data_time.update(0.0)
            self._scheds[name].step()
        self.update_lr([])

    def test(self, is_final=False, split=None):
        self.final.append((is_final, split))
        return super().test(split)


def test_atprompt(tmp_path, monkeypatch, capsys):
    trainer = make(monkeypatch, tmp_path, ATPrompt, TEST__FINAL_MODEL="best_val")
    trainer.train()
    trainer.test(is_final=True)
    assert trainer.final == [(False, "val"), (False, "val"), (False, None), (True, None)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == [
        "attribute",
        "prompt",
        "tensorboard",
    ]
    assert trainer.get_current_lr("attribute") == trainer.get_current_lr()
    assert SimpleTrainer.test(trainer, is_final=True) > 0
    assert accuracy_lines(capsys) == 5


# ProGrad


class ProGrad(ToyTrainer):
    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        output = self.model(images)
        xe_loss = F.cross_entropy(output, labels)
        kl_loss = -(F.softmax(output.detach() / 2, dim=-1) * F.log_softmax(output, dim=-1)).sum(dim=-1).mean()
        with torch.no_grad():
            xe_loss + kl_loss
        self.prograd_backward_and_update(xe_loss, kl_loss, self.cfg.LOSS.LAMBDA)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"xe_loss": xe_loss.item(), "kl_loss": kl_loss.item(), "acc": compute_accuracy(output, labels)[0].item()}


def test_prograd(tmp_path, monkeypatch, capsys):
    """Two losses over one graph, and a node of settings at the top of the configuration."""
    cfg = toy_config(monkeypatch, tmp_path, "ProGrad")
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "ProGrad", ProGrad)
    cfg.LOSS = type(cfg)({"NAME": "prograd", "T": 1.0, "LAMBDA": 0.8, "GM": False, "ALPHA": 1.0})
    trainer = build_trainer(cfg)
    trainer.train()
    assert {"xe_loss", "kl_loss", "acc"} <= trainer.history[0].keys()
    assert "xe_loss " in capsys.readouterr().out


# ProMetaR, APEX


class ProMetaR(ToyTrainer):
    def build_model(self):
        super().build_model()
        self.vnet = nn.Linear(1, 1)
        self.optim_vnet = build_optimizer(self.vnet, self.cfg.OPTIM_VNET)
        self.sched_vnet = build_lr_scheduler(self.optim_vnet, self.cfg.OPTIM_VNET)
        self.register_model("vnet", self.vnet, self.optim_vnet, self.sched_vnet)


def test_prometar_and_apex(tmp_path, monkeypatch):
    """A second node of optimiser settings; Adadelta with a linear warm-up."""
    cfg = toy_config(monkeypatch, tmp_path, "ProMetaR")
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "ProMetaR", ProMetaR)
    cfg.OPTIM_VNET = cfg.OPTIM.clone()
    cfg.OPTIM_VNET.merge_from_list(["NAME", "adadelta", "LR", 0.15, "WARMUP_TYPE", "linear", "WARMUP_MIN_LR", 1e-2])
    trainer = build_trainer(cfg)
    assert isinstance(trainer.optim_vnet, torch.optim.Adadelta)
    assert trainer.get_current_lr("vnet") == 0.01
    trainer.train()
    assert trainer.get_current_lr("vnet") == pytest.approx(0.15 / 2)
    assert trainer.get_model_names() == ["linear", "vnet"]


# section 5: what is to be tolerated


class Wrapped(ToyTrainer):
    def build_model(self):
        super().build_model()
        self.model = nn.DataParallel(self.model)

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(images), labels)
        self.model_backward_and_update(loss)
        return {"loss": loss, "acc": compute_accuracy(self.model(images), labels)[0]}


class Bare(DatasetBase):
    """No validation, no unlabelled data."""

    def __init__(self, cfg):
        from pathlib import Path

        samples = draw_samples(Path(cfg.DATASET.ROOT) / "toy")
        super().__init__(train_x=samples, test=samples)


def test_what_is_tolerated(tmp_path, monkeypatch):
    from dassl.data.datasets import DATASET_REGISTRY

    monkeypatch.setitem(DATASET_REGISTRY._objects, "Bare", Bare)
    keys = {"INPUT__TRANSFORMS": ["normalize"], "OPTIM__LR_SCHEDULER": "multi_step", "OPTIM__STEPSIZE": (1, 2)}
    trainer = make(monkeypatch, tmp_path, Wrapped, DATASET__NAME="Bare", **keys)
    assert (trainer.val_loader, trainer.train_loader_u) == (None, None)
    trainer.train()
    state = load_checkpoint(str(tmp_path / "out" / "linear" / "model.pth.tar-2"))["state_dict"]
    assert not any(name.startswith("module.") for name in state)
    assert trainer.test(split="val") == trainer.test()


# lpclip


@pytest.mark.parametrize("workers", [0, 2])
def test_feature_extraction(tmp_path, workers):
    """Scripts beside the trainers: `clip.load`, and a plain loader over `DatasetWrapper`."""
    import clip

    torch.save(random_state(VIT), tmp_path / "weights.pt")
    model, preprocess = clip.load(str(tmp_path / "weights.pt"), "cpu", jit=False)
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (model.visual.input_resolution,) * 2
    data = DatasetWrapper(cfg, draw_samples(tmp_path), transform=build_transform(cfg, is_train=False), is_train=False)
    loader = DataLoader(data, batch_size=5, sampler=None, shuffle=False, num_workers=workers, drop_last=False)
    with torch.no_grad():
        features = torch.cat([model.visual(batch["img"]) for batch in loader])
    assert features.shape == (CLASSES * PER_CLASS, model.visual.output_dim)
    assert clip.tokenize("a photo").shape == (1, 77)
    assert preprocess is not None
