from __future__ import annotations

import base64
import random

import pytest

from shared import data_url
from shared.errors import InvalidRequest


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("size", [1, 2, 3, 100, 786_432, 786_433, 3_000_001])
def test_bytes_come_back(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert data_url.decode(url(data)) == data


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/JPEG", "image/svg+xml", "video/mp4", "image/png;charset=utf-8"])
def test_images_and_videos_of_any_kind_may_come(kind: str) -> None:
    assert data_url.decode(url(b"x", kind)) == b"x"


@pytest.mark.parametrize(
    "wrong",
    [
        "data:", "data:,x", "data:image/png,x", "data:;base64,eA==", "data:text/html;base64,eA==",
        "data:application/octet-stream;base64,eA==", "data:image/png;base64,", "data:image/png;base64,eA",
        "data:image/png;base64,eA=", "data:image/png;base64,eA==eA==", "data:image/png;base64,e A=",
        "data:image/png;base64,eA==\n", "data:image/png;base64,e-_=", "data:image/png;base64,éééé",
        "data:image/png;base64,====", "data:image/png;base64,A===", "data:image/png;base64,%41%41%41",
        "data:image/;base64,eA==", "data:image/png;base64;base64,eA==", " data:image/png;base64,eA==",
    ],
)  # fmt: skip
def test_anything_not_exactly_right_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        data_url.decode(wrong, "messages[0].content[1].image_url.url")
    assert caught.value.param == "messages[0].content[1].image_url.url"
    assert len(caught.value.message) < 200


def test_padding_between_pieces_is_refused() -> None:
    piece = "A" * (1024 * 1024 - 4) + "AA=="
    with pytest.raises(InvalidRequest, match="padding before its end"):
        data_url.decode(f"data:image/png;base64,{piece}{piece}")
