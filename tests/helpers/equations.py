"""Small pieces of the papers' equations in NumPy, number by number, and the frozen features that they start from."""

from collections.abc import Callable

import numpy as np
import torch


def array(x) -> np.ndarray:
    return x.detach().double().numpy()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(softmax(logits)[np.arange(len(labels)), labels]).mean())


def frozen_text(backbone, template, classnames) -> np.ndarray:
    """Raw text features of one sentence per class, each encoded alone."""
    rows = []
    for name in classnames:
        sentence = template.replace("{}", name.replace("_", " "))
        rows.append(array(backbone.encode_text(backbone.tokenize([sentence])))[0])
    return np.stack(rows)


def frozen_images(backbone, images) -> np.ndarray:
    return array(backbone.encode_image(images))


def scale(backbone) -> float:
    return float(backbone.logit_scale)


def close(ours, expected, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(array(torch.as_tensor(ours)), expected, rtol=rtol, atol=atol)


def gradient(function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of a function of an array, by central differences."""
    result = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            ends.append(function(moved))
        result[place] = (ends[0] - ends[1]) / (2 * step)
    return result
