"""TransCLIP: its block updates against loops that are written from the equations, and where it is refused."""

import math

import pytest
import torch
from torch import Tensor

from adaptation.transduction import CONFIDENT, INNER_UPDATES, NEIGHBOURS, UPDATES, affinities, kept_features, transclip


def scene(seed: int = 0, n: int = 24, classes: int = 3, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Features of images around class centres, probabilities that are often wrong, labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=generator)
    z = centres[labels] + 0.25 * torch.randn(n, width, generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += 1.0
    return z, logits.softmax(dim=1), labels


def by_loops(z: Tensor, y: Tensor) -> Tensor:
    """The equations, sample by sample and class by class."""
    f = (z / z.norm(dim=1, keepdim=True)).double().tolist()
    y = y.double().tolist()
    n, classes, width = len(f), len(y[0]), len(f[0])
    dot = [[sum(a * b for a, b in zip(f[i], f[j], strict=True)) for j in range(n)] for i in range(n)]
    w = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in sorted((j for j in range(n) if j != i), key=lambda j: -dot[i][j])[:NEIGHBOURS]:
            w[i][j] = max(0.0, dot[i][j])
    mu = []
    for k in range(classes):
        top = sorted(range(n), key=lambda i: -y[i][k])[:CONFIDENT]
        mu.append([sum(f[i][d] for i in top) / len(top) for d in range(width)])
    var, assigned = [1 / width] * width, [row[:] for row in y]
    for _ in range(UPDATES):
        log_p = [
            [-0.5 * sum((f[i][d] - mu[k][d]) ** 2 / var[d] for d in range(width)) for k in range(classes)]
            for i in range(n)
        ]
        for _ in range(INNER_UPDATES):
            new = []
            for i in range(n):
                row = [
                    y[i][k] * math.exp(log_p[i][k] + sum(w[i][j] * assigned[j][k] for j in range(n)))
                    for k in range(classes)
                ]
                new.append([value / sum(row) for value in row])
            assigned = new
        for k in range(classes):
            count = sum(assigned[i][k] for i in range(n))
            mu[k] = [sum(assigned[i][k] * f[i][d] for i in range(n)) / count for d in range(width)]
        var = [
            sum(assigned[i][k] * (f[i][d] - mu[k][d]) ** 2 for i in range(n) for k in range(classes)) / n
            for d in range(width)
        ]
    return torch.tensor(assigned, dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_block_updates_are_those_of_the_equations(seed, monkeypatch):
    z, probabilities, _ = scene(seed)
    monkeypatch.setattr("adaptation.transduction.CHUNK", 7)
    made = transclip(z, probabilities)
    torch.testing.assert_close(made.double(), by_loops(z, probabilities), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.sum(dim=1), torch.ones(len(z)))


def test_other_images_correct_what_one_alone_does_not_show():
    right = {"before": 0, "after": 0}
    for seed in range(5):
        z, probabilities, labels = scene(seed, n=90)
        right["before"] += int((probabilities.argmax(1) == labels).sum())
        right["after"] += int((transclip(z, probabilities).argmax(1) == labels).sum())
    assert right["after"] > right["before"] + 50, right


def test_the_order_of_the_images_says_nothing():
    z, probabilities, _ = scene()
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(transclip(z[order], probabilities[order]), transclip(z, probabilities)[order])


def test_an_image_is_not_its_own_neighbour():
    z = torch.nn.functional.normalize(scene()[0], dim=1)
    rows, weights = affinities(z)
    assert rows.shape == weights.shape == (len(z), NEIGHBOURS)
    assert not (rows == torch.arange(len(z))[:, None]).any()
    assert (weights >= 0).all()
    assert affinities(z[:2])[0].tolist() == [[1], [0]], "as many as there are"


def test_a_class_that_no_image_has():
    z, probabilities, _ = scene()
    none = torch.cat([probabilities, torch.zeros(len(z), 1)], dim=1)
    made = transclip(z, none)
    assert made.isfinite().all()
    assert made[:, 3].max() < 1e-6


class Shapes(torch.nn.Module):
    """Gives features of the shapes that it is made with: MMRL has two of an image, CoCoOp classes of each image."""

    def __init__(self, *shapes: tuple[int, ...]):
        super().__init__()
        self.shapes = shapes

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ones(shape) for shape in self.shapes)


def test_features_are_kept_while_it_is_open():
    model = Shapes((4, 5), (3, 5))
    with kept_features(model) as features:
        model.encode(torch.zeros(4))
        model.encode(torch.zeros(4))
        assert [tuple(part.shape) for part in features] == [(4, 5)] * 2
    model.encode(torch.zeros(4))
    assert len(features) == 2


@pytest.mark.parametrize("shapes", [((4, 2, 5), (3, 5)), ((4, 5), (4, 3, 5))])
def test_methods_without_one_feature_of_each_image_and_class_are_refused(shapes):
    with kept_features(model := Shapes(*shapes)), pytest.raises(ValueError, match="Shapes has no single feature"):
        model.encode(torch.zeros(4))
