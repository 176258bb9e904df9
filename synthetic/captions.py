"""Sentences about scenes.

A caption names some of what the picture shows, in one of many frames: mostly "a photo of a ...", the frame in which the
few-shot methods ask, and now and then one of the frames that prompt ensembling uses, so that their words are known.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from synthetic.scenes import NUMBERS, Scene

PLURALS = {"butterfly": "butterflies", "fish": "fish", "cross": "crosses"}
SIDES = {"polygon": "sided", "star": "pointed", "flower": "petal"}

# Frames that are true of any picture; the first is the usual one.
FRAMES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a {}.",
    "a picture of a {}.",
    "a good photo of a {}.",
    "a bad photo of the {}.",
    "a drawing of a {}.",
    "art of the {}.",
    "a origami {}.",
    "itap of a {}.",
    "a {} in a video game.",
    "a type of {}.",
    "a cropped photo of the {}.",
    "a close-up photo of a {}.",
    "a rendering of a {}.",
    "a painting of the {}.",
)
SKETCHES = ("a sketch of a {}.", "a line drawing of a {}.", "a doodle of the {}.")
BLURRY = ("a blurry photo of a {}.", "a blurry photo of the {}.", "a low resolution photo of a {}.")
PLURAL_FRAMES = ("a photo of {}.", "{}.", "a picture of {}.")
_USUAL = 0.55

# How often each field of a scene is said, by kind; a field that is not listed always is.
_SAID = {
    "object": {"colour": 0.5, "background": 0.25, "size": 0.3, "texture": 0.6},
    "digit": {"colour": 0.5, "background": 0.25},
    "counted": {"colour": 0.5, "background": 0.25, "number": 0.4},
    "texture": {"colour": 0.3, "background": 0.3, "size": 0.35},
}


def name_of(scene: Scene) -> str:
    """The plain name of what is shown: "digit three", "five pointed star", "fine striped texture", "red fish"."""
    if scene.kind == "digit":
        words = [scene.colour, "digit", NUMBERS[scene.number]]
    elif scene.kind == "counted":
        counted = [NUMBERS[scene.number], SIDES[scene.thing]] if scene.number else []
        words = [scene.colour, *counted, scene.thing]
    elif scene.kind == "texture":
        words = [scene.size, scene.texture, "texture"]
    elif scene.number > 1:
        words = [NUMBERS[scene.number], scene.colour, PLURALS.get(scene.thing, scene.thing + "s")]
    else:
        words = [scene.size, scene.colour, scene.texture, scene.thing]
    return " ".join(word for word in words if word)


def left_out(scene: Scene, rng: np.random.Generator) -> Scene:
    """What a caption says of the scene: fields left out at random (the number 0 stands for one left out)."""
    said = {field: rng.uniform() < chance for field, chance in _SAID[scene.kind].items()}
    if scene.kind == "texture":
        said["background"] = said["colour"]
    gone = {field: 0 if field == "number" else "" for field, keep in said.items() if not keep}
    return replace(scene, **gone, style="" if scene.style == "photo" else scene.style)


def caption(said: Scene, rng: np.random.Generator) -> str:
    """A sentence that says what `left_out` left, in a random frame."""
    name = name_of(said)
    if said.kind == "texture" and said.colour:
        name += f" in {said.colour} and {said.background}"
    elif said.background:
        name += f" on a {said.background} background"
    if said.kind == "object" and said.number > 1:
        frames = PLURAL_FRAMES
    elif said.style == "sketch":
        frames = SKETCHES
    elif said.style == "blurry":
        frames = BLURRY
    else:
        frames = FRAMES[:1] if rng.uniform() < _USUAL else FRAMES
    return frames[int(rng.integers(len(frames)))].format(name)
