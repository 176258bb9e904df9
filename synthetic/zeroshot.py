"""Zero-shot accuracy of a CLIP on the drawn data sets, and how far apart their class names are.

python -m synthetic.zeroshot [WEIGHTS] [--seed 1]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip.clip import PIXEL_MEAN, PIXEL_STD, locate, tokenize
from clip.model import CLIP, from_state_dict
from clip.weight_files import read_state_dict
from synthetic.sets import SETS, DrawnSet

BETA, EPS = 4.0, 0.05  # of APEX's adaptive ensemble


@dataclass(frozen=True)
class Measured:
    """Accuracies in percent (base among base classes, new among new), and text distances of new to base names."""

    base: float
    new: float
    d_nn: float
    d_avg: float
    alpha: float


def normalised(pictures: Tensor) -> Tensor:
    """Bytes (N, S, S, 3) as CLIP's input (N, 3, S, S)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (pictures.permute(0, 3, 1, 2) / 255 - mean) / std


def text_features(model: CLIP, names: tuple[str, ...], used: Tensor | None = None) -> Tensor:
    """Unit features (C, E) of "a photo of a {name}."; `used` maps token ids to the rows of a shortened table."""
    tokens = tokenize([f"a photo of a {name}." for name in names], model.context_length)
    return F.normalize(model.encode_text(tokens if used is None else torch.searchsorted(used, tokens)), dim=-1)


@torch.no_grad()
def measure(model: CLIP, drawn: DrawnSet, part: str = "test", seed: int = 1, used: Tensor | None = None) -> Measured:
    """Zero-shot accuracy on one part of a data set, and the distances of its class names."""
    labels, pictures = zip(*drawn.pictures(part, seed), strict=True)
    truth, images = torch.tensor(labels), normalised(torch.from_numpy(np.stack(pictures)))
    z = torch.cat([F.normalize(model.encode_image(chunk), dim=-1) for chunk in images.split(250)])
    t = text_features(model, drawn.class_names, used)
    half = (len(t) + 1) // 2
    is_base = truth < half
    base = ((z[is_base] @ t[:half].T).argmax(1) == truth[is_base]).float().mean()
    new = ((z[~is_base] @ t[half:].T).argmax(1) + half == truth[~is_base]).float().mean()
    distance = 1 - t[half:] @ t[:half].T
    d_nn, d_avg = distance.min(1).values, distance.mean(1)
    alpha = torch.exp(-BETA * d_avg * (d_nn > EPS)).mean()
    return Measured(100 * base.item(), 100 * new.item(), d_nn.mean().item(), d_avg.mean().item(), alpha.item())


def table(model: CLIP, seed: int = 1, names: Iterable[str] = SETS) -> str:
    """One line per data set: accuracies and distances on its test pictures."""
    lines = [f"{'set':10s} {'base':>6s} {'new':>6s} {'HM':>6s} {'d_nn':>6s} {'d_avg':>6s} {'alpha':>6s}"]
    for name in names:
        m = measure(model, SETS[name], seed=seed)
        harmonic = 2 * m.base * m.new / (m.base + m.new) if m.base + m.new else math.nan
        lines.append(
            f"{name:10s} {m.base:6.1f} {m.new:6.1f} {harmonic:6.1f} {m.d_nn:6.3f} {m.d_avg:6.3f} {m.alpha:6.2f}"
        )
    return "\n".join(lines)


def main() -> str:
    """Measure the weights named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default="tiny-ViT", help="a model name or a file")
    parser.add_argument("--seed", type=int, default=1, help="of the pictures")
    args = parser.parse_args()
    return table(from_state_dict(read_state_dict(locate(args.weights))), args.seed)


if __name__ == "__main__":
    print(main())  # noqa: T201
