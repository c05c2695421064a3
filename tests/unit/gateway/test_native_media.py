"""Images of /generate: one prompt or many, URLs or base64."""

from __future__ import annotations

import pytest

from services.gateway.native_media import Given, native_media
from shared.errors import InvalidRequest

URL, OTHER = "http://a/b.png", "DATA:image/png;base64,AAAA"


def urls(images: Given, count: int, *, batch: bool, videos: Given = None) -> list[list[str]]:
    return [[source.url for source in of] for of in native_media(images, videos, count, batch=batch)]


def test_one_prompt_has_one_image_or_a_list() -> None:
    assert urls(None, 1, batch=False) == [[]]
    assert urls([], 1, batch=False) == [[]]
    assert urls(URL, 1, batch=False) == [[URL]]
    assert urls([URL, OTHER], 1, batch=False) == [[URL, OTHER]]
    with pytest.raises(InvalidRequest, match="not a list of lists"):
        urls([[URL]], 1, batch=False)


def test_a_batch_has_an_image_or_a_list_for_each_prompt_or_one_for_all() -> None:
    assert urls(URL, 2, batch=True) == [[URL], [URL]]
    assert urls([URL, [OTHER, URL]], 2, batch=True) == [[URL], [OTHER, URL]]
    assert urls([[], [OTHER]], 2, batch=True) == [[], [OTHER]]
    with pytest.raises(InvalidRequest, match="3 entries for 2 prompts"):
        urls([URL, URL, URL], 2, batch=True)


def test_base64_alone_becomes_a_data_url_and_videos_follow_images() -> None:
    (sources,) = native_media("AAAA", ["BBBB"], 1, batch=False)
    assert [source.url for source in sources] == [
        "data:image/x-unknown;base64,AAAA", "data:video/x-unknown;base64,BBBB",
    ]  # fmt: skip
    assert [source.kind for source in sources] == ["image", "video"]
    assert [source.param for source in sources] == ["image_data", "video_data[0]"]
