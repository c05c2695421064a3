"""Images and video frames of a program, as base64 with their type."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhizome.lang.errors import LanguageError

_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)  # fmt: skip
MAX_FRAMES = 256


@dataclass(frozen=True, slots=True)
class Media:
    """One picture: its data inline, or a URL for the server to fetch."""

    url: str

    def __repr__(self) -> str:
        return f"Media({self.url[:40]}...)" if len(self.url) > 40 else f"Media({self.url})"


def load_image(source: Any) -> Media:
    """An image from a path, an http(s) or data URL, bytes, or an object with PIL's `save`.

    Raises:
        LanguageError: it is none of these, or no picture.
    """
    if isinstance(source, Media):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return _inline(bytes(source), "bytes")
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        return Media(source)
    if isinstance(source, str | Path):
        try:
            return _inline(Path(source).expanduser().read_bytes(), str(source))
        except OSError as fault:
            raise LanguageError(f"image {source}: {fault.strerror or fault}") from fault
    if callable(getattr(source, "save", None)):
        buffer = io.BytesIO()
        source.save(buffer, format="PNG")
        return _inline(buffer.getvalue(), "picture object")
    raise LanguageError(f"image: give a path, a URL, bytes or a PIL image, not {type(source).__name__}")


def load_video(path: str, num_frames: int) -> list[Media]:
    """Evenly spread frames of a video file, as JPEG. Needs PyAV and Pillow.

    Raises:
        LanguageError: the packages are missing, the file cannot be read, or it has no frames.
    """
    if not 1 <= num_frames <= MAX_FRAMES:
        raise LanguageError(f"video: num_frames is 1 to {MAX_FRAMES}, got {num_frames}")
    try:
        import av
    except ImportError as fault:
        raise LanguageError("video frames need PyAV and Pillow: pip install 'rhizome[video]'") from fault
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            count = stream.frames or sum(1 for _ in container.decode(stream))
            container.seek(0)
            wanted = {round(i * (count - 1) / max(num_frames - 1, 1)) for i in range(num_frames)}
            decoded: Any = container.decode(stream)
            frames = [frame.to_image() for i, frame in enumerate(decoded) if i in wanted]
    except (OSError, IndexError, av.FFmpegError) as fault:
        raise LanguageError(f"video {path}: {fault}") from fault
    if not frames:
        raise LanguageError(f"video {path}: no frames")
    out = []
    for frame in frames:
        buffer = io.BytesIO()
        frame.save(buffer, format="JPEG", quality=90)
        out.append(_inline(buffer.getvalue(), path))
    return out


def _inline(data: bytes, name: str) -> Media:
    kind = next((mime for magic, mime in _MAGIC if data.startswith(magic)), None)
    if kind is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        raise LanguageError(f"image {name}: not a JPEG, PNG, GIF, WebP or BMP picture")
    return Media(f"data:{kind};base64,{base64.b64encode(data).decode()}")
