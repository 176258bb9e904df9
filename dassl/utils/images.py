"""Image files as 8-bit RGB: what each mode and format means (the table is in docs/DATASETS.md)."""

import errno
import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

DAMAGE = (  # what Pillow's decoders raise on damaged and foreign files
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, MemoryError, struct.error,
    zlib.error,
)  # fmt: skip
SUFFIXES = (  # of files that are taken for images without a look into them, in lower case
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".pbm", ".pgm",
    ".ppm", ".pnm", ".pfm", ".jp2", ".j2k", ".tga", ".avif",
)  # fmt: skip
BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT, SMALLEST, LARGEST = 258, 262, 284, 339, 340, 341  # TIFF tags
WHITE_IS_ZERO, PLANES, SIGNED = 0, 2, 2  # values of three of them


def read_image(path: str) -> Image.Image:
    """Read an image file as RGB with 8 bits per channel, by :func:`to_rgb`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image that Pillow can read, or its brightness has no defined meaning; the message
            names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "No image file", path) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f'cannot read the image "{path}": {too_large()}') from error
    except DAMAGE as error:
        raise ValueError(f'cannot read the image "{path}": {error}') from error


def as_rgb(image: Any, name: str = "the image") -> Image.Image:
    """Return an image in any form as RGB with 8 bits per channel.

    Args:
        image: the path of a file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W) of RGB, uint8 or floats from
            0 (black) to 1 (white), which are rounded to 8 bits.
        name: of the image, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or has another shape, type or range.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image))
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except DAMAGE as error:
            raise ValueError(f"{name} cannot be read: {error}") from error
    from torch import Tensor  # takes seconds, and nobody who reads files needs it

    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(f"{name} is a {type(image).__name__}: give a path, a Pillow image, an array or a tensor")
    values = image.detach().cpu().float().numpy() if isinstance(image, Tensor) and image.is_floating_point() else image
    values = np.asarray(values)
    if isinstance(image, Tensor) and values.ndim == 3:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] != 3 or 0 in values.shape:
        wanted = "a tensor (3, H, W)" if isinstance(image, Tensor) else "an array (H, W, 3)"
        raise ValueError(f"{name} has the shape {tuple(image.shape)}: {wanted} of RGB is wanted")
    return Image.fromarray(_bytes(values, name))


def _bytes(values: np.ndarray, name: str) -> np.ndarray:
    """Return samples as uint8; ValueError for another type or range."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind != "f":
        raise ValueError(f"{name} has samples of type {values.dtype}: give uint8, or floats from 0 to 1")
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        low, high = values.min(), values.max()
        raise ValueError(f"{name} has samples from {low:g} to {high:g}: floats are from 0 (black) to 1 (white)")
    return np.rint(values * 255).astype(np.uint8)


def is_image_file(path: str) -> bool:
    """Return whether a file is an image by its ending, in any case, or else by its first bytes."""
    if path.lower().endswith(SUFFIXES):
        return True
    try:
        with Image.open(path):
            return True
    except Image.DecompressionBombError:
        return True
    except DAMAGE:
        return False


def too_large() -> str:
    """Return why an image beyond Pillow's limit is refused."""
    return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, the limit of Pillow (Image.MAX_IMAGE_PIXELS)"


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image as RGB: the first frame, without transparency, wide channels scaled to 8 bits.

    Raises:
        ValueError: samples that have no defined brightness (negative, NaN, between two ranges), LAB, or 16-bit planes,
            which Pillow reads wrongly.
    """
    tags = getattr(image, "tag_v2", {})
    if image.mode == "LAB":  # what becomes of it depends on the version of Pillow
        raise ValueError("its colours are LAB: convert it to RGB")
    if _several(tags.get(SAMPLE_FORMAT, 1))[0] == SIGNED and _several(tags.get(BITS, 8))[0] < 32:
        raise ValueError("it has signed samples, and which of them are black and white is not defined: convert it")
    if tags.get(PLANAR) == PLANES and max(_several(tags.get(BITS, 8))) > 8:
        raise ValueError("its channels are stored in planes of more than 8 bits: convert it to 8 bits")
    if is_wide(image):
        image = _eight_bits(image, tags)
    elif image.mode == "P":  # Pillow warns of a palette with transparency on the direct way, whose colours are the same
        image = image.convert("RGBA")
    return image.convert("RGB")


def is_wide(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits per sample as Pillow opens it."""
    return image.mode.startswith(("I", "F"))


def has_deep_colours(image: Image.Image) -> bool:
    """Return whether an opened image, not yet read, has 16 bits per channel of which Pillow keeps the upper 8."""
    return not is_wide(image) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _several(value: Any) -> tuple[Any, ...]:
    """Return the value of a TIFF tag as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def _eight_bits(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Return a grey image of wide samples as mode L."""
    values = np.asarray(image)
    low, high = value_range(image, values, tags)
    if values.dtype.kind == "f":
        levels = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
    else:
        levels = (values.astype(np.int64) - low) * 256 // (high - low + 1)  # the high byte, as of RGB
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = 255 - levels
    return Image.fromarray(levels.astype(np.uint8))


def value_range(image: Image.Image, values: np.ndarray, tags: Mapping[int, Any]) -> tuple[Any, Any]:
    """Return the values that are black and white.

    They are those that the file declares (bits per sample of unsigned integers, SMinSampleValue and SMaxSampleValue of
    others); else black is 0 and white the first of 1 (floats only), 255 and 65535 that no value exceeds.

    Args:
        image: of mode I, F or one of the 16-bit modes.
        values: its samples, (H, W).
        tags: those of a TIFF file, by number.

    Raises:
        ValueError: the values do not fit.
    """
    if not np.isfinite(values).all():
        raise ValueError("it has samples that are NaN or infinite: convert it to 8 bits")
    smallest, largest = values.min(), values.max()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        high = 2 ** _several(tags.get(BITS, 16))[0] - 1
        if 0 < largest < (high + 1) // 256:
            raise ValueError(f"all of it would be black: its values end at {largest} of {high}; convert it to 8 bits")
        return 0, high
    declared = [_several(tags.get(tag, ()))[:1] for tag in (SMALLEST, LARGEST)]
    if all(declared):
        low, high = declared[0][0], declared[1][0]
        if not low <= smallest <= largest <= high or low == high:
            raise ValueError(f"it declares values from {low} to {high}, but has {smallest} to {largest}")
        return low, high
    steps = (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
    high = next((step for step in steps if largest <= step), None)
    if smallest < 0 or high is None or any(step < largest < 2 * step for step in steps if step != high):
        raise ValueError(
            f"which of its values, {smallest} to {largest}, are black and white is not defined: convert it to 8 bits"
        )
    return 0, high
