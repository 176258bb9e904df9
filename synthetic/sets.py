"""The drawn data sets: which classes they have, in which order, and how one of their pictures is drawn.

They span transfer difficulty: `easy` (colours that were never seen on these objects), `thermal`, `chalk` and `clutter`
(objects in a rendering that training never shows), `textures` and `polystar` (fine distinctions that captions seldom
make) and `digits` (real handwriting, scikit-learn's). The first half of the classes is the base half. The order of
the classes was drawn by lot once, per set (per half for textures and polystar, so that both halves hold as many of
each family), and is never changed by what a model scores.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from synthetic.captions import name_of
from synthetic.paint import (
    COLOURS,
    SIZE,
    TEXTURES,
    contrast,
    coverage,
    finished,
    gradient,
    jittered,
    mix,
    pixel_grid,
    texture,
    thermal,
)
from synthetic.scenes import Scene, draw_scene, shape_distance
from synthetic.shapes import Array

Drawer = Callable[[Scene, np.random.Generator], Array]
PARTS = ("train", "val", "test")
VERSION = 2  # of the pictures: raised by every change after which the same seed draws others


@dataclass(frozen=True)
class DrawnSet:
    """A data set: class names and one scene per class, in label order; how to draw; pictures per class and part."""

    name: str
    scenes: tuple[Scene, ...]
    draw: Drawer | None  # None: the digits, which are not drawn
    sizes: tuple[int, int, int] = (32, 8, 50)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(name_of(scene) for scene in self.scenes)

    def pictures(self, part: str, seed: int) -> Iterator[tuple[int, Array]]:
        """Labels and pictures (S, S, 3) uint8 of train, val or test; each from a random stream of its own."""
        if self.draw is None:
            yield from _digit_pictures(part, [scene.number for scene in self.scenes], seed)
            return
        for label, scene in enumerate(self.scenes):
            for index in range(self.sizes[PARTS.index(part)]):
                stream = (seed, zlib.crc32(self.name.encode()), PARTS.index(part), label, index)
                yield label, self.draw(scene, np.random.default_rng(stream))


def _objects(*things: str) -> tuple[Scene, ...]:
    return tuple(Scene("object", thing, "", "") for thing in things)


def _coloured(*pairs: str) -> tuple[Scene, ...]:
    return tuple(Scene("object", thing, colour, "") for colour, thing in (pair.split() for pair in pairs))


def _counted(*pairs: tuple[str, int]) -> tuple[Scene, ...]:
    return tuple(Scene("counted", thing, "", "", number) for thing, number in pairs)


def _textured(*pairs: tuple[str, str]) -> tuple[Scene, ...]:
    return tuple(Scene("texture", "texture", "", "", size=grain, texture=kind) for grain, kind in pairs)


def _other_colour(rng: np.random.Generator, *others: str, least: float = 0.4) -> str:
    """A colour name that can be told from the others."""
    names = [name for name in COLOURS if all(contrast(name, other) > least for other in others if other)]
    return names[int(rng.integers(len(names)))]


def draw_plain(scene: Scene, rng: np.random.Generator) -> Array:
    """As in training, with the colours that the class leaves open drawn at random."""
    colour = scene.colour or _other_colour(rng)
    background = _other_colour(rng, colour)
    size = scene.size or "large"
    return draw_scene(Scene(scene.kind, scene.thing, colour, background, scene.number, size, scene.texture), rng)


def draw_thermal(scene: Scene, rng: np.random.Generator) -> Array:
    """Seen by an infrared camera: soft, in false colours, warm spots around; half of them cold on warm."""
    distance = shape_distance(scene, rng)
    x, y = pixel_grid()
    angle = rng.uniform(0, 2 * np.pi)
    around = rng.uniform(0.05, 0.3) + rng.uniform(0, 0.3) * (np.cos(angle) * x + np.sin(angle) * y)
    for _ in range(int(rng.integers(3))):
        away = np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)) / rng.uniform(0.15, 0.4)
        around += rng.uniform(0.2, 0.6) * np.exp(-(away**2))
    body = rng.uniform(0.45, 0.75) + 0.05 * np.clip(-distance, 0, 4)
    heat = around + (body - around) * coverage(distance, rng.uniform(3, 6))
    return finished(thermal(1 - heat if rng.uniform() < 0.5 else heat), rng, 0.08)


def draw_chalk(scene: Scene, rng: np.random.Generator) -> Array:
    """Drawn in chalk on a board: a light, grainy, broken outline on a dark ground."""
    line = coverage(np.abs(shape_distance(scene, rng)) - np.float32(rng.uniform(0.4, 0.9)))
    grain = np.clip(rng.normal(0.85, 0.3, line.shape), 0, 1).astype(np.float32)
    board = np.asarray(((0.10, 0.22, 0.15), (0.12, 0.13, 0.16), (0.10, 0.15, 0.25))[int(rng.integers(3))], np.float32)
    chalk = np.asarray((0.95, 0.93, 0.85), np.float32) * np.float32(rng.uniform(0.8, 1.0))
    smear = rng.normal(0, 0.03, (SIZE, SIZE, 1)).astype(np.float32)
    return finished(mix(board + smear, chalk, line * grain), rng, 0.05)


def draw_clutter(scene: Scene, rng: np.random.Generator) -> Array:
    """In front of a textured background, with spots in other colours strewn over it."""
    first = _other_colour(rng)
    second = _other_colour(rng, first, least=0.3)
    colour = _other_colour(rng, first, second, least=0.35)
    pattern = texture(TEXTURES[int(rng.integers(len(TEXTURES)))], rng.uniform(3.5, 11), rng)
    canvas = mix(np.broadcast_to(jittered(first, rng), (SIZE, SIZE, 3)), jittered(second, rng), pattern)
    x, y = pixel_grid()
    for _ in range(int(rng.integers(2, 6))):
        spot = np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)) - rng.uniform(0.05, 0.16)
        canvas = mix(canvas, jittered(_other_colour(rng, colour), rng), coverage(spot * (SIZE / 2)))
    fore = jittered(colour, rng)
    paint = gradient(fore, fore * np.float32(0.8), rng)
    return finished(mix(canvas, paint, coverage(shape_distance(scene, rng))).astype(np.float32), rng, 0.03)


@lru_cache(maxsize=1)
def _digits() -> tuple[Array, Array]:
    """Images (1797, 8, 8) from 0 to 16 and the digits that they show (1797,)."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this set needs it

    data = load_digits()
    return data.images, data.target


def _digit_pictures(part: str, digits: list[int], seed: int) -> Iterator[tuple[int, Array]]:
    """All of scikit-learn's 8x8 digits, light on dark, enlarged; 40 % train, 10 % val, 50 % test of each class."""
    images, target = _digits()
    rng = np.random.default_rng((seed, zlib.crc32(b"digits")))
    for label, digit in enumerate(digits):
        mine = rng.permutation(np.flatnonzero(target == digit))
        cuts = (0, round(0.4 * len(mine)), round(0.5 * len(mine)), len(mine))
        which = PARTS.index(part)
        for index in mine[cuts[which] : cuts[which + 1]]:
            small = Image.fromarray(np.clip(images[index] * (255 / 16), 0, 255).astype(np.uint8))
            large = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
            yield label, np.repeat(large[..., None], 3, axis=2)


SETS: dict[str, DrawnSet] = {
    chosen.name: chosen
    for chosen in (
        DrawnSet(
            "easy",
            _coloured(
                *("black tree", "gray hammer", "brown fish", "green moon", "gray bottle"),
                *("yellow bottle", "white umbrella", "orange boat", "pink moon", "blue tree"),
                *("blue oval", "green umbrella", "red fish", "green heart", "blue boat"),
                *("cyan car", "purple hammer", "black oval", "brown car", "pink heart"),
            ),
            draw_plain,
        ),
        DrawnSet(
            "thermal",
            _objects(
                *("diamond", "star", "bottle", "tree", "oval", "key", "ring", "arrow", "boat", "fish"),
                *("mushroom", "heart", "triangle", "square", "flower", "cross", "circle", "hourglass"),
                *("hammer", "house"),
            ),
            draw_thermal,
        ),
        DrawnSet(
            "chalk",
            _objects(
                *("ring", "moon", "car", "heart", "bottle", "arrow", "oval", "umbrella", "key", "tree"),
                *("hourglass", "mushroom", "boat", "square", "flower", "house", "fish", "diamond", "hammer", "cross"),
            ),
            draw_chalk,
        ),
        DrawnSet(
            "clutter",
            _objects(
                *("key", "triangle", "house", "square", "car", "hourglass", "flower", "heart", "ring", "tree"),
                *("mushroom", "star", "circle", "diamond", "butterfly", "moon", "fish", "umbrella", "cross", "oval"),
            ),
            draw_clutter,
        ),
        DrawnSet(
            "textures",
            _textured(
                *(("fine", "dotted"), ("coarse", "striped"), ("coarse", "brick"), ("coarse", "speckled")),
                *(("coarse", "woven"), ("coarse", "dotted"), ("fine", "woven"), ("fine", "striped")),
                *(("fine", "brick"), ("fine", "speckled")),
                *(("fine", "grid"), ("coarse", "ringed"), ("coarse", "wavy"), ("fine", "checkered")),
                *(("fine", "ringed"), ("coarse", "grid"), ("fine", "wavy"), ("fine", "zigzag")),
                *(("coarse", "zigzag"), ("coarse", "checkered")),
            ),
            draw_plain,
        ),
        DrawnSet(
            "polystar",
            _counted(
                *(("star", 4), ("star", 3), ("polygon", 4), ("flower", 4), ("star", 5)),
                *(("star", 9), ("polygon", 7), ("flower", 9), ("flower", 5), ("polygon", 6)),
                *(("star", 7), ("flower", 6), ("flower", 8), ("polygon", 3), ("flower", 3)),
                *(("polygon", 8), ("flower", 7), ("polygon", 5), ("star", 8), ("star", 6)),
            ),
            draw_plain,
        ),
        DrawnSet("digits", tuple(Scene("digit", "digit", "", "", n) for n in (1, 4, 3, 5, 2, 9, 6, 8, 7, 0)), None),
    )
}
