"""Random numbers of plain trainers: those of Dassl 0.6.3 on PyTorch's loaders, draw by draw.

What is expected here is computed from the description alone, without this engine: Python's generator chooses the
few-shot samples; the model is built; each pass over a loader draws its base seed, then, over training images, the seed
of their order; the transforms draw in the process, or in workers seeded with the base seed plus their number.
"""

import copy
import random

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from dassl_toys import SIDE, ToyTrainer, draw_samples, toy_config
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from adaptation.trainer import MethodTrainer
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from dassl.data.samplers import EpochRandomSampler, build_sampler
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerX, TrainerXU, build_trainer
from dassl.utils import set_random_seed

forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
SEED, SHOTS, BATCH, EPOCHS = 3, 5, 4, 3


def generators():
    """The state of the three global generators, comparable with `==`."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (name, keys.tolist(), rest), torch.get_rng_state().tolist()


# Draws as numbers

# of torch.manual_seed(3), 21 images of 12 x 10 pixels, batches of 6
FIRST_ORDER = [17, 4, 13, 1, 19, 3, 14, 11, 9, 12, 20, 10, 7, 2, 18, 6, 15, 16]
SECOND_ORDER = {  # without workers the transforms of the first pass have drawn in between
    0: [3, 17, 2, 7, 14, 10, 9, 5, 11, 19, 1, 4, 18, 13, 15, 20, 12, 16],
    2: [3, 17, 14, 15, 19, 12, 8, 20, 10, 5, 7, 13, 16, 2, 4, 1, 6, 0],
}
FIRST_BOXES = {  # top, left, height, width, flipped, of the first two batches
    0: [
        [[0, 5, 9, 7, 0], [1, 6, 8, 6, 0], [0, 1, 9, 11, 0], [2, 7, 4, 3, 0], [0, 1, 5, 4, 1], [5, 3, 4, 3, 1]],
        [[3, 2, 6, 6, 1], [3, 6, 5, 6, 1], [3, 0, 7, 9, 1], [0, 0, 10, 12, 0], [0, 3, 10, 9, 1], [1, 5, 7, 6, 1]],
    ],
    2: [
        [[0, 5, 6, 7, 0], [0, 1, 9, 10, 0], [0, 4, 8, 6, 1], [0, 2, 10, 10, 1], [5, 0, 5, 6, 0], [2, 3, 8, 9, 1]],
        [[0, 0, 9, 11, 1], [5, 0, 4, 4, 1], [0, 1, 8, 8, 1], [0, 1, 9, 11, 1], [3, 3, 6, 8, 0], [2, 7, 4, 5, 0]],
    ],
}


def box_of(image):
    """What random-resized-crop and flip draw for an image."""
    box = T.RandomResizedCrop.get_params(image, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
    return torch.tensor([*box, torch.rand(1).item() < 0.5])


def draw():
    return torch.empty((), dtype=torch.int64).random_().item()


def described_pass(count, size, workers):
    """Order and boxes of a pass, per batch, as PyTorch describes its loaders; no loader is used."""
    base_seed, order_seed = draw(), draw()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(order_seed)).tolist()
    batches = [order[start : start + size] for start in range(0, count - size + 1, size)]
    image, boxes, main = Image.new("RGB", (12, 10)), {}, torch.get_rng_state()
    for worker in range(max(workers, 1)):
        if workers:
            torch.manual_seed(base_seed + worker)
        for number in range(worker, len(batches), max(workers, 1)):
            boxes[number] = [box_of(image).tolist() for _ in batches[number]]
    if workers:
        torch.set_rng_state(main)
    return batches, [boxes[number] for number in range(len(batches))]


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_orders_and_crops_as_numbers(tmp_path, monkeypatch, workers):
    cfg = toy_config(monkeypatch, tmp_path, DATALOADER__NUM_WORKERS=workers)
    loader = DataManager(cfg, custom_tfm_train=box_of, custom_tfm_test=box_of).train_loader_x
    set_random_seed(SEED)
    passes = []
    for _ in range(2):
        batches = list(loader)
        passes.append(([b["index"].tolist() for b in batches], [b["img"].tolist() for b in batches]))
    orders = [[index for batch in batches for index in batch] for batches, _ in passes]
    assert orders == [FIRST_ORDER, SECOND_ORDER[workers]]
    assert passes[0][1][:2] == FIRST_BOXES[workers]
    after = torch.get_rng_state()
    torch.manual_seed(SEED)
    assert passes == [described_pass(21, 6, workers) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), after)


# Whole runs, beside a loop in plain PyTorch


class FewToys(DatasetBase):
    """Few-shot training and validation lists, chosen as CoOp's data sets choose."""

    def __init__(self, cfg):
        samples = draw_samples(type(self).folder)
        train = self.generate_fewshot_dataset(samples, num_shots=cfg.DATASET.NUM_SHOTS)
        val = self.generate_fewshot_dataset(samples, num_shots=min(cfg.DATASET.NUM_SHOTS, 4))
        super().__init__(train_x=train, train_u=samples[::2], val=val, test=samples)


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def noisy(images):
    """Noise from three generators, as methods that mix or mask do."""
    if random.random() < 0.5:
        images = images * np.random.uniform(0.5, 1.5)  # noqa: NPY002
    return images + 0.1 * torch.randn_like(images)


class Noisy(TrainerX):
    def build_model(self):
        self.model, self.losses, self.results = network(), [], []
        self.optim = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.register_model("noisy", self.model, self.optim, None)

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(noisy(images)), labels)
        self.model_backward_and_update(loss)
        self.losses.append(loss.item())
        return {"loss": loss}

    def test(self, split=None):
        self.results.append(SimpleTrainer.test(self, split))
        return self.results[-1]


class NoisyPair(TrainerXU):
    build_model, test = Noisy.build_model, Noisy.test

    def forward_backward(self, batch_x, batch_u):
        images, labels, others = self.parse_batch_train(batch_x, batch_u)
        loss = F.cross_entropy(self.model(noisy(images)), labels) + self.model(others).square().mean()
        self.model_backward_and_update(loss)
        self.losses.append(loss.item())
        return {"loss": loss}


class Plain(Dataset):
    def __init__(self, samples, transform):
        self.samples, self.transform = samples, transform

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        return self.transform(Image.open(path).convert("RGB")), label


def plain_loader(samples, workers, training):
    """A loader in plain PyTorch and torchvision."""
    end = [T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    crop = [T.RandomResizedCrop((SIDE, SIDE), scale=(0.08, 1.0)), T.RandomHorizontalFlip()]
    data = Plain(samples, T.Compose([*(crop if training else [T.Resize(SIDE), T.CenterCrop(SIDE)]), *end]))
    sampler = RandomSampler(data) if training else None
    return DataLoader(data, BATCH if training else 32, sampler=sampler, num_workers=workers, drop_last=training)


def again_and_again(loader):
    """Batches without end; the first pass begins with the call."""
    batches = iter(loader)

    def following():
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        return batch

    return following


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    hits = [(model(images).argmax(1) == labels).tolist() for images, labels in loader]
    return 100.0 * sum(map(sum, hits)) / sum(map(len, hits))


def plain_run(folder, workers, pairs):
    """Losses and accuracies of the same training, validated after each epoch, in plain PyTorch."""
    set_random_seed(SEED)
    samples = [(item.impath, item.label) for item in draw_samples(folder)]
    few = [
        [item for label in range(3) for item in random.sample([s for s in samples if s[1] == label], shots)]
        for shots in (SHOTS, min(SHOTS, 4))
    ]
    train, unlabelled = plain_loader(few[0], workers, True), plain_loader(samples[::2], workers, True)
    val, test = plain_loader(few[1], workers, False), plain_loader(samples, workers, False)
    model, losses, results, best = network(), [], [], (-1.0, None)
    optim = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(EPOCHS):
        model.train()
        next_x = again_and_again(train)
        next_u = again_and_again(unlabelled) if pairs else None
        for _ in range(len(train)):
            images, labels = next_x()
            others = next_u()[0] if pairs else None
            loss = F.cross_entropy(model(noisy(images)), labels)
            loss = loss + model(others).square().mean() if pairs else loss
            optim.zero_grad()
            loss.backward()
            optim.step()
            losses.append(loss.item())
        results.append(accuracy(model, val))
        best = max(best, (results[-1], copy.deepcopy(model.state_dict())), key=lambda one: one[0])
    model.load_state_dict(best[1])
    return losses, [*results, accuracy(model, test)], generators()


@forks
@pytest.mark.parametrize("trainer", [Noisy, NoisyPair])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_is_that_of_plain_pytorch(tmp_path, monkeypatch, trainer, workers):
    """Losses to the last bit, accuracies, and at the end the state of each generator: nothing drew more, or less."""
    keys = {"TEST__FINAL_MODEL": "best_val", "OPTIM__MAX_EPOCH": EPOCHS, "DATASET__NUM_SHOTS": SHOTS}
    keys |= {"DATALOADER__NUM_WORKERS": workers, "DATALOADER__TRAIN_X__BATCH_SIZE": BATCH}
    cfg = toy_config(monkeypatch, tmp_path, trainer.__name__, DATASET__NAME="FewToys", **keys)
    monkeypatch.setattr(FewToys, "folder", tmp_path / "toy", raising=False)
    monkeypatch.setitem(DATASET_REGISTRY._objects, "FewToys", FewToys)
    monkeypatch.setitem(TRAINER_REGISTRY._objects, trainer.__name__, trainer)
    set_random_seed(SEED)
    run = build_trainer(cfg)
    run.train()
    assert (run.losses, run.results, generators()) == plain_run(tmp_path / "toy", workers, trainer is NoisyPair)
    assert len(set(run.losses)) == len(run.losses)


# Who draws from what


def test_who_asks_for_which_streams(tmp_path, monkeypatch):
    """Plain trainers get the global generators, methods keyed streams; the configuration key forces either."""
    assert (SimpleTrainer.random_streams, MethodTrainer.random_streams) == ("global", "keyed")
    for wanted, asked, keyed in (
        ("global", "auto", False),
        ("keyed", "auto", True),
        ("global", "keyed", True),
        ("keyed", "global", False),
    ):
        monkeypatch.setattr(ToyTrainer, "random_streams", wanted)
        cfg = toy_config(monkeypatch, tmp_path, DATALOADER__RANDOM_STREAMS=asked)
        trainer = build_trainer(cfg)
        assert isinstance(trainer.train_loader_x.sampler, EpochRandomSampler) is keyed
        assert (trainer.train_loader_x.dataset.clock is not None) is keyed
        assert (trainer.test_loader.generator is not None) is keyed
        before = generators()
        assert sum(len(batch["label"]) for batch in trainer.train_loader_x) == 18
        assert (generators() == before) is keyed
    cfg.DATALOADER.RANDOM_STREAMS = "globe"
    with pytest.raises(ValueError, match=r'RANDOM_STREAMS "globe": do you mean \[.global'):
        build_trainer(cfg)


def test_a_sampler_of_ones_own_draws_from_the_global_generator(tmp_path):
    """What DAPT builds beside the loaders of the trainer."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    cfg.SEED = 1
    assert type(build_sampler("RandomSampler", cfg, range(5), 2, 0, 16)) is RandomSampler
