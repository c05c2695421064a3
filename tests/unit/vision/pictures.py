"""Small pictures and damaged ones, made as they are needed."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(
    width: int = 16, height: int = 16, color: Any = 128, form: str = "PNG", mode: str = "RGB", **more: Any
) -> bytes:
    """An image of one colour as a file."""
    if mode == "RGB" and isinstance(color, int):
        color = (color,) * 3
    out = io.BytesIO()
    Image.new(mode, (width, height), color).save(out, form, **more)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to nothing in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0")) + _chunk(b"IEND", b"")


def video(frames: int = 20, width: int = 64, height: int = 48, rate: int = 10, form: str = "mp4") -> bytes:
    """Grey frames that become lighter by 8 each."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            pixels = np.full((height, width, 3), i * 8 % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
