"""Shapes as signed distances: negative inside, positive outside, in units of the shape's own half size.

A shape is a function of two arrays `x, y` of one common form (any), `x` to the right and `y` upwards, that returns the
distances in the same form. Shapes fill about [-1, 1] in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Shape = Callable[[Array, Array], Array]
Points = Sequence[tuple[float, float]]


def disc(x: Array, y: Array, cx: float = 0.0, cy: float = 0.0, r: float = 1.0) -> Array:
    """Disc of radius `r` around (cx, cy)."""
    return np.hypot(x - cx, y - cy) - r


def box(x: Array, y: Array, cx: float, cy: float, w: float, h: float) -> Array:
    """Box of half width `w` and half height `h` around (cx, cy)."""
    dx, dy = np.abs(x - cx) - w, np.abs(y - cy) - h
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def ellipse(x: Array, y: Array, cx: float, cy: float, w: float, h: float, turn: float = 0.0) -> Array:
    """Ellipse with half axes `w`, `h`, turned by `turn` radians (a first-order distance, exact on the border)."""
    c, s = np.cos(turn), np.sin(turn)
    u, v = (c * (x - cx) + s * (y - cy)) / w, (c * (y - cy) - s * (x - cx)) / h
    radius = np.hypot(u, v)
    return radius * (radius - 1) / (np.hypot(u / w, v / h) + 1e-6)


def strokes(x: Array, y: Array, lines: Sequence[Points], r: float) -> Array:
    """Polylines drawn with a round pen of radius `r`."""
    starts = np.concatenate([np.asarray(line, x.dtype)[:-1] for line in lines])
    ends = np.concatenate([np.asarray(line, x.dtype)[1:] for line in lines])
    return np.sqrt(_edge_distance2(x, y, starts, ends).min(axis=0)) - r


def polygon(x: Array, y: Array, corners: Points) -> Array:
    """Closed polygon, convex or not, given by its corners in order."""
    starts = np.asarray(corners, x.dtype)
    ends = np.roll(starts, -1, axis=0)
    nearest = np.sqrt(_edge_distance2(x, y, starts, ends).min(axis=0))
    form = (-1,) + (1,) * x.ndim
    ax, ay, bx, by = (column.reshape(form) for column in (*starts.T, *ends.T))
    crosses = (ay > y) != (by > y)
    slope = (bx - ax) / np.where(by == ay, 1, by - ay)
    inside = (crosses & (x < ax + (y - ay) * slope)).sum(axis=0) % 2 == 1
    return np.where(inside, -nearest, nearest)


def _edge_distance2(x: Array, y: Array, starts: Array, ends: Array) -> Array:
    """Squared distances (E, *form) of the points to the edges `starts` (E, 2) to `ends` (E, 2)."""
    form = (-1,) + (1,) * x.ndim
    ax, ay, bx, by = (column.reshape(form) for column in (*starts.T, *ends.T))
    ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey + 1e-12), 0, 1)
    return (px - along * ex) ** 2 + (py - along * ey) ** 2


def union(*parts: Array) -> Array:
    """Distance to whichever part is nearest."""
    return np.minimum.reduce(parts)


def without(whole: Array, *parts: Array) -> Array:
    """`whole` with the parts cut out."""
    return np.maximum.reduce([whole, *(-part for part in parts)])


def regular_polygon(sides: int) -> Shape:
    """Polygon with equal sides, one corner up."""
    angle = np.pi / 2 + 2 * np.pi * np.arange(sides) / sides
    corners = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return lambda x, y: polygon(x, y, corners)


def regular_star(points: int) -> Shape:
    """Star with that many points; one of three is notched deeper, or it would be a triangle."""
    inner = 0.45 if points > 3 else 0.25
    angle = np.pi / 2 + np.pi * np.arange(2 * points) / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    corners = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return lambda x, y: polygon(x, y, corners)


def rosette(petals: int) -> Shape:
    """Flower with that many petals: elongated petals around an open centre."""
    angle = np.pi / 2 + 2 * np.pi * np.arange(petals) / petals
    width = min(0.34, 0.62 * np.sin(np.pi / petals))

    def shape(x: Array, y: Array) -> Array:
        leaves = [ellipse(x, y, 0.58 * np.cos(a), 0.58 * np.sin(a), 0.42, width, a) for a in angle]
        return without(union(*leaves, disc(x, y, r=0.3)), disc(x, y, r=0.17))

    return shape


def _arrow(x: Array, y: Array) -> Array:
    return polygon(x, y, [(0, 1), (0.75, 0.15), (0.3, 0.15), (0.3, -1), (-0.3, -1), (-0.3, 0.15), (-0.75, 0.15)])


def _boat(x: Array, y: Array) -> Array:
    hull = polygon(x, y, [(-1, -0.25), (1, -0.25), (0.6, -0.85), (-0.6, -0.85)])
    sail = polygon(x, y, [(0.1, 1), (0.1, -0.1), (0.85, -0.1)])
    small_sail = polygon(x, y, [(-0.1, 0.7), (-0.1, -0.1), (-0.65, -0.1)])
    return union(hull, sail, small_sail, box(x, y, 0, 0.3, 0.06, 0.7))


def _bottle(x: Array, y: Array) -> Array:
    body = box(x, y, 0, -0.42, 0.36, 0.5) - 0.08
    return union(body, box(x, y, 0, 0.5, 0.15, 0.5), box(x, y, 0, 0.92, 0.23, 0.09))


def _butterfly(x: Array, y: Array) -> Array:
    wings = [ellipse(x, y, side * 0.52, 0.38, 0.56, 0.36, side * 0.6) for side in (-1, 1)]
    tails = [ellipse(x, y, side * 0.42, -0.48, 0.42, 0.3, -side * 0.7) for side in (-1, 1)]
    return union(*wings, *tails, ellipse(x, y, 0, 0, 0.11, 0.8))


def _car(x: Array, y: Array) -> Array:
    cabin = polygon(x, y, [(-0.55, 0.05), (-0.35, 0.6), (0.3, 0.6), (0.6, 0.05)])
    windows = [box(x, y, -0.19, 0.28, 0.14, 0.14), box(x, y, 0.2, 0.28, 0.14, 0.14)]
    body = without(union(box(x, y, 0, -0.15, 1, 0.27), cabin), *windows)
    wheels = [without(disc(x, y, side * 0.55, -0.42, 0.29), disc(x, y, side * 0.55, -0.42, 0.1)) for side in (-1, 1)]
    return union(body, *wheels)


def _cross(x: Array, y: Array) -> Array:
    return union(box(x, y, 0, 0, 0.92, 0.3), box(x, y, 0, 0, 0.3, 0.92))


def _fish(x: Array, y: Array) -> Array:
    tail = polygon(x, y, [(0.35, 0), (1, 0.55), (0.85, 0), (1, -0.55)])
    return without(union(ellipse(x, y, -0.25, 0, 0.75, 0.48), tail), disc(x, y, -0.62, 0.12, 0.12))


def _hammer(x: Array, y: Array) -> Array:
    claw = polygon(x, y, [(-0.4, 0.9), (-0.4, 0.42), (-0.95, 0.35)])
    return union(box(x, y, 0, -0.2, 0.14, 0.8), box(x, y, 0.12, 0.66, 0.6, 0.26), claw)


def _heart(x: Array, y: Array) -> Array:
    t = 2 * np.pi * np.arange(28) / 28
    up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return polygon(x, y, np.stack([np.sin(t) ** 3, (up + 2.5) / 15.5], axis=1))


def _hourglass(x: Array, y: Array) -> Array:
    glass = polygon(x, y, [(-0.65, 0.9), (0.65, 0.9), (0.08, 0), (0.65, -0.9), (-0.65, -0.9), (-0.08, 0)])
    return union(glass, box(x, y, 0, 0.9, 0.75, 0.1), box(x, y, 0, -0.9, 0.75, 0.1))


def _house(x: Array, y: Array) -> Array:
    door, window = box(x, y, -0.2, -0.62, 0.15, 0.35), box(x, y, 0.32, -0.3, 0.14, 0.15)
    walls = without(box(x, y, 0, -0.4, 0.66, 0.55), door, window)
    return union(walls, polygon(x, y, [(-0.95, 0.12), (0, 1), (0.95, 0.12)]))


def _key(x: Array, y: Array) -> Array:
    bow = without(disc(x, y, 0, 0.55, 0.45), disc(x, y, 0, 0.55, 0.2))
    bits = [box(x, y, 0.25, -0.88, 0.2, 0.11), box(x, y, 0.22, -0.5, 0.17, 0.1)]
    return union(bow, box(x, y, 0, -0.4, 0.11, 0.6), *bits)


def _moon(x: Array, y: Array) -> Array:
    return without(disc(x, y, -0.1, 0, 0.95), disc(x, y, 0.38, 0.1, 0.78))


def _mushroom(x: Array, y: Array) -> Array:
    cap = np.maximum(ellipse(x, y, 0, 0.1, 0.95, 0.85), 0.05 - y)
    return union(cap, box(x, y, 0, -0.45, 0.24, 0.5) - 0.05)


def _tree(x: Array, y: Array) -> Array:
    tiers = [polygon(x, y, [(0, top), (w, top - 0.75), (-w, top - 0.75)]) for top, w in ((1, 0.55), (0.5, 0.8))]
    return union(*tiers, box(x, y, 0, -0.6, 0.16, 0.4))


def _umbrella(x: Array, y: Array) -> Array:
    scallops = [disc(x, y, cx, 0.02, 0.2) for cx in (-0.64, 0, 0.64)]
    canopy = without(np.maximum(disc(x, y, 0, 0.02, 0.95), -y), *scallops)
    return union(canopy, strokes(x, y, [[(0, 0.3), (0, -0.75), (0.12, -0.9), (0.3, -0.85), (0.36, -0.68)]], 0.08))


OBJECTS: dict[str, Shape] = {
    "arrow": _arrow,
    "boat": _boat,
    "bottle": _bottle,
    "butterfly": _butterfly,
    "car": _car,
    "circle": lambda x, y: disc(x, y, r=0.9),
    "cross": _cross,
    "diamond": lambda x, y: polygon(x, y, [(0, 1), (0.66, 0), (0, -1), (-0.66, 0)]),
    "fish": _fish,
    "flower": rosette(5),
    "hammer": _hammer,
    "heart": _heart,
    "hourglass": _hourglass,
    "house": _house,
    "key": _key,
    "moon": _moon,
    "mushroom": _mushroom,
    "oval": lambda x, y: ellipse(x, y, 0, 0, 0.98, 0.56),
    "ring": lambda x, y: np.abs(disc(x, y, r=0.7)) - 0.21,
    "square": lambda x, y: box(x, y, 0, 0, 0.78, 0.78),
    "star": regular_star(5),
    "tree": _tree,
    "triangle": lambda x, y: polygon(x, y, [(0, 0.92), (0.95, -0.72), (-0.95, -0.72)]),
    "umbrella": _umbrella,
}


def _arc(cx: float, cy: float, w: float, h: float, start: float, stop: float, n: int = 9) -> list[tuple[float, float]]:
    """Points of an elliptic arc; angles in degrees, counted from the right, positive upwards."""
    angle = np.radians(np.linspace(start, stop, n))
    return [(cx + w * np.cos(a), cy + h * np.sin(a)) for a in angle]


# Each digit is one or more ways of writing it; each way is a list of polylines.
DIGITS: tuple[tuple[tuple[Points, ...], ...], ...] = (
    ((_arc(0, 0, 0.55, 0.9, 90, 450, 14),),),
    (
        ([(-0.3, 0.5), (0.08, 0.9), (0.08, -0.9)],),
        ([(0, 0.9), (0, -0.9)],),
        ([(-0.35, 0.45), (0.05, 0.9), (0.05, -0.9)], [(-0.4, -0.9), (0.5, -0.9)]),
    ),
    (([*_arc(0, 0.42, 0.5, 0.48, 160, -35), (-0.5, -0.9), (0.6, -0.9)],),),
    (
        ([*_arc(0, 0.46, 0.48, 0.44, 150, -90), *_arc(0, -0.44, 0.54, 0.46, 90, -150)],),
        ([(-0.5, 0.9), (0.45, 0.9), (-0.05, 0.15), *_arc(0, -0.38, 0.52, 0.52, 80, -150)],),
    ),
    (
        ([(0.3, -0.9), (0.3, 0.9), (-0.6, -0.25), (0.65, -0.25)],),
        ([(-0.45, 0.9), (-0.5, 0.0), (0.5, 0.0)], [(0.42, 0.75), (0.35, -0.9)]),
    ),
    (([(0.5, 0.9), (-0.4, 0.9), (-0.46, 0.12), *_arc(0, -0.32, 0.52, 0.56, 125, -150)],),),
    (([*_arc(0.45, 0.1, 0.92, 0.85, 100, 190, 6), *_arc(0.02, -0.42, 0.5, 0.48, 180, 540, 12)],),),
    (
        ([(-0.55, 0.88), (0.55, 0.88), (-0.12, -0.9)],),
        ([(-0.5, 0.88), (0.55, 0.88), (-0.05, -0.9)], [(-0.35, 0.0), (0.5, 0.0)]),
    ),
    (([*_arc(0, 0.46, 0.42, 0.43, -90, 270, 12), *_arc(0, -0.44, 0.5, 0.46, 90, -270, 12)],),),
    (
        ([*_arc(-0.02, 0.42, 0.48, 0.46, 0, 360, 12), (0.4, -0.9)],),
        ([*_arc(-0.02, 0.42, 0.48, 0.46, 0, 360, 12), *_arc(-0.45, -0.05, 0.92, 0.85, 10, -70, 6)],),
    ),
)


def handwritten(digit: int, rng: np.random.Generator) -> Shape:
    """A digit in one of the ways of writing it, with a shaky pen, a slant and a pen width of its own."""
    ways = DIGITS[digit]
    way = ways[int(rng.integers(len(ways)))]
    slant, width, pen = rng.uniform(-0.1, 0.35), rng.uniform(0.75, 1.3), rng.uniform(0.1, 0.26)
    lines = []
    for line in way:
        points = np.asarray(line) + rng.normal(0, 0.05, (len(line), 2))
        lines.append(np.stack([points[:, 0] * width + slant * points[:, 1], points[:, 1]], axis=1))
    return lambda x, y: strokes(x, y, lines, pen)
