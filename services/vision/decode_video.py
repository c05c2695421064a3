"""Frames of a video to RGB pictures. Only a few containers, named to the library, which is never left to guess.

FFmpeg's guessing would reach playlists and scripts that open other files and addresses; here it gets bytes, the name
of their container, and no protocol to open anything with. Blocking: called in the decode threads.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from services.vision.decode_image import ImageLimits, check_size
from shared.errors import InvalidRequest

Sample = Callable[[float, float, int], Sequence[int]]
"""(duration in seconds, frames a second, number of frames) to the indices of those wanted."""


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """Of one video."""

    frame: ImageLimits
    pixels: int
    """In all frames taken."""
    duration_s: float
    decode_s: float
    """Wall-clock time."""


@dataclass(frozen=True, slots=True)
class Frames:
    """What was taken from a video, in order."""

    pictures: list[Image.Image]
    timestamps_s: list[float]


def decode_video(data: bytes, sample: Sample, limits: VideoLimits) -> Frames:
    """The frames that `sample` asks for.

    Raises:
        InvalidRequest: not a video, damaged, too large, too long, too slow to decode, or PyAV is not installed.
    """
    try:
        import av
    except ImportError as fault:
        raise InvalidRequest("this server reads no videos: it was installed without rhizome[video]") from fault
    deadline_s = time.monotonic() + limits.decode_s
    options = {"protocol_whitelist": "", "max_pixels": str(limits.frame.pixels)}
    try:
        with av.open(io.BytesIO(data), "r", format=_container(data), options=options) as container:
            if not container.streams.video:
                raise InvalidRequest("the video has no pictures")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if not width or not height:  # FFmpeg says so, too, when it refuses the size
                raise InvalidRequest(
                    f"the video does not say how large it is, or is over the limit of {limits.frame.pixels:,} pixels"
                )
            check_size(width, height, limits.frame)
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(limits.frame.pixels)}
            rate, count, duration_s = _extent(container, stream)
            if duration_s > limits.duration_s:
                raise InvalidRequest(
                    f"a video of {duration_s:,.0f} s is over the limit of {limits.duration_s:,.0f} s: cut it"
                )
            wanted = sorted(set(sample(duration_s, rate, count)))
            if len(wanted) * width * height > limits.pixels:
                raise InvalidRequest(
                    f"{len(wanted)} frames of {width} x {height} pixels are over the limit of {limits.pixels:,}: "
                    "ask for fewer frames or send a smaller video"
                )
            return _take(_bounded(container.decode(stream), deadline_s, limits.decode_s), wanted, rate, limits.frame)
    except (av.FFmpegError, ValueError, ArithmeticError, LookupError) as fault:
        raise InvalidRequest(f"the video is damaged or cannot be read: {str(fault)[:200]}") from fault


def _container(data: bytes) -> str:
    """FFmpeg's name of the container, from the first bytes."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return "mov,mp4,m4a,3gp,3g2,mj2"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska,webm"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    raise InvalidRequest("the data is not a video that can be read (MP4, MOV, WebM, MKV, AVI)")


def _extent(container: Any, stream: Any) -> tuple[float, int, float]:
    """(frames a second, number of frames, duration in seconds), as the container says; checked while decoding."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if not (0 < rate < 10_000 and math.isfinite(rate)):
        raise InvalidRequest("the video does not say how many frames a second it has")
    if stream.duration is not None and stream.time_base is not None:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration_s = container.duration / 1e6
    else:
        duration_s = stream.frames / rate
    count = stream.frames or round(duration_s * rate)
    if count < 1:
        raise InvalidRequest("the video has no frames")
    return rate, count, max(duration_s, count / rate)


def _bounded(frames: Iterator[Any], deadline_s: float, decode_s: float) -> Iterator[Any]:
    for frame in frames:
        if time.monotonic() > deadline_s:
            raise InvalidRequest(f"the video could not be decoded within {decode_s:g} s: send a shorter or smaller one")
        yield frame


def _take(frames: Iterator[Any], wanted: Sequence[int], rate: float, limits: ImageLimits) -> Frames:
    """Those wanted; the last decoded one stands for those that the container promised and does not have."""
    taken = Frames([], [])
    pending, last, at = list(wanted), None, -1
    for at, frame in enumerate(frames):
        last = frame
        if pending and at == pending[0]:
            _append(taken, frame, at, rate, limits)
            pending.pop(0)
        if not pending:
            break
    if last is None:
        raise InvalidRequest("the video has no frames")
    for _ in pending:
        _append(taken, last, at, rate, limits)
    return taken


def _append(taken: Frames, frame: Any, at: int, rate: float, limits: ImageLimits) -> None:
    check_size(frame.width, frame.height, limits)
    picture = frame.to_image()
    if taken.pictures and picture.size != taken.pictures[0].size:
        picture = picture.resize(taken.pictures[0].size)
    taken.pictures.append(picture)
    taken.timestamps_s.append(at / rate)
