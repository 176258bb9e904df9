"""Shapes, pictures, captions and the drawn sets: true to their seed, complete, sayable in trained words."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from synthetic.captions import caption, left_out, name_of
from synthetic.paint import COLOURS, SIZE, TEXTURES, contrast, pixel_grid, texture
from synthetic.scenes import COUNTED, Scene, draw_scene, facts, held_out, sample_scene
from synthetic.sets import PARTS, SETS
from synthetic.shapes import OBJECTS, disc, handwritten, polygon, regular_star, rosette
from synthetic.tasks import drawn_task

SETS_OF_TWENTY = [name for name in SETS if name != "digits"]


def scenes(count: int, seed: int = 0) -> list[Scene]:
    return [sample_scene(np.random.default_rng((seed, index))) for index in range(count)]


def test_polygon_distance_is_that_of_a_box():
    x, y = pixel_grid()
    square = polygon(x, y, [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    inside = (np.abs(x) < 0.5) & (np.abs(y) < 0.5)
    assert np.array_equal(square < 0, inside)
    assert np.abs(square[inside] + np.minimum(0.5 - np.abs(x), 0.5 - np.abs(y))[inside]).max() < 1e-6


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_fill_the_frame_and_differ(name):
    x, y = pixel_grid()
    mask = OBJECTS[name](x, y) < 0
    assert 0.1 < mask.mean() < 0.8
    assert max(np.ptp(np.flatnonzero(mask.any(axis=axis))) for axis in (0, 1)) >= 20  # pixels
    same = [other for other in OBJECTS if other != name and np.array_equal(OBJECTS[other](x, y) < 0, mask)]
    assert not same


@pytest.mark.parametrize("count", COUNTED["star"])
def test_stars_and_flowers_have_as_many_points_as_they_say(count):
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    for shape, radius in ((regular_star(count), 0.75), (rosette(count), 0.8)):
        inside = shape(radius * np.cos(angle), radius * np.sin(angle)) < 0
        assert (inside & ~np.roll(inside, 1)).sum() == count


def test_distances_are_negative_inside():
    x, y = pixel_grid()
    assert np.allclose(disc(x, y, r=0.5), np.hypot(x, y) - 0.5)


def test_handwriting_varies_and_follows_the_generator():
    x, y = pixel_grid()
    first, again, other = (handwritten(8, np.random.default_rng(seed))(x, y) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", TEXTURES)
def test_textures_show_both_colours(kind):
    for period in (4, 12):
        pattern = texture(kind, period, np.random.default_rng(0))
        assert pattern.shape == (SIZE, SIZE)
        assert pattern.min() == 0
        assert pattern.max() == 1
        assert 0.1 < pattern.mean() < 0.9


def test_scenes_are_visible_and_never_show_a_held_out_pair():
    drawn = scenes(3000)
    kinds = Counter(scene.kind for scene in drawn)
    assert set(kinds) == {"object", "digit", "counted", "texture"}
    assert kinds["object"] > 0.6 * len(drawn)
    assert not any(scene.kind == "object" and held_out(scene.colour, scene.thing) for scene in drawn)
    assert all(contrast(scene.colour, scene.background) > 0.4 for scene in drawn)
    for thing in OBJECTS:
        assert sum(held_out(colour, thing) for colour in COLOURS) == 3


def test_easy_set_is_made_of_held_out_pairs():
    pairs = [(scene.colour, scene.thing) for scene in SETS["easy"].scenes]
    assert all(held_out(*pair) for pair in pairs)


def test_pictures_are_bytes_and_follow_the_generator():
    for index, scene in enumerate(scenes(40)):
        first, again = (draw_scene(scene, np.random.default_rng(index)) for _ in range(2))
        assert first.shape == (SIZE, SIZE, 3)
        assert first.dtype == np.uint8
        assert np.array_equal(first, again)
        assert first.std() > 3


def test_captions_are_true_and_name_the_thing():
    for index, scene in enumerate(scenes(500)):
        rng = np.random.default_rng(index)
        told = left_out(scene, rng)
        shown, said = facts(scene), facts(told)
        assert len(shown) == len(said)
        assert all(not words or words == truth for words, truth in zip(said, shown, strict=True))
        sentence = caption(told, rng)
        assert sentence.endswith(".")
        assert name_of(told) in sentence
        assert "  " not in sentence


@pytest.mark.parametrize("name", SETS_OF_TWENTY)
def test_sets_have_twenty_classes_and_enough_pictures(name):
    chosen = SETS[name]
    assert len(set(chosen.class_names)) == 20
    train, val, test = chosen.sizes
    assert (train >= 16, val >= 4, test >= 50) == (True, True, True)


def test_halves_are_comparable():
    textures, polystar = SETS["textures"].scenes, SETS["polystar"].scenes
    for half in (slice(0, 10), slice(10, 20)):
        assert Counter(scene.size for scene in textures[half]) == {"fine": 5, "coarse": 5}
        assert set(Counter(scene.thing for scene in polystar[half]).values()) == {3, 4}


def small(name: str):
    """The set with two pictures per class and part."""
    import dataclasses

    return dataclasses.replace(SETS[name], sizes=(2, 1, 2))


@pytest.mark.parametrize("name", SETS)
def test_same_seed_same_bytes_other_seed_other_bytes(name):
    def digest(part: str, seed: int) -> str:
        joined = b"".join(bytes([label]) + picture.tobytes() for label, picture in small(name).pictures(part, seed))
        return hashlib.sha256(joined).hexdigest()

    assert digest("test", 1) == digest("test", 1)
    assert len({digest(part, seed) for part in PARTS for seed in (1, 2)}) == 6


def test_digits_are_all_of_them_once():
    parts = {part: list(SETS["digits"].pictures(part, 1)) for part in PARTS}
    assert sum(len(part) for part in parts.values()) == 1797
    assert min(Counter(label for label, _ in parts["test"]).values()) >= 50
    assert min(Counter(label for label, _ in parts["train"]).values()) >= 16
    keys = [picture.tobytes() for part in parts.values() for _, picture in part]
    assert len(set(keys)) > 1750  # a few of the 8x8 pictures are alike


def test_drawn_tasks_are_true_to_their_number_and_span_kinds_and_class_counts():
    tasks = [drawn_task(number) for number in range(40)]
    assert {task.name.split()[2].strip(",") for task in tasks} == {"objects", "coloured", "counted", "textures"}
    counts = [len(task.scenes) for task in tasks]
    assert (min(counts) >= 4, max(counts) <= 24, max(counts) > 4 * min(counts)) == (True, True, True)
    assert all(len(set(task.class_names)) == len(task.scenes) for task in tasks)
    first, again = (next(drawn_task(3).pictures("train", 1))[1] for _ in range(2))
    assert np.array_equal(first, again)
    with pytest.raises(ValueError, match="there is no task -1"):
        drawn_task(-1)
