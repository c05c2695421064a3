from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from services.gateway.media import INLINE_CHARS, MediaReferences, hand_over
from shared import messages as m
from shared.blobs import Blobs
from shared.errors import InvalidRequest
from shared.held_folder import HeldFolder
from shared.objects import LocalObjects

PARAM = "messages[0].content[0].image_url.url"


def data_url(size: int) -> str:
    return "data:image/png;base64," + base64.b64encode(bytes(size)).decode()


class Gateway:
    def __init__(self, folder: Path) -> None:
        self.folder, self.opened = folder, 0
        self.memories: list[str] = []
        self.objects = LocalObjects()
        self.blobs: Blobs | None = None
        self.references = MediaReferences(self.open, lambda: self.memories)

    def open(self) -> Blobs:
        self.opened += 1
        self.blobs = Blobs(HeldFolder(self.folder, alone=False), self.objects, "default")
        return self.blobs


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path / "memory")


async def test_addresses_and_small_images_stay_as_they_are(gateway: Gateway) -> None:
    for url in ("http://example.com/a.png", "HTTPS://example.com/a.png", "file:///a.png", data_url(100)):
        assert await gateway.references.by_reference(url, PARAM) == url
    await gateway.references.sweep()
    assert gateway.opened == 0
    assert not gateway.folder.exists()


async def test_a_large_image_travels_by_shared_memory_where_all_vision_instances_see_it(gateway: Gateway) -> None:
    gateway.blobs = gateway.open()
    gateway.memories = [gateway.blobs.host] * 2
    url = await gateway.references.by_reference(data_url(INLINE_CHARS), PARAM)
    assert url.startswith("blob:")
    assert "?host=" in url
    assert await gateway.blobs.read(url, 10**6) == bytes(INLINE_CHARS)
    gateway.memories.append("another host's")
    assert (await gateway.references.by_reference(data_url(INLINE_CHARS), PARAM)).endswith("?object")
    await gateway.references.sweep()


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "/etc/passwd", "ftp://x/y", "javascript:alert(1)", "blob:" + "0" * 32 + "?object",
        "data:image/png;base64,eA", "data:text/html;base64,eA==", data_url(INLINE_CHARS)[:-1],
        "http://x/" + "a" * 9000,
    ],
)  # fmt: skip
async def test_anything_else_is_refused_naming_its_field(gateway: Gateway, url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await gateway.references.by_reference(url, PARAM)
    assert caught.value.param == PARAM
    assert len(caught.value.message) < 200


async def test_others_run_while_a_large_image_is_decoded(gateway: Gateway) -> None:
    url = data_url(32 * 1024 * 1024)
    task = asyncio.ensure_future(gateway.references.by_reference(url, PARAM))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    assert (await task).startswith("blob:")


def chat_request(urls: list[str]) -> m.GenerateRequest:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}, *parts]}
    return m.GenerateRequest("r", "reply", chat=m.ChatInput([message]))


async def test_too_many_in_one_request_are_refused(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    with pytest.raises(InvalidRequest, match=r"3 images and videos .* limit of 2") as caught:
        await hand_over([chat_request([data_url(9)] * 3)], gateway.references, 2)
    assert caught.value.param == "messages[0].content[3].image_url"


async def test_choices_of_a_prompt_share_what_is_handed_over(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    request = chat_request([data_url(9), data_url(INLINE_CHARS)])
    other = m.GenerateRequest("s", "reply", text="x", media=[m.MediaSource(data_url(INLINE_CHARS))])
    one, two, three = await hand_over([request, request, other], gateway.references, 9)
    assert one.chat is two.chat
    assert one.chat is not None
    text, small, large = one.chat.messages[0]["content"]
    assert text == {"type": "text", "text": "hi"}
    assert small["image_url"] == {"url": data_url(9), "detail": "low"}
    assert large["image_url"]["url"].startswith("blob:")
    assert large["image_url"]["detail"] == "low"
    assert three.media[0].url.startswith("blob:")
    assert request.chat is not None
    assert request.chat.messages[0]["content"][2]["image_url"]["url"].startswith("data:")
