"""Drawn tasks: any number of data sets made from seeds, for experiments about the choice of a method.

A task draws by lot what its classes are (objects, coloured objects, counted shapes, textures), how many there are, how
they are rendered, and how noisy and blurred the pictures are; so tasks span transfer difficulty and class counts.
Nothing about them was chosen by what a model scores.
"""

import functools

import numpy as np

from synthetic.paint import COLOURS, TEXTURES, finished
from synthetic.scenes import COUNTED, Scene, held_out
from synthetic.sets import Drawer, DrawnSet, draw_chalk, draw_clutter, draw_plain, draw_thermal
from synthetic.shapes import OBJECTS, Array

VERSION = 1  # raised by every change after which a task is another one
RENDERINGS: dict[str, Drawer] = {
    "plain": draw_plain,
    "thermal": draw_thermal,
    "chalk": draw_chalk,
    "clutter": draw_clutter,
}
FEWEST, MOST = 4, 24  # classes
NOISE, BLUR = 0.2, 1.2  # at most: standard deviation as a part of white; radius in pixels
SIZES = (24, 4, 40)  # pictures per class: train, val, test


def _pools() -> dict[str, list[Scene]]:
    """The classes that a task may have, by kind."""
    counted = [Scene("counted", thing, "", "", number) for thing, numbers in COUNTED.items() for number in numbers]
    coloured = [
        Scene("object", thing, colour, "") for thing in OBJECTS for colour in COLOURS if held_out(colour, thing)
    ]
    grains = ("fine", "coarse")
    textures = [Scene("texture", "texture", "", "", size=grain, texture=kind) for kind in TEXTURES for grain in grains]
    return {
        "objects": [Scene("object", thing, "", "") for thing in OBJECTS],
        "coloured": coloured,
        "counted": counted,
        "textures": textures,
    }


def drawn_task(number: int) -> DrawnSet:
    """Task `number`, from 0 on; ValueError for a negative one."""
    if number < 0:
        raise ValueError(f"there is no task {number}: they are counted from 0")
    rng = np.random.default_rng((VERSION, number))
    kind, pool = list(_pools().items())[int(rng.integers(4))]
    renderings = list(RENDERINGS) if kind in ("objects", "counted") else ["plain"]
    rendering = renderings[int(rng.integers(len(renderings)))]
    most = min(MOST, len(pool))
    classes = round(float(np.exp(rng.uniform(np.log(FEWEST), np.log(most)))))
    noise, blur = float(rng.uniform(0, NOISE)), float(rng.uniform(0, BLUR))
    scenes = [pool[index] for index in rng.permutation(len(pool))[:classes]]
    draw = functools.partial(_worse, RENDERINGS[rendering], noise, blur)
    return DrawnSet(f"task {number}: {kind}, {rendering}", tuple(scenes), draw, SIZES)


def _worse(draw: Drawer, noise: float, blur: float, scene: Scene, rng: np.random.Generator) -> Array:
    """A rendering, blurred and with noise."""
    return finished(draw(scene, rng).astype(np.float32) / 255, rng, noise, blur)
