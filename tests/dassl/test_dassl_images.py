"""Every image mode has its decided meaning: the pixels of the 8-bit original, or a refusal that names the file."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from dassl.utils import read_image
from dassl.utils.images import to_rgb

SHAPE = (4, 6)


def tiff(
    samples: np.ndarray, planes: bool = False, photometric: int = 1, sample_format: int = 1, **more: float
) -> bytes:
    """An uncompressed little-endian TIFF of samples (H, W, C); `more` are float tags by name."""
    height, width, channels = samples.shape
    data = np.ascontiguousarray(samples.transpose(2, 0, 1) if planes else samples).tobytes()
    strips = channels if planes else 1
    per_strip = len(data) // strips
    bits = samples.dtype.itemsize * 8
    shorts = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [photometric], 277: [channels],
              278: [height], 284: [2 if planes else 1], 339: [sample_format] * channels}  # fmt: skip
    longs = {273: [0] * strips, 279: [per_strip] * strips}
    floats = {{"smallest": 340, "largest": 341}[name]: [value] for name, value in more.items()}
    kinds = ((3, shorts), (4, longs), (11, floats))
    entries = [(tag, kind, values) for kind, tags in kinds for tag, values in tags.items()]
    codes, sizes = {3: "H", 4: "I", 11: "f"}, {3: 2, 4: 4, 11: 4}
    start = 8 + 2 + 12 * len(entries) + 4
    place = start + sum(sizes[kind] * len(values) for _, kind, values in entries if sizes[kind] * len(values) > 4)
    longs[273][:] = [place + strip * per_strip for strip in range(strips)]
    table, long_values = b"", b""
    for tag, kind, values in sorted(entries):
        packed = struct.pack(f"<{len(values)}{codes[kind]}", *values)
        table += struct.pack("<HHI", tag, kind, len(values))
        table += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", start + len(long_values))
        long_values += packed if len(packed) > 4 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + long_values + data


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(to_rgb(image))


def grey(v: np.ndarray) -> np.ndarray:
    return np.repeat(v[:, :, None], 3, axis=2)


def palette_of(v: np.ndarray) -> Image.Image:
    image = Image.fromarray(v, "L").convert("P")
    image.putpalette(bytes(np.repeat(np.arange(256, dtype=np.uint8), 3)))
    return image


def as_floats(v: np.ndarray) -> np.ndarray:
    return v.astype("<f4")[:, :, None]


def with_alpha(v: np.ndarray) -> Image.Image:
    return Image.merge("LA", [Image.fromarray(v), Image.fromarray(v[::-1].copy())])


GREY = {  # how the 8-bit picture v (H, W) is written
    "8 bits": lambda v: saved(Image.fromarray(v), "PNG"),
    "16-bit PNG, v * 257": lambda v: saved(Image.fromarray(v * np.uint16(257)), "PNG"),
    "16-bit PNG, v * 256": lambda v: saved(Image.fromarray(v * np.uint16(256)), "PNG"),
    "16-bit TIFF": lambda v: saved(Image.fromarray(v * np.uint16(257)), "TIFF"),
    "16-bit TIFF, compressed": lambda v: saved(Image.fromarray(v * np.uint16(257)), "TIFF", compression="tiff_lzw"),
    "16-bit TIFF, big-endian": lambda v: saved(Image.fromarray((v * np.uint16(257)).astype(">u2")), "TIFF"),
    "16-bit TIFF, white is zero": lambda v: tiff((65535 - v * np.uint16(257))[:, :, None], photometric=0),
    "16-bit PGM": lambda v: b"P5 6 4 65535 " + (v * np.uint16(257)).astype(">u2").tobytes(),
    "32-bit TIFF of 8-bit values": lambda v: saved(Image.fromarray(v.astype(np.int32)), "TIFF"),
    "32-bit TIFF of 16-bit values": lambda v: saved(Image.fromarray(v.astype(np.int32) * 257), "TIFF"),
    "float TIFF to 1": lambda v: saved(Image.fromarray(v.astype(np.float32) / 255), "TIFF"),
    "float TIFF to 255": lambda v: saved(Image.fromarray(v.astype(np.float32)), "TIFF"),
    "float TIFF to 65535": lambda v: saved(Image.fromarray(v.astype(np.float32) * 257), "TIFF"),
    "float TIFF, white is zero": lambda v: tiff(as_floats(1 - v / 255), photometric=0, sample_format=3),
    "float TIFF, declared -1 to 1": lambda v: tiff(as_floats(v / 127.5 - 1), sample_format=3, smallest=-1, largest=1),
    "LA PNG": lambda v: saved(with_alpha(v), "PNG"),
    "palette": lambda v: saved(palette_of(v), "PNG"),
    "palette with transparency": lambda v: saved(palette_of(v), "PNG", transparency=bytes(range(256))),
    "palette GIF with one transparent colour": lambda v: saved(palette_of(v), "GIF", transparency=7),
    "animated GIF": lambda v: saved(palette_of(v), "GIF", save_all=True, append_images=[palette_of(255 - v)]),
    "TIFF of two pages": lambda v: saved(Image.fromarray(v), "TIFF", save_all=True,
                                         append_images=[Image.fromarray(255 - v)]),
    "JPEG 2000, 16 bits": lambda v: saved(Image.fromarray(v * np.uint16(257)), "JPEG2000", irreversible=False),
}  # fmt: skip


@pytest.mark.parametrize("kind", GREY)
@given(v=arrays.arrays(np.uint8, SHAPE))
@settings(max_examples=25, deadline=None)
def test_grey_pictures_are_those_of_their_8_bit_original(kind, v):
    v[0, 0] = 255  # a range that the values alone decide needs a bright one
    v[0, 1] = 0
    assert np.array_equal(read(GREY[kind](v)), grey(v))


COLOUR = {  # how the 8-bit picture v (H, W, 3) is written
    "PNG": lambda v: saved(Image.fromarray(v), "PNG"),
    "BMP": lambda v: saved(Image.fromarray(v), "BMP"),
    "16-bit TIFF": lambda v: tiff(v * np.uint16(257), photometric=2),
    "8-bit TIFF in planes": lambda v: tiff(v, planes=True, photometric=2),
    "RGBA PNG": lambda v: saved(Image.fromarray(np.dstack([v, v[:, ::-1, :1]])), "PNG"),
    "RGBA TIFF": lambda v: saved(Image.fromarray(np.dstack([v, v[:, ::-1, :1]])), "TIFF"),
    "WebP": lambda v: saved(Image.fromarray(v), "WEBP", lossless=True),
    "animated WebP": lambda v: saved(Image.fromarray(v), "WEBP", lossless=True, save_all=True,
                                     append_images=[Image.fromarray(255 - v)]),
    "animated PNG": lambda v: saved(Image.fromarray(v), "PNG", save_all=True, append_images=[Image.fromarray(255 - v)]),
    "CMYK TIFF": lambda v: saved(Image.fromarray(np.dstack([255 - v, np.zeros_like(v[:, :, :1])]), "CMYK"), "TIFF"),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLOUR)
@given(v=arrays.arrays(np.uint8, (*SHAPE, 3)))
@settings(max_examples=15, deadline=None)
def test_colour_pictures_are_those_of_their_8_bit_original(kind, v):
    assert np.array_equal(read(COLOUR[kind](v)), v)


@given(arrays.arrays(np.bool_, SHAPE))
@settings(max_examples=15, deadline=None)
def test_one_bit_is_black_and_white(v):
    for form in ("PNG", "TIFF", "BMP", "GIF"):
        assert np.array_equal(read(saved(Image.fromarray(v), form)), grey(v * np.uint8(255)))


def test_the_orientation_of_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    v = np.arange(72, dtype=np.uint8).reshape(*SHAPE, 3)
    assert np.array_equal(read(saved(Image.fromarray(v), "PNG", exif=exif)), v)


def test_the_orientation_of_a_tiff_is_followed_as_pillow_does():
    v = np.arange(72, dtype=np.uint8).reshape(*SHAPE, 3)
    turned = np.rot90(v, -1)  # 6: the first row is the right-hand side
    assert np.array_equal(read(saved(Image.fromarray(v), "TIFF", tiffinfo={274: 6})), turned)


def floats(*values: float) -> bytes:
    return saved(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")


def integers(*values: int) -> bytes:
    return saved(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF")


REFUSED = {
    "NaN": (floats(0.5, float("nan")), "NaN"),
    "infinite": (floats(0.5, float("inf")), "infinite"),
    "negative float": (floats(-0.2, 0.7), "black and white is not defined"),
    "a little above 1": (floats(0.0, 1.2), "black and white is not defined"),
    "beyond 16 bits": (floats(0.0, 1e6), "black and white is not defined"),
    "negative integer": (integers(-3, 100), "black and white is not defined"),
    "32 bits": (integers(0, 2**30), "black and white is not defined"),
    "8-bit values in 16 bits": (saved(Image.fromarray(np.array([[0, 200]], dtype=np.uint16)), "PNG"), "would be black"),
    "signed 8 bits": (tiff(np.array([[[5], [-3]]], dtype="i1"), sample_format=2), "is not defined"),
    "LAB": (saved(Image.new("RGB", (2, 2), "red").convert("LAB"), "TIFF"), "LAB"),
    "signed 16 bits": (tiff(np.array([[[5], [30000]]], dtype="<i2"), sample_format=2), "is not defined"),
    "16-bit planes": (tiff(np.full((2, 2, 3), 40000, dtype="<u2"), planes=True, photometric=2), "planes"),
    "outside of what it declares": (
        tiff(np.array([[[0.0], [3.0]]], dtype="<f4"), sample_format=3, smallest=0, largest=1), "declares values"
    ),
    "not an image": (b"<html>moved</html>", "cannot identify"),
    "cut off": (saved(Image.effect_noise((64, 64), 50), "PNG")[:900], "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_defined_brightness_is_refused_by_name(kind, tmp_path):
    content, reason = REFUSED[kind]
    path = tmp_path / "picture.tif"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_image(str(path))
    assert str(path) in str(caught.value)


def test_a_black_picture_of_16_bits_is_black():
    assert not read(saved(Image.fromarray(np.zeros(SHAPE, dtype=np.uint16)), "PNG")).any()


def test_a_picture_beyond_the_limit_of_pillow_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("RGB", (6, 6)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large\.png.*more than 20 pixels"):
        read_image(str(tmp_path / "large.png"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damage that it can live with
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from(sorted(SAMPLES.values()))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        image = read_image(str(path))
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017 - either is right
    else:
        assert image.mode == "RGB"


V = np.arange(24, dtype=np.uint8).reshape(SHAPE) * 10
SAMPLES = {kind: write(V) for kind, write in GREY.items()}
