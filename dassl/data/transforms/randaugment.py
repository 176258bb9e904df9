"""For third-party code: the strong augmentation of FixMatch (Sohn et al., NeurIPS 2020, table 12).

All is drawn from Python's generator: the operations, then, for each as it is applied, its strength and, where it has a
direction, its sign.
"""

import random
import math
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps


def _affine(image: Image.Image, *rows: float) -> Image.Image:
    """Return the image whose pixel (x, y) is that at (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, rows)


def _enhanced(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, value: kind(image).enhance(value)


def _directed(apply: Callable[[Image.Image, float], Image.Image]) -> Callable[[Image.Image, float], Image.Image]:
    """Apply an operation in either direction."""
    return lambda image, value: apply(image, -value if random.random() > 0.5 else value)


OPERATIONS: list[tuple[Callable[[Image.Image, float], Image.Image], float, float]] = [  # with least and greatest strength
    (lambda image, _: ImageOps.autocontrast(image), 0, 1),
    (_enhanced(ImageEnhance.Brightness), 0.05, 0.95),
    (_enhanced(ImageEnhance.Color), 0.05, 0.95),
    (_enhanced(ImageEnhance.Contrast), 0.05, 0.95),
    (lambda image, _: ImageOps.equalize(image), 0, 1),
    (lambda image, _: image, 0, 1),
    (lambda image, bits: ImageOps.posterize(image, int(bits)), 4, 8),
    (_directed(lambda image, degrees: image.rotate(degrees)), -30, 30),
    (_enhanced(ImageEnhance.Sharpness), 0.05, 0.95),
    (_directed(lambda image, slope: _affine(image, 1, slope, 0, 0, 1, 0)), -0.3, 0.3),
    (_directed(lambda image, slope: _affine(image, 1, 0, 0, slope, 1, 0)), -0.3, 0.3),
    (lambda image, threshold: ImageOps.solarize(image, math.ceil(threshold)), 0, 256),
    (_directed(lambda image, share: _affine(image, 1, 0, share * image.size[0], 0, 1, 0)), -0.3, 0.3),
    (_directed(lambda image, share: _affine(image, 1, 0, 0, 0, 1, share * image.size[1])), -0.3, 0.3),
]


class RandAugmentFixMatch:
    """Apply ``n`` operations, drawn with replacement, to a Pillow image, each with a strength drawn from its range."""

    def __init__(self, n: int = 2) -> None:
        self.n = n

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the augmented image."""
        for apply, least, greatest in random.choices(OPERATIONS, k=self.n):
            image = apply(image, random.random() * (greatest - least) + least)
        return image

    def __repr__(self) -> str:
        return f"RandAugmentFixMatch(n={self.n})"
