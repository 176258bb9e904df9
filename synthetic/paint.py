"""Colours, textures, false-colour palettes, and putting shapes onto a canvas.

Legend: S is the side of a canvas in pixels; a canvas is (S, S, 3), a mask or pattern (S, S), all float32 in [0, 1].
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from synthetic.shapes import Array, Shape

SIZE = 32

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.97, 0.90, 0.15),
    "green": (0.13, 0.62, 0.20),
    "cyan": (0.20, 0.85, 0.88),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.52, 0.15, 0.68),
    "pink": (0.98, 0.55, 0.75),
    "brown": (0.45, 0.27, 0.12),
    "black": (0.05, 0.05, 0.06),
    "gray": (0.52, 0.52, 0.54),
    "white": (0.96, 0.96, 0.95),
}

TEXTURES = ("striped", "dotted", "checkered", "grid", "zigzag", "wavy", "speckled", "brick", "ringed", "woven")

# Cold to hot, as an infrared camera paints it.
_THERMAL = np.array(
    [(0.01, 0.01, 0.12), (0.30, 0.02, 0.50), (0.75, 0.12, 0.45), (0.96, 0.45, 0.12), (0.99, 0.82, 0.18), (1, 1, 0.85)],
    np.float32,
)


@lru_cache(maxsize=4)
def pixel_grid(size: int = SIZE) -> tuple[Array, Array]:
    """Pixel centres: x to the right and y upwards, each (S, S), the whole picture being [-1, 1]."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = np.meshgrid(line, -line)
    return x, y


def placed(shape: Shape, x: float, y: float, scale: float, turn: float, mirror: bool = False) -> Array:
    """Distances (S, S), in pixels, of a shape put at (x, y) with that half size and rotation in radians."""
    grid_x, grid_y = pixel_grid()
    c, s = np.float32(np.cos(turn) / scale), np.float32(np.sin(turn) / scale)
    dx, dy = grid_x - np.float32(x), grid_y - np.float32(y)
    u, v = c * dx + s * dy, c * dy - s * dx
    return shape(-u if mirror else u, v) * np.float32(scale * SIZE / 2)


def coverage(distance: Array, soft: float = 1.0) -> Array:
    """How much of each pixel lies inside: an edge of `soft` pixels around the border."""
    return np.clip(0.5 - distance / soft, 0, 1)


def mix(under: Array, over: Array, mask: Array) -> Array:
    """Paint `over` (canvas or one colour) onto the canvas `under` where `mask` (S, S) says."""
    return under + (over - under) * mask[..., None]


def jittered(name: str, rng: np.random.Generator, spread: float = 0.05) -> Array:
    """A colour (3,) of that name, a little different each time."""
    colour = np.asarray(COLOURS[name]) * rng.uniform(0.88, 1.05) + rng.normal(0, spread, 3)
    return np.clip(colour, 0, 1).astype(np.float32)


def contrast(first: str, second: str) -> float:
    """Distance of two named colours in RGB, green counting double."""
    difference = np.subtract(COLOURS[first], COLOURS[second]) * (0.8, 1.1, 0.7)
    return float(np.sqrt((difference**2).sum()))


def texture(kind: str, period: float, rng: np.random.Generator) -> Array:
    """A pattern (S, S) of one of the TEXTURES, repeating after `period` pixels, at a random angle and phase."""
    x, y = pixel_grid()
    angle = rng.uniform(0, np.pi) if kind in ("striped", "wavy", "zigzag") else rng.uniform(-0.3, 0.3)
    scale = SIZE / 2 / period
    c, s = np.float32(np.cos(angle) * scale), np.float32(np.sin(angle) * scale)
    u = c * x + s * y + np.float32(rng.uniform())
    v = c * y - s * x + np.float32(rng.uniform())
    wave = _PATTERNS[kind](u, v, rng)
    return np.clip(0.5 + wave * np.float32(period / 4), 0, 1)


def _tri(t: Array) -> Array:
    """Triangle wave of period 1 between -1 and 1."""
    return 4 * np.abs(t - np.floor(t) - 0.5) - 1


def _cell(t: Array) -> Array:
    """Offset from the middle of the unit cell, in [-0.5, 0.5]."""
    return t - np.floor(t) - 0.5


def _brick(u: Array, v: Array, rng: np.random.Generator) -> Array:
    row = np.floor(2 * v)
    joint = np.minimum(0.5 - np.abs(_cell(2 * v)), (0.5 - np.abs(_cell(u + 0.5 * (row % 2)))) * 2)
    return 4 * (joint - 0.16)


def _ringed(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return _tri(np.hypot(u - np.float32(rng.uniform(-1, 1)), v - np.float32(rng.uniform(-1, 1))))


def _speckled(u: Array, v: Array, rng: np.random.Generator) -> Array:
    """Blots of random place: one per unit cell, nearest of the neighbouring cells' blots."""
    x0, y0 = int(np.floor(u.min())) - 1, int(np.floor(v.min())) - 1
    columns, rows = int(np.ceil(u.max())) + 2 - x0, int(np.ceil(v.max())) + 2 - y0
    place = rng.uniform(0.1, 0.9, (columns, rows, 3)).astype(np.float32)
    cu, cv = np.floor(u).astype(int), np.floor(v).astype(int)
    wave = np.full(u.shape, -1, np.float32)
    for du in (-1, 0, 1):
        for dv in (-1, 0, 1):
            px, py, size = np.moveaxis(place[cu + du - x0, cv + dv - y0], -1, 0)
            wave = np.maximum(wave, 4 * (0.12 + 0.25 * size - np.hypot(u - cu - du - px, v - cv - dv - py)))
    return wave


def _woven(u: Array, v: Array, rng: np.random.Generator) -> Array:
    over = (np.floor(u) + np.floor(v)) % 2 == 0
    return np.where(over, _tri(2 * u), _tri(2 * v))


_PATTERNS = {
    "striped": lambda u, v, rng: _tri(u),
    "dotted": lambda u, v, rng: 4 * (0.3 - np.hypot(_cell(u), _cell(v))),
    "checkered": lambda u, v, rng: _tri(u) * _tri(v) * 2,
    "grid": lambda u, v, rng: 4 * (np.maximum(np.abs(_cell(u)), np.abs(_cell(v))) - 0.36),
    "zigzag": lambda u, v, rng: _tri(u + 0.5 * np.abs(_tri(0.5 * v))),
    "wavy": lambda u, v, rng: _tri(u + 0.3 * np.sin(2 * np.pi * 0.6 * v)),
    "speckled": _speckled,
    "brick": _brick,
    "ringed": _ringed,
    "woven": _woven,
}


def gradient(first: Array, second: Array, rng: np.random.Generator) -> Array:
    """Canvas that runs from one colour to another in a random direction."""
    x, y = pixel_grid()
    angle = rng.uniform(0, 2 * np.pi)
    along = np.clip(0.5 + 0.5 * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y), 0, 1)
    return mix(np.broadcast_to(first, (SIZE, SIZE, 3)), second, along)


def thermal(heat: Array) -> Array:
    """False colours (S, S, 3) of a heat map (S, S)."""
    place = np.clip(heat, 0, 1) * (len(_THERMAL) - 1)
    below = np.minimum(place.astype(int), len(_THERMAL) - 2)
    return _THERMAL[below] + (_THERMAL[below + 1] - _THERMAL[below]) * (place - below)[..., None]


def finished(canvas: Array, rng: np.random.Generator, noise: float, blur: float = 0.0) -> Array:
    """Blur (radius in pixels), add noise, and round to bytes: (S, S, 3) uint8."""
    grain = rng.standard_normal((*canvas.shape[:2], 3), dtype=np.float32) * np.float32(noise * 255)
    picture = np.clip(canvas * 255, 0, 255)
    if blur:
        smooth = Image.fromarray(picture.astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
        picture = np.asarray(smooth, np.float32)
    return np.clip(picture + grain, 0, 255).round().astype(np.uint8)
