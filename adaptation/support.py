"""Methods that learn from features: the training images go through the frozen tower once, before training.

Shape legend: N training images, B images of a batch, E embedding width.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adaptation.trainer import MethodTrainer
from dassl.data.data_manager import DatasetWrapper, build_data_loader
from dassl.data.samplers import EpochClock

logger = logging.getLogger(__name__)


def augmented_loader(trainer: MethodTrainer) -> DataLoader:
    """The training images in the order of their list, in batches of evaluation, under the training transform."""
    return build_data_loader(
        trainer.cfg,
        data_source=trainer.dm.dataset.train_x,
        batch_size=trainer.cfg.DATALOADER.TEST.BATCH_SIZE,
        tfm=cast(DatasetWrapper, trainer.train_loader_x.dataset).transform,
        is_train=False,
        random_streams=trainer.random_streams,
    )


class SupportTrainer(MethodTrainer):
    """A trainer of a method that needs the training images, the support set, as features of the plain image tower."""

    @property
    def support_labels(self) -> Tensor:
        """Labels (N,) of the training images."""
        return torch.tensor([item.label for item in self.dm.dataset.train_x], device=self.device)

    @torch.no_grad()
    def support_passes(self, count: int) -> Iterator[Tensor]:
        """Features (N, E) of the training images, not normalised: one tensor for each of `count` augmented passes."""
        if count < 1:
            raise ValueError(f"TRAINER.{self.config_node}.AUGMENT_EPOCHS is {count}, but must be at least 1")
        loader = augmented_loader(self)
        images = cast(DatasetWrapper, loader.dataset)
        images.clock = clock = EpochClock(self.cfg.SEED, "cache") if self.cfg.SEED >= 0 else None
        logger.info("Encoding %d training images, augmented passes: %d", len(images), count)
        for _ in range(count):
            if clock is not None:
                clock.tick()
            yield torch.cat([self.encode(batch)[0] for batch in loader])

    def encode(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Features (B, E) of a batch's images, not normalised, and its labels (B,)."""
        images, labels = self.parse_batch_test(batch)
        with self.precision.autocast():
            return self.model.image_features(images), labels

    @torch.no_grad()
    def validation_features(self) -> tuple[Tensor, Tensor] | None:
        """Features (B, E), not normalised, and labels (B,) of the validation images, for a choice by them, which is
        noted; None if these are test images or there are none."""
        dataset = self.dm.dataset
        val, test = ({item.impath for item in part or ()} for part in (dataset.val, dataset.test))
        if not val or val & test:
            return None
        assert self.val_loader is not None, "there are validation images"
        self.note_selection("validation")
        features, labels = zip(*map(self.encode, self.val_loader), strict=True)
        return torch.cat(features), torch.cat(labels)
