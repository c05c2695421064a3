"""Images and videos of a request are found in the order of its prompt, and wrong ones are named."""

from __future__ import annotations

from typing import Any

import pytest

from services.tokenizer.media.sources import MAX_FRAMES, sources_of
from shared import messages as m
from shared.errors import InvalidRequest

URL = "https://example.org/a.png"


def chat(*contents: Any) -> m.GenerateRequest:
    return m.GenerateRequest("r", "reply", chat=m.ChatInput([{"role": "user", "content": c} for c in contents]))


def image(**fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": URL, **fields}}


def video(**fields: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": URL, **fields}}


def test_media_of_all_messages_come_in_their_order_with_their_places() -> None:
    text = {"type": "text", "text": "and"}
    sources = sources_of(
        chat([text, image(detail="low")], "no part", None, [video(fps=2, max_frames=8), text, image()])
    )
    assert sources == [
        m.MediaSource(URL, "image", "low", "messages[0].content[1].image_url.url"),
        m.MediaSource(URL, "video", "auto", "messages[3].content[0].video_url.url", 2.0, 8),
        m.MediaSource(URL, "image", "auto", "messages[3].content[2].image_url.url"),
    ]


def test_a_string_in_place_of_the_object_is_the_url() -> None:
    (source,) = sources_of(chat([{"type": "image_url", "image_url": URL}]))
    assert source == m.MediaSource(URL, "image", "auto", "messages[0].content[0].image_url.url")


@pytest.mark.parametrize("url", ["http://a/b", "HTTPS://a/b", "data:image/png;base64,AA==", "file:///a", "blob:shm/1"])
def test_all_schemes_that_vision_reads_are_taken(url: str) -> None:
    assert [source.url for source in sources_of(chat([image(url=url)]))] == [url]


def test_null_options_are_as_good_as_none() -> None:
    (source,) = sources_of(chat([video(detail=None, fps=None, max_frames=None)]))
    assert (source.detail, source.fps, source.max_frames) == ("auto", None, None)


def test_parts_of_other_kinds_are_left_to_the_template() -> None:
    assert (
        sources_of(
            chat(["a string", {"type": "text", "text": "x"}, {"type": "input_audio"}, {}, {"type": ["image_url"]}])
        )
        == []
    )


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "image_url"}, "image_url", "must be an object with a url"),
    ({"type": "image_url", "image_url": {"url": 5}}, "image_url", "must be an object with a url"),
    ({"type": "image_url", "image_url": [URL]}, "image_url", "must be an object with a url"),
    (image(url="ftp://a/b"), "image_url.url", "http"),
    (image(url="a.png"), "image_url.url", "http"),
    (image(url=""), "image_url.url", "http"),
    (image(detail="best"), "image_url.detail", "auto, low or high"),
    (image(detail=1), "image_url.detail", "auto, low or high"),
    (video(fps=0), "video_url.fps", "positive"),
    (video(fps=-1.5), "video_url.fps", "positive"),
    (video(fps=True), "video_url.fps", "positive"),
    (video(fps="2"), "video_url.fps", "positive"),
    (video(fps=float("inf")), "video_url.fps", "positive"),
    (video(fps=float("nan")), "video_url.fps", "positive"),
    (video(max_frames=0), "video_url.max_frames", "positive"),
    (video(max_frames=2.5), "video_url.max_frames", "whole"),
    (video(max_frames=MAX_FRAMES + 1), "video_url.max_frames", "whole"),
]


@pytest.mark.parametrize(("part", "field", "says"), WRONG)
def test_a_wrong_part_is_refused_with_its_place(part: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        sources_of(chat("x", [image(), part]))
    assert refused.value.param == f"messages[1].content[1].{field}"


def test_media_beside_a_text_are_taken_as_they_are_and_checked() -> None:
    given = [m.MediaSource(URL, param="image_data[0]"), m.MediaSource("data:,", "video")]
    assert sources_of(m.GenerateRequest("r", "reply", text="x", media=given)) == given
    for source, param in ((m.MediaSource("/etc/passwd", param="image_data[1]"), "image_data[1]"),
                          (m.MediaSource("javascript:0"), "media")):  # fmt: skip
        with pytest.raises(InvalidRequest) as refused:
            sources_of(m.GenerateRequest("r", "reply", text="x", media=[source]))
        assert refused.value.param == param
