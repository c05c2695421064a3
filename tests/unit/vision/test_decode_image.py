from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from services.vision.decode_image import ImageLimits, decode_image, read_size
from shared.errors import InvalidRequest
from tests.unit.vision.pictures import _chunk, picture, png_header

LIMITS = ImageLimits(pixels=1_000_000, side=2000)


def mean(data: bytes) -> list[int]:
    image = decode_image(data, LIMITS)
    assert image.mode == "RGB"
    return [round(float(v)) for v in np.asarray(image, np.float64).mean((0, 1))]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_usual_formats_are_read_whatever_they_are_called(form: str) -> None:
    data = picture(20, 10, 100, form)
    assert read_size(data, LIMITS) == (20, 10)
    assert all(abs(value - 100) <= 2 for value in mean(data))


def test_one_pixel_is_an_image() -> None:
    assert decode_image(picture(1, 1, 7), LIMITS).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (picture(color=(200, 0, 0, 0), mode="RGBA"), [255, 255, 255]),
        (picture(color=(0, 0, 0, 128), mode="RGBA"), [127, 127, 127]),
        (picture(color=(50, 0), mode="LA"), [255, 255, 255]),
        (picture(color=0x8000, mode="I;16"), [128, 128, 128]),
        (picture(color=90, mode="L"), [90, 90, 90]),
        (picture(color=1, mode="1"), [255, 255, 255]),
        (picture(color=0, mode="P", transparency=0), [255, 255, 255]),
        (picture(color=(0, 0, 0, 0), form="JPEG", mode="CMYK"), [255, 255, 255]),
    ],
    ids=["clear", "half clear", "grey and clear", "16 bits", "grey", "black or white", "palette", "CMYK"],
)
def test_every_mode_becomes_rgb_on_white(data: bytes, colour: list[int]) -> None:
    assert all(abs(a - b) <= 1 for a, b in zip(mean(data), colour, strict=True))


def test_the_first_frame_of_an_animation_counts() -> None:
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (v, v, v)) for v in (10, 200)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert mean(out.getvalue()) == [10, 10, 10]


def test_exif_turns_the_image_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data = picture(20, 10, form="JPEG", exif=exif)
    assert decode_image(data, LIMITS).size == (10, 20)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_matter() -> None:
    data = picture(20, 10, form="JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9)
    assert decode_image(data, LIMITS).size == (20, 10)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "looks like SVG"),
        (b"\n<!DOCTYPE html><html></html>", "looks like a web page"),
        (b"just words", "begins with"),
        (b"\0\0\0\x18ftypmp42", "looks like a video"),
        (b"%PDF-1.7", "begins with 25 50 44 46"),
        (b"\x89PNG\r\n\x1a\n", "is not an image"),
        (b"\xff\xd8\xff\xe0", "is not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_what_it_looks_like(data: bytes, reason: str) -> None:
    for read in (read_size, decode_image):
        with pytest.raises(InvalidRequest, match=reason):
            read(data, LIMITS)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_file_cut_short_is_refused(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, form)
    with pytest.raises(InvalidRequest, match=r"damaged or incomplete|not an image"):
        decode_image(out.getvalue()[: len(out.getvalue()) // 2], LIMITS)


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (30_000, 8, "30,000 x 8 pixels is over the limit of 2,000 on a side"),
        (1500, 1500, "over the limit of 1,000,000 pixels"),
        (2**31 - 1, 2**31 - 1, "on a side"),
        (0, 5, "not an image|is empty"),
    ],
)
def test_a_size_over_the_limits_is_refused_from_the_header(width: int, height: int, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read_size(png_header(width, height), LIMITS)
    with pytest.raises(InvalidRequest, match=reason):
        decode_image(png_header(width, height), LIMITS)


def test_a_bomb_of_zeros_is_refused_before_it_is_inflated() -> None:
    data = picture(40_000, 40_000, 0, mode="1")
    assert len(data) < 1_000_000
    with pytest.raises(InvalidRequest, match="on a side"):
        decode_image(data, LIMITS)


def test_a_bomb_in_a_text_chunk_is_refused() -> None:
    good = picture()
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 200_000_000))
    with pytest.raises(InvalidRequest):
        decode_image(good[:33] + text + good[33:], LIMITS)
