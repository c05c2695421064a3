"""Bytes of an image to RGB pixels. Whatever the sender calls it, the first bytes decide, among a few formats.

Size is checked from the header, before a pixel is decoded. Pure and blocking: called in the decode threads.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from shared.errors import InvalidRequest

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
Image.MAX_IMAGE_PIXELS = None  # ours is checked below for every image, and is an error instead of a warning
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on damaged files."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Most pixels and longest side of an image."""

    pixels: int
    side: int


def read_size(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """(width, height) as stored, from the header alone.

    Raises:
        InvalidRequest: not an image, or a larger one than is decoded.
    """
    with _opened(data) as image:
        width, height = image.size
    check_size(width, height, limits)
    return width, height


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuse what is too large to decode."""
    if width < 1 or height < 1:
        raise InvalidRequest(f"an image of {width} x {height} pixels is empty")
    if max(width, height) > limits.side:
        raise InvalidRequest(
            f"an image of {width:,} x {height:,} pixels is over the limit of {limits.side:,} on a side: make it smaller"
        )
    if width * height > limits.pixels:
        raise InvalidRequest(
            f"an image of {width:,} x {height:,} pixels is over the limit of {limits.pixels:,} pixels: make it smaller"
        )


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """The first frame, upright (EXIF), on white where it is transparent, as 8-bit RGB.

    Raises:
        InvalidRequest: not an image, damaged or cut short, or too large.
    """
    with _opened(data) as image:
        check_size(*image.size, limits)
        try:
            image.load()
            return _rgb(_upright(image))
        except _BROKEN as fault:
            raise InvalidRequest(f"the image is damaged or incomplete: {str(fault)[:200]}") from fault


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except _BROKEN as fault:
        kinds = ", ".join(FORMATS)
        raise InvalidRequest(f"the data is not an image that can be read ({kinds}): it {_looks(data)}") from fault


def _looks(data: bytes) -> str:
    start = data[:256].lstrip().lower()
    if not data:
        return "is empty"
    if start.startswith((b"<svg", b"<?xml")):
        return "looks like SVG or XML: render it to PNG first"
    if start.startswith((b"<!doctype", b"<html")):
        return "looks like a web page: give the address of the image itself"
    if start[4:8] == b"ftyp" or start.startswith(b"\x1a\x45\xdf\xa3"):
        return "looks like a video, AVIF or HEIC"
    return f"begins with {data[:8].hex(' ')}"


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image  # unreadable EXIF says nothing about the pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip at 255
        levels = np.clip(np.asarray(image, np.int64), 0, 65535) >> 8
        image = Image.fromarray(levels.astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
