"""Transductive post-processing: what is answered for an image depends on all other test images.

TransCLIP (Zanella, Gerin, Ben Ayed, NeurIPS 2024): a mixture of Gaussians over the normalised image features, one for
each class, with a term that draws neighbours together and one that holds the assignments near the probabilities of the
inductive method. It works on stored features and probabilities, of whatever method; nothing is trained and no label is
used. Here without labelled images: what a few-shot method learned of them is in its probabilities. The weights of the
terms, 1 each, could not be compared with those of the released code.

Shape legend: N test images, C classes, E embedding width, B images of a batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptation.method import Method
from clip.precision import to_float32

TRANSCLIP = "TransCLIP"
NEIGHBOURS = 3  # of an image, whose assignments draw its own
CONFIDENT = 8  # images of each class whose mean is its first centre
UPDATES, INNER_UPDATES = 10, 5  # of all blocks, and in each of the assignments
CHUNK = 2048  # images whose similarities to all others are held at a time


def affinities(z: Tensor) -> tuple[Tensor, Tensor]:
    """The K nearest other images of each, by normalised features (N, E): which, and how near (at least 0), (N, K)."""
    rows, weights = [], []
    for start in range(0, len(z), CHUNK):
        similar = z[start : start + CHUNK] @ z.T
        own = torch.arange(len(similar), device=z.device)
        similar[own, start + own] = -torch.inf
        nearest = similar.topk(min(NEIGHBOURS, len(z) - 1), dim=1)
        rows.append(nearest.indices)
        weights.append(nearest.values.clamp(min=0))
    return torch.cat(rows), torch.cat(weights)


def first_centres(z: Tensor, probabilities: Tensor) -> Tensor:
    """The mean feature (C, E) of the images for which each class is most probable, of features (N, E)."""
    top = probabilities.topk(min(CONFIDENT, len(z)), dim=0).indices
    return z[top.T].mean(dim=1)


def log_densities(z: Tensor, centres: Tensor, variances: Tensor) -> Tensor:
    """Logarithms (N, C), up to a constant, of Gaussians with centres (C, E) and common variances (E,) at (N, E)."""
    weighted = centres / variances
    return z @ weighted.T - (centres * weighted).sum(dim=1) / 2 - ((z * z) @ (1 / variances))[:, None] / 2


def transclip(z: Tensor, probabilities: Tensor) -> Tensor:
    """Assignments (N, C), each row of sum 1, by the block updates of TransCLIP.

    Args:
        z: image features (N, E).
        probabilities: of the inductive method, (N, C).

    Returns:
        the assignments, from those probabilities: `y` such that each image's is in proportion to its probability times
        its density under the class times the exponential of its neighbours' assignments; centres and variances are
        those of the features, weighted by the assignments.
    """
    z = F.normalize(to_float32(z), dim=-1)
    rows, weights = affinities(z)
    prior = to_float32(probabilities).clamp(min=torch.finfo(z.dtype).tiny).log()
    assigned = prior.softmax(dim=1)
    centres, variances = first_centres(z, assigned), torch.full_like(z[0], 1 / z.shape[1])
    for _ in range(UPDATES):
        unary = prior + log_densities(z, centres, variances)
        for _ in range(INNER_UPDATES):
            drawn = (weights[:, :, None] * assigned[rows]).sum(dim=1)
            assigned = (unary + drawn).softmax(dim=1)
        counts = assigned.sum(dim=0)
        known = (counts > torch.finfo(z.dtype).eps)[:, None]  # a class without images keeps its centre
        centres = torch.where(known, assigned.T @ z / counts.clamp(min=torch.finfo(z.dtype).eps)[:, None], centres)
        spread = (z * z).mean(dim=0) - 2 * (z * (assigned @ centres)).mean(dim=0)
        variances = (spread + counts @ (centres * centres) / len(z)).clamp(min=1e-6)
    return assigned


class TransductiveEvaluator:
    """Stands in the place of an evaluator: collects all batches, then gives it the transductive answers.

    Args:
        evaluator: the one that counts.
        features: image features (B, E) of the batches so far, which grow beside.
    """

    def __init__(self, evaluator: Any, features: Sequence[Tensor]):
        self.evaluator, self.features = evaluator, features
        self.outputs: list[Tensor] = []
        self.labels: list[Tensor] = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Keep a batch: logits (B, C) and labels (B,)."""
        self.outputs.append(mo.detach())
        self.labels.append(gt)

    def evaluate(self) -> Any:
        """What the evaluator says of the transductive answers."""
        if [len(part) for part in self.features] != [len(part) for part in self.outputs]:
            raise ValueError("TEST.TRANSDUCTIVE: the method does not give one feature for each image")
        probabilities = to_float32(torch.cat(self.outputs)).softmax(dim=1)
        self.evaluator.process(transclip(torch.cat(list(self.features)), probabilities), torch.cat(self.labels))
        return self.evaluator.evaluate()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.evaluator, name)


@contextmanager
def kept_features(model: Method) -> Iterator[list[Tensor]]:
    """While it is open, what the method's logits are made of is looked at: yields the image features, batch by batch.

    Raises:
        ValueError: at a batch: the method has several features of an image, or class features of each image's own.
    """
    features: list[Tensor] = []
    encode = model.encode

    def watched(images: Tensor) -> tuple[Tensor, Tensor]:
        z, t = encode(images)
        if not isinstance(z, Tensor) or z.ndim != 2 or not isinstance(t, Tensor) or t.ndim != 2:
            raise ValueError(
                f"TEST.TRANSDUCTIVE: {type(model).__name__} has no single feature of each image and class to work on"
            )
        features.append(z)
        return z, t

    object.__setattr__(model, "encode", watched)
    try:
        yield features
    finally:
        object.__delattr__(model, "encode")
