"""What a training picture shows, and the drawing of it.

A scene is a list of things that can be said (object, colour, count, ...); `draw_scene` makes a picture of it and
`synthetic.captions` a sentence. Three colours of every object are never drawn: the `easy` data set is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    placed,
    texture,
)
from synthetic.shapes import OBJECTS, Array, Shape, handwritten, regular_polygon, regular_star, rosette

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNTED: dict[str, tuple[int, ...]] = {
    "polygon": (3, 4, 5, 6, 7, 8),
    "star": tuple(range(3, 10)),
    "flower": tuple(range(3, 10)),
}
FINE, COARSE = (3.2, 5.0), (9.0, 14.0)  # periods of textures, in pixels
_COUNTED_SHAPE = {"polygon": regular_polygon, "star": regular_star, "flower": rosette}
_NAMES = tuple(COLOURS)


def held_out(colour: str, thing: str) -> bool:
    """Whether this colour of this object is never drawn in training."""
    return (_NAMES.index(colour) - 5 * list(OBJECTS).index(thing)) % 4 == 0


@dataclass(frozen=True)
class Scene:
    """One picture in words.

    `kind` is object, digit, counted (a polygon, star or flower with a number of sides, points or petals) or texture.
    `style` is photo, sketch or blurry. Empty fields are absent.
    """

    kind: str
    thing: str
    colour: str
    background: str
    number: int = 1
    size: str = ""
    texture: str = ""
    style: str = "photo"


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene: mostly objects; digits, counted shapes and textures now and then."""
    lot = rng.uniform()
    if lot < 0.70:
        return _object_scene(rng)
    if lot < 0.82:
        colour, background = _two_colours(rng)
        return Scene("digit", "digit", colour, background, int(rng.integers(10)))
    if lot < 0.92:
        colour, background = _two_colours(rng)
        thing = tuple(COUNTED)[int(rng.integers(3))]
        return Scene("counted", thing, colour, background, int(rng.choice(COUNTED[thing])))
    colour, background = _two_colours(rng)
    kind = TEXTURES[int(rng.integers(len(TEXTURES)))]
    return Scene("texture", "texture", colour, background, size=("fine", "coarse")[int(rng.integers(2))], texture=kind)


def _object_scene(rng: np.random.Generator) -> Scene:
    thing = tuple(OBJECTS)[int(rng.integers(len(OBJECTS)))]
    colour, background = _two_colours(rng)
    while held_out(colour, thing):
        colour, background = _two_colours(rng)
    number = int(rng.choice((1, 2, 3), p=(0.86, 0.08, 0.06)))
    size = ("large", "small")[int(rng.uniform() < 0.2)] if number == 1 else ""
    pattern = TEXTURES[int(rng.integers(len(TEXTURES)))] if size == "large" and rng.uniform() < 0.2 else ""
    style = str(rng.choice(("photo", "sketch", "blurry"), p=(0.84, 0.10, 0.06)))
    return Scene("object", thing, colour, background, number, size, "" if style == "sketch" else pattern, style)


def _two_colours(rng: np.random.Generator) -> tuple[str, str]:
    """Two names of colours that can be told apart."""
    while True:
        first, second = (_NAMES[i] for i in rng.integers(len(_NAMES), size=2))
        if contrast(first, second) > 0.4:
            return first, second


def shape_of(scene: Scene, rng: np.random.Generator) -> Shape:
    """The shape that the scene shows."""
    if scene.kind == "digit":
        return handwritten(scene.number, rng)
    if scene.kind == "counted":
        return _COUNTED_SHAPE[scene.thing](scene.number)
    return OBJECTS[scene.thing]


def placements(number: int, size: str, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centres and half sizes (x, y, scale) of the copies of a shape, nearly without overlap."""
    if number == 1:
        scale = rng.uniform(0.42, 0.56) if size == "small" else rng.uniform(0.62, 0.94)
        room = min(0.25, 1.06 - scale)
        return [(*rng.uniform(-room, room, 2), scale)]
    if number == 2:
        across, scale = rng.uniform(0.42, 0.5), rng.uniform(0.4, 0.5)
        lift = rng.uniform(-0.4, 0.4)
        return [(-across, -lift, scale), (across, lift, scale)]
    corners = [(-0.48, 0.45), (0.48, 0.45), (0.0, -0.5)]
    flip = -1 if rng.uniform() < 0.5 else 1
    return [(x, flip * y, rng.uniform(0.38, 0.47)) for x, y in corners]


def shape_distance(scene: Scene, rng: np.random.Generator) -> Array:
    """Distances (S, S), in pixels, to all copies of the scene's shape, each placed and turned at random."""
    shape = shape_of(scene, rng)
    mirror = scene.kind != "digit" and rng.uniform() < 0.5
    spots = placements(scene.number if scene.kind == "object" else 1, scene.size, rng)
    return np.minimum.reduce([placed(shape, x, y, scale, rng.normal(0, 0.17), mirror) for x, y, scale in spots])


def draw_scene(scene: Scene, rng: np.random.Generator) -> Array:
    """Picture (S, S, 3) uint8 of a scene."""
    fore, back = jittered(scene.colour, rng), jittered(scene.background, rng)
    if scene.kind == "texture":
        return draw_texture(scene.texture, scene.size, fore, back, rng)
    distance = shape_distance(scene, rng)
    canvas = np.broadcast_to(back, (SIZE, SIZE, 3))
    if rng.uniform() < 0.4:
        canvas = gradient(back, np.clip(back * np.float32(rng.uniform(0.6, 1.3)), 0, 1), rng)
    if scene.style == "sketch":
        distance = np.abs(distance) - np.float32(rng.uniform(0.6, 1.1))
    paint = np.broadcast_to(fore, (SIZE, SIZE, 3))
    if scene.texture:
        pattern = texture(scene.texture, rng.uniform(4, 8), rng)
        paint = mix(paint, fore * 0.35 if fore.mean() > 0.4 else fore * 0.5 + 0.5, pattern)
    elif rng.uniform() < 0.3:
        paint = gradient(fore, np.clip(fore * np.float32(rng.uniform(0.7, 1.2)), 0, 1), rng)
    canvas = mix(canvas, paint, coverage(distance))
    blur = rng.uniform(1.2, 2.2) if scene.style == "blurry" else 0.0
    if scene.kind == "digit" and rng.uniform() < 0.5:
        blur = rng.uniform(0.5, 1.8)
    return finished(canvas, rng, rng.uniform(0, 0.04), blur)


def draw_texture(kind: str, grain: str, fore: Array, back: Array, rng: np.random.Generator) -> Array:
    """Picture (S, S, 3) uint8 filled with a fine or coarse texture in two colours (3,)."""
    pattern = texture(kind, rng.uniform(*(FINE if grain == "fine" else COARSE)), rng)
    shade = 1 + rng.uniform(-0.2, 0.2) * pixel_grid()[0]
    canvas = mix(np.broadcast_to(back, (SIZE, SIZE, 3)), fore, pattern) * shade[..., None]
    return finished(canvas, rng, 0.02)


def facts(scene: Scene) -> tuple[str, ...]:
    """What can be true or said of a scene, one entry per field, empty where there is nothing.

    Fields: thing, colour, background, copies, points (sides, petals, the digit), size, texture, style.
    """
    points = scene.number if scene.kind in ("digit", "counted") else 5 * (scene.thing in ("star", "flower"))
    if scene.kind == "counted" and not points:
        numbers = ("one", "")
    else:
        copies = "one" if scene.kind != "object" else NUMBERS[scene.number]
        numbers = (copies, NUMBERS[points] if points or scene.kind == "digit" else "")
    return (scene.thing, scene.colour, scene.background, *numbers, scene.size, scene.texture, scene.style)
