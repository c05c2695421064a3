from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from services.vision.decode_image import ImageLimits
from services.vision.decode_video import VideoLimits, decode_video
from shared.errors import InvalidRequest
from tests.unit.vision.pictures import picture, video

LIMITS = VideoLimits(ImageLimits(1_000_000, 2000), pixels=10_000_000, duration_s=60, decode_s=60)


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi", "mov"])
def test_the_frames_asked_for_come_with_their_times(form: str) -> None:
    asked: list[tuple[float, float, int]] = []

    def sample(duration_s: float, fps: float, count: int) -> list[int]:
        asked.append((round(duration_s, 1), fps, count))
        return [0, 10, 19]

    frames = decode_video(video(form=form), sample, LIMITS)
    assert asked == [(2.0, 10.0, 20)]
    assert frames.timestamps_s == [0.0, 1.0, 1.9]
    assert [round(float(np.asarray(p).mean()) // 8) for p in frames.pictures] == pytest.approx([0, 10, 19], abs=1)
    assert all(p.mode == "RGB" and p.size == (64, 48) for p in frames.pictures)


def test_the_last_frame_stands_for_promised_ones_that_are_not_there() -> None:
    frames = decode_video(video(), lambda *_: [0, 500], LIMITS)
    assert frames.timestamps_s == [0.0, 1.9]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not a video"),
        (picture(), "is not a video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is not a video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "is not a video"),
        (b"\0\0\0\x1cftypisom" + b"\0" * 200, "damaged"),
        (video()[:900], "damaged"),
    ],
)
def test_what_is_no_video_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        decode_video(data, lambda *_: [0], LIMITS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frame": ImageLimits(1000, 2000)}, "over the limit of 1,000 pixels"),
        ({"frame": ImageLimits(1_000_000, 50)}, "on a side"),
        ({"pixels": 5000}, "2 frames of 64 x 48 pixels are over the limit of 5,000"),
        ({"duration_s": 1}, "a video of 2 s is over the limit of 1 s"),
        ({"decode_s": -1.0}, "could not be decoded within"),
    ],
)
def test_a_video_over_a_limit_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        decode_video(video(), lambda *_: [0, 5], dataclasses.replace(LIMITS, **change))


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InvalidRequest, match=r"rhizome\[video\]"):
        decode_video(video.__doc__.encode(), lambda *_: [0], LIMITS)
