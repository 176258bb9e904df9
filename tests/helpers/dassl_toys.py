"""A data set of made images and a linear trainer: the smallest things that the engine can run."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, TrainerXU
from dassl.optim import build_lr_scheduler, build_optimizer

CLASSES, PER_CLASS, SIDE = 3, 7, 8


def draw_samples(folder):
    """Write the images, a shade and some noise per class, and return the samples."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for label in range(CLASSES):
        for number in range(PER_CLASS):
            path = folder / f"{label}_{number}.png"
            if not path.exists():
                noise = np.random.default_rng([label, number]).integers(0, 90, (SIDE + 2, SIDE + 4, 3))
                Image.fromarray((noise + 70 * label).astype(np.uint8)).save(path)
            samples.append(Datum(impath=str(path), label=label, classname=f"shade_{label}"))
    return samples


class ToyData(DatasetBase):
    """Every list is the whole set, except for the few that validate."""

    def __init__(self, cfg):
        from pathlib import Path

        samples = draw_samples(Path(cfg.DATASET.ROOT) / "toy")
        super().__init__(train_x=samples, train_u=samples[::2], val=samples[::3], test=samples)


class ToyTrainer(TrainerX):
    """Softmax regression on the pixels."""

    def build_model(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, self.num_classes)).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)

    def loss(self, images, labels):
        return nn.functional.cross_entropy(self.model(images), labels)

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        loss = self.loss(images, labels)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss, "acc": 50.0}


class ToyPairTrainer(TrainerXU):
    """The same, with unlabelled batches that it only counts."""

    build_model = ToyTrainer.build_model
    loss = ToyTrainer.loss

    def forward_backward(self, batch_x, batch_u):
        images, labels, unlabelled = self.parse_batch_train(batch_x, batch_u)
        self.model_backward_and_update(self.loss(images, labels))
        return {"unlabelled": float(len(unlabelled))}


class ToyZeroShot(TrainerX):
    """A trainer that learns nothing and registers no model; it prefers class 1."""

    def build_model(self):
        self.model = nn.Identity()

    def model_inference(self, images):
        return torch.eye(self.num_classes)[1].expand(len(images), -1), "a second output"


def toy_config(monkeypatch, folder, trainer="ToyTrainer", **keys):
    """Make the toys known for the length of a test; return a configuration for them.

    Args:
        monkeypatch: pytest's.
        folder: gets the images and ``out``.
        trainer: name of a trainer of this file.
        keys: configuration keys with ``__`` for the dots.
    """
    monkeypatch.setitem(DATASET_REGISTRY._objects, "ToyData", ToyData)
    for kind in (ToyTrainer, ToyPairTrainer, ToyZeroShot):
        monkeypatch.setitem(TRAINER_REGISTRY._objects, kind.__name__, kind)
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.NAME", "ToyData", "DATASET.ROOT", str(folder), "OUTPUT_DIR", str(folder / "out")])
    cfg.merge_from_list(["SEED", 1, "TRAINER.NAME", trainer, "INPUT.SIZE", (SIDE, SIDE), "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize"), "OPTIM.NAME", "sgd"])
    cfg.merge_from_list(["OPTIM.LR", 0.05, "OPTIM.LR_SCHEDULER", "cosine", "OPTIM.MAX_EPOCH", 2, "USE_CUDA", False])
    cfg.merge_from_list(["OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant", "DATALOADER.TRAIN_X.BATCH_SIZE", 6])
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg
