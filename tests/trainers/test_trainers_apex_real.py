"""APEX's distances and weights on text features of released CLIPs, the first half of the classes trained."""

import numpy as np
import pytest
import torch

from trainers.apex import adaptive_alpha, difficulty

BETA, EPS = 4.0, 0.05
ALPHA = {  # mean alpha of the new classes
    "ImageNet": 0.193, "DescribableTextures": 0.697, "EuroSAT": 0.659, "FGVCAircraft": 0.447, "Food101": 0.245,
    "OxfordFlowers": 0.246, "OxfordPets": 0.210, "StanfordCars": 0.199, "SUN397": 0.382, "UCF101": 0.273,
}  # fmt: skip
DETECTION = {  # file -> (classes, median d_nn, share of d_nn above eps, median d_avg or None, mean alpha)
    "lvis_v1_clip_a+cname.npy": (1203, 0.131, 0.988, 0.256, 0.366),
    "coco_clip_a+cname.npy": (80, 0.140, 1.0, None, 0.442),
}


def halves(features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 features of the base classes, the larger half, and of the new ones."""
    rows = torch.from_numpy(features.astype(np.float32))
    middle = (len(rows) + 1) // 2
    return rows[:middle], rows[middle:]


def weights(features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """d_nn, d_avg and alpha (C,) of the new classes."""
    d_nn, d_avg = difficulty(*halves(features))
    return d_nn, d_avg, adaptive_alpha(d_nn, d_avg, BETA, EPS)


@pytest.mark.parametrize("file", DETECTION)
def test_distances_and_weights_of_detection_vocabularies(real_dir, file):
    classes, nearest, above, average, alpha = DETECTION[file]
    features = np.load(real_dir / "text_embeddings" / file)
    assert features.shape == (classes, 512)
    d_nn, d_avg, weight = weights(features)
    assert np.median(d_nn) == pytest.approx(nearest, abs=6e-4)
    assert (d_nn > EPS).double().mean().item() == pytest.approx(above, abs=6e-4)
    assert average is None or np.median(d_avg) == pytest.approx(average, abs=6e-4)
    assert weight.mean().item() == pytest.approx(alpha, abs=6e-4)


@pytest.mark.parametrize("name", ALPHA)
def test_weights_of_the_benchmarks(real_dir, name):
    with np.load(real_dir / "text_embeddings" / "benchmarks.npz") as arrays:
        d_nn, _, weight = weights(arrays[name])
    assert weight.mean().item() == pytest.approx(ALPHA[name], abs=6e-4)
    assert 0.735 <= (d_nn > EPS).double().mean().item() <= 1


def test_trained_classes_are_at_no_distance_and_have_weight_one(real_dir):
    with np.load(real_dir / "text_embeddings" / "benchmarks.npz") as arrays:
        for name in ALPHA:
            base, _ = halves(arrays[name])
            d_nn, d_avg = difficulty(base, base)
            assert d_nn.max() < 1e-6
            assert (adaptive_alpha(d_nn, d_avg, BETA, EPS) == 1).all()
