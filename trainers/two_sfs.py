"""2SFS: first scale and shift of the LayerNorms of both towers learn, then a classifier on what they give.

Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025 (arXiv 2503.11609).

Shape legend: B images, C classes, E embedding width.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler
from torch.utils.data import BatchSampler
from yacs.config import CfgNode

from adaptation.learned_weights import KnownOnHost, LearnedTowers, LearnedTowersTrainer, tower_weights
from adaptation.method import Method
from adaptation.step_budget import StepBudgetTrainer
from clip.backbone import Backbone
from dassl.engine import TRAINER_REGISTRY


def two_cosines(step: int, first: int, total: int, least: float) -> float:
    """The share of the learning rate at a step: from 1 to `least` in the first steps, and again in the others."""
    start, end = (0, first) if step < first else (first, total)
    return least + (1 - least) * (1 + math.cos(math.pi * (step - start) / max(end - start, 1))) / 2


class TwoSFSMethod(LearnedTowers):
    """Towers with learned weights; from the second stage on, one learned row of features per class of the training.

    Learned: in the first stage as `LearnedTowers`, in the second `rows` (C, E), from the normalised text features.
    State: `has_row` (C,), which classes have a row: none in the first stage. Classes without one are encoded by the
    tuned text tower, also beside others with one.

    Args:
        arguments: those of `LearnedTowers`.
    """

    has_row: Tensor

    def __init__(self, backbone: Backbone, classnames: list[str], template: str, names: Sequence[str]):
        super().__init__(backbone, classnames, template, names)
        self.rows = nn.Parameter(torch.zeros(len(classnames), backbone.embed_dim, device=self.tokens.device))
        self.register_buffer("has_row", torch.zeros_like(self.tokens[:, 0], dtype=torch.bool))
        self._given = KnownOnHost(lambda has_row: (bool(has_row.any()), bool(has_row.all())))

    @torch.no_grad()
    def begin_second_stage(self) -> None:
        """Give each class its row; the towers learn no more."""
        self.rows.copy_(F.normalize(self.text_features(), dim=-1))
        self.has_row.fill_(True)

    def given_rows(self) -> tuple[bool, bool]:
        """Whether some class has its row, and whether all have."""
        return self._given(self.has_row)

    def text_features(self) -> Tensor:
        """Features (C, E): the rows that there are, the tuned text tower's for the other classes."""
        some, every = self.given_rows()
        if not some:
            return super().text_features()
        if every:
            return self.rows
        encoded = self.backbone.encode_text(self.tokens[~self.has_row])
        return self.rows.index_put(((~self.has_row).nonzero()[:, 0],), encoded)

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E); in the second stage without gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.given_rows()[0]):
            return super().image_features(images)

    def select_classes(self, state: Mapping[str, Tensor], trained: list[str]) -> Mapping[str, Tensor]:
        """The rows of classes of these names (the mean, where several had one name), and which classes have one."""
        rows, has_row = torch.zeros_like(self.rows), torch.zeros_like(self.has_row)
        for number, own in enumerate(self.classnames):
            same = [row for row, name in enumerate(trained) if name == own and state["has_row"][row]]
            if same:
                rows[number], has_row[number] = state["rows"][same].mean(dim=0), True
        return {**state, "rows": rows, "has_row": has_row}


@TRAINER_REGISTRY.register()
class TwoSFS(StepBudgetTrainer, LearnedTowersTrainer):
    """Trains 2SFS. Each stage has its share of the steps, a cosine of its own and, in effect, its own optimiser: what
    does not learn in a stage gets no gradient, and an optimiser passes over it."""

    model: TwoSFSMethod
    CONFIG = {
        "TWOSFS": CfgNode(
            {
                **{key: value for key, value in LearnedTowersTrainer.KEYS.items() if key != "ALPHA"},
                "TEMPLATE": "a photo of a {}.",
                "KIND": "norm",  # what the first stage learns: norm, bias or all
                "FRACTION": 0.6,  # of the steps, in the first stage
                "N_ITERS": 0,
                "LR_MIN": 1e-6,
            }
        )
    }

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a share of the steps that is none."""
        super().check_cfg(cfg)
        if not 0 <= cfg.TRAINER.TWOSFS.FRACTION <= 1:
            raise ValueError(f"TRAINER.TWOSFS.FRACTION is {cfg.TRAINER.TWOSFS.FRACTION}, but must lie in [0, 1]")

    def build_data_loader(self) -> None:
        """As always, with an incomplete last batch."""
        super().build_data_loader()
        batches = self.train_loader_x.batch_sampler
        assert isinstance(batches, BatchSampler)
        batches.drop_last = False

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """2SFS as the keys say."""
        names = tower_weights(backbone, self.settings.ENCODER, self.settings.KIND)
        return TwoSFSMethod(backbone, classnames, self.template, names)

    def build_optim(self, trainable: list[nn.Parameter]) -> tuple[Optimizer, LRScheduler | None]:
        """As OPTIM says; a cosine starts anew with the second stage."""
        optim, sched = super().build_optim(trainable)
        if isinstance(sched, CosineAnnealingLR):
            least = self.settings.LR_MIN / self.cfg.OPTIM.LR
            sched = LambdaLR(optim, partial(two_cosines, first=self.first_steps, total=self.num_steps, least=least))
        return optim, sched

    @property
    def first_steps(self) -> int:
        """Steps of the first stage."""
        return int(self.num_steps * self.settings.FRACTION)

    def forward_backward(self, batch) -> dict:
        """One step; the first one of the second stage begins it."""
        step = self.epoch * len(self.train_loader_x) + self.batch_idx
        if step >= self.first_steps and not self.model.given_rows()[0]:
            with self.precision.autocast():
                self.model.begin_second_stage()
        return super().forward_backward(batch)
