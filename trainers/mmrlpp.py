"""MMRL++: MMRL whose maps are one matrix and a low-rank part per block, and whose tokens flow from block to block.

Guo, Gu, "MMRL++: Parameter-Efficient and Interaction-Aware Representation Learning for Vision-Language Models",
International Journal of Computer Vision, 2026 (arXiv 2505.10088).

Shape legend: B images, E embedding width, n tokens of the space, R its width, D tower width, r rank.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from adaptation.method import Method
from adaptation.templates import template_of
from clip.backbone import Backbone
from clip.towers import ImageTower
from dassl.engine import TRAINER_REGISTRY
from trainers.mmrl import MMRL, MMRLMethod


class LowRank(nn.Module):
    """The product of `A` (D, r), random at the start, and `B` (r, R), zero at the start."""

    def __init__(self, rank: int, rows: int, columns: int):
        super().__init__()
        self.A = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rows, rank), a=5**0.5))
        self.B = nn.Parameter(torch.zeros(rank, columns))

    def forward(self) -> Tensor:
        """(D, R)."""
        return self.A @ self.B


class SharedMaps(nn.Module):
    """Maps R -> D of these blocks, by their numbers: one matrix for all, a low-rank part and a bias for each."""

    def __init__(self, rank: int, blocks: Sequence[int], width_in: int, width_out: int):
        super().__init__()
        one = nn.Linear(width_in, width_out)
        self.weight = one.weight
        self.parts = nn.ModuleDict({str(i): LowRank(rank, width_out, width_in) for i in blocks})
        self.biases = nn.ParameterDict({str(i): one.bias.detach().clone() for i in blocks})

    def forward(self, space: Tensor) -> dict[int, Tensor]:
        """The tokens (n, R) of the space as those (n, D) of each block."""
        return {int(i): F.linear(space, self.weight + part(), self.biases[i]) for i, part in self.parts.items()}


class AddedProjection(nn.Module):
    """The tower's own projection and a low-rank part."""

    def __init__(self, rank: int, tower: ImageTower, width_in: int, width_out: int):
        super().__init__()
        assert tower.project is not None, "towers that offer `output_norm` offer `project`"
        self.own = tower.project
        self.part = LowRank(rank, width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, E), in the precision of x."""
        return self.own(x) + x @ self.part().to(x.dtype)


@TRAINER_REGISTRY.register()
class MMRLpp(MMRL):
    """Trains MMRL++. The data sets' weights and shares stand beside its configurations."""

    CONFIG = {
        "MMRLPP": CfgNode(
            {
                "N_REP_TOKENS": 5,
                "REP_DIM": 512,
                "REP_LAYERS": (6, 7, 8, 9, 10, 11, 12),  # blocks are counted from 1
                "ALPHA": 0.7,
                "BETA": 0.9,  # share of a block's own tokens; the rest flows on from the block before
                "REG_WEIGHT": 0.2,
                "MAP_RANK": 4,  # of each block's part of the maps
                "PROJ_RANK": 64,  # of what is added to the projection
                "PREC": "amp",
            }
        )
    }

    def build_method(self, backbone: Backbone, classnames: list[str]) -> Method:
        """MMRL++ as the keys say."""
        keys = self.settings
        for key in ("MAP_RANK", "PROJ_RANK"):
            if keys[key] < 1:
                raise ValueError(f"TRAINER.MMRLPP.{key} is {keys[key]}, but must be at least 1")
        if not 0 <= keys.BETA <= 1:
            raise ValueError(f"TRAINER.MMRLPP.BETA is {keys.BETA}, but must lie in [0, 1]")
        sizes = (keys.N_REP_TOKENS, keys.REP_DIM, keys.REP_LAYERS, keys.ALPHA, keys.REG_WEIGHT, keys.BETA)
        parts = partial(SharedMaps, keys.MAP_RANK), partial(AddedProjection, keys.PROJ_RANK, backbone.image)
        return MMRLMethod(backbone, classnames, template_of(self.dm.dataset), *sizes, *parts)
