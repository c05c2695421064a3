"""The whole service with a fake model: in memory and on a real server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from shared import embedding_file
from shared import messages as m
from shared.blobs import Blobs
from shared.bus import Bus
from shared.errors import InvalidRequest, MediaLost, Overloaded, Unavailable
from shared.held_folder import HeldFolder, deployment_folder
from tests.unit.vision.pictures import picture, png_header, video
from tests.unit.vision.service_stack import Tokenizer, Vision, config_for, keys


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def mean(item: m.EncodedMedia) -> float:
    return float(embedding_file.map_rows(item.ref).view(np.float32)[0, 0])


@pytest.fixture
async def tokenizer(bus: Bus) -> Tokenizer:
    return await Tokenizer(bus).start()


@pytest.fixture
async def start(bus: Bus, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    started: list[Vision] = []

    async def starting(**more: object) -> Vision:
        started.append(await Vision(bus, config_for(tmp_path, **more)).start())
        return started[-1]

    yield starting
    for vision in started:
        vision.encoder.go.set()
        await vision.crash()


async def test_media_come_back_in_order_with_their_shapes(tokenizer: Tokenizer, start: Callable[..., Any]) -> None:
    vision = await start()
    clip = m.MediaSource(url_of(video(), "video/mp4"), "video", fps=5.0)
    low = m.MediaSource(url_of(picture(32, 16, 10)), detail="low")
    answer = await tokenizer.encode(url_of(picture(32, 16, 10)), clip, low, url_of(picture(8, 24, 90, "JPEG")))
    assert answer.error is None
    assert answer.vision_id == vision.actor.id
    assert [(x.kind, x.ref.tokens, x.grid) for x in answer.media] == [
        ("image", 8, [1, 2, 4]), ("video", 10, [10, 1, 1]), ("image", 1, [1, 1, 1]), ("image", 3, [1, 3, 1]),
    ]  # fmt: skip
    assert [round(mean(item)) for item in answer.media][::2] == [10, 10]
    assert len(answer.media[1].timestamps_s) == 10
    assert len(set(keys(answer.media))) == 4
    assert {(x.ref.dtype, x.ref.width, x.ref.vision_id) for x in answer.media} == {("float32", 4, vision.actor.id)}
    assert vision.metric("media_total", kind="image") == 3
    assert vision.metric("queued_media") == 0


async def test_equal_media_are_computed_once_whoever_asks(tokenizer: Tokenizer, start: Callable[..., Any]) -> None:
    vision = await start()
    vision.encoder.go.clear()
    demands = [await tokenizer.demand(url_of(picture(16, 16, 40))) for _ in range(8)]
    vision.encoder.go.set()
    answers = [await tokenizer.answer(handle) for handle, _ in demands]
    answers.append(await tokenizer.encode(url_of(picture(16, 16, 40))))
    assert len({answer.media[0].ref for answer in answers}) == 1
    assert vision.encoder.batches == [1]
    assert vision.metric("cache_hits_total") == 8


async def test_large_images_come_by_reference_and_near_or_far(
    tokenizer: Tokenizer, start: Callable[..., Any], bus: Bus
) -> None:
    vision = await start()
    folder = deployment_folder(Path(vision.config.shared_memory_dir), "default", vision.config.common.nats_url)
    blobs = Blobs(HeldFolder(folder, alone=False), bus, "default")
    assert vision.actor.facts.memory == blobs.host
    data = picture(64, 64, 77)
    near, far = [await blobs.put(data, nearby=nearby) for nearby in (True, False)]
    answer = await tokenizer.encode(near, far)
    assert answer.error is None
    assert answer.media[0] == answer.media[1]


@pytest.mark.parametrize(
    ("url", "code", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data/", "invalid_request", "not on the public internet"),
        ("http://localhost:22/", "invalid_request", "not on the public internet"),
        ("file:///etc/passwd", "invalid_request", "--allowed-media-folder"),
        ("ftp://example.com/a.png", "invalid_request", "give a http"),
        ("blob:" + "0" * 32 + "?object", "unavailable", "expired"),
        ("data:image/png;base64,AAA", "invalid_request", "not valid base64"),
        (url_of(b"<svg></svg>", "image/svg+xml"), "invalid_request", "looks like SVG"),
        (url_of(b"<html></html>"), "invalid_request", "looks like a web page"),
        (url_of(picture()[:-30]), "invalid_request", "damaged or incomplete"),
        (url_of(png_header(30_000, 20)), "invalid_request", "over the limit of 16,384 on a side"),
        (url_of(png_header(16_000, 16_000)), "invalid_request", "over the limit of 67,108,864 pixels"),
        (url_of(picture(2000, 2)), "invalid_request", "too long and thin"),
    ],
)  # fmt: skip
async def test_a_bad_image_is_a_clear_error_of_its_field_and_the_next_one_works(
    tokenizer: Tokenizer, start: Callable[..., Any], url: str, code: str, reason: str
) -> None:
    vision = await start()
    answer = await tokenizer.encode(url_of(picture(1, 1)), url)
    assert answer.error is not None
    assert (answer.error.code, answer.error.param) == (code, "media[1]")
    assert reason in answer.error.message
    assert answer.media == []
    assert (await tokenizer.encode(url_of(picture(1, 1)))).error is None
    assert vision.service.queued_media == 0


@pytest.mark.parametrize(
    "wrong", [{"fps": 0.0}, {"fps": -1.0}, {"fps": 1e9}, {"max_frames": 0}, {"max_frames": -5}], ids=str
)
async def test_a_senseless_wish_for_frames_is_refused(
    tokenizer: Tokenizer, start: Callable[..., Any], wrong: dict[str, Any]
) -> None:
    await start()
    answer = await tokenizer.encode(m.MediaSource(url_of(video(), "video/mp4"), "video", **wrong))
    assert answer.error is not None
    assert next(iter(wrong)) in answer.error.message


async def test_images_are_fetched_from_hosts_that_the_operator_allows(
    tokenizer: Tokenizer, start: Callable[..., Any]
) -> None:
    bodies = {"/good.png": picture(16, 16, 60), "/page.png": b"<html><body>not found</body></html>"}

    async def serve(request: web.Request) -> web.Response:
        if request.path == "/inside":
            return web.Response(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data/"})
        return web.Response(body=bodies[request.path], content_type="image/png")

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    await start(allowed_media_hosts=("127.0.0.1",))
    good, page, inside = [await tokenizer.encode(base + path) for path in ("/good.png", "/page.png", "/inside")]
    assert round(mean(good.media[0])) == 60
    assert page.error is not None
    assert "looks like a web page" in page.error.message
    assert inside.error is not None
    assert "not on the public internet" in inside.error.message
    await runner.cleanup()


async def test_a_failing_encoder_fails_only_its_item_and_does_not_name_its_inside(
    tokenizer: Tokenizer, start: Callable[..., Any]
) -> None:
    vision = await start()
    vision.encoder.refuse_under = 5.0
    bad, good = await asyncio.gather(
        tokenizer.encode(url_of(picture(color=1))), tokenizer.encode(url_of(picture(color=99)))
    )
    assert bad.error is not None
    assert (bad.error.code, bad.error.message) == ("internal_error", "vision failed on an image or video: RuntimeError")
    assert good.error is None
    vision.encoder.refuse_under = 0.0
    assert (await tokenizer.encode(url_of(picture(color=1)))).error is None


async def test_too_many_are_refused_at_once(tokenizer: Tokenizer, start: Callable[..., Any]) -> None:
    vision = await start(max_media_per_request=2, max_queued_media=3)
    with pytest.raises(InvalidRequest, match="--max-media-per-request"):
        await tokenizer.demand(*[url_of(picture())] * 3)
    with pytest.raises(InvalidRequest, match="0 images and videos"):
        await tokenizer.demand()
    vision.encoder.go.clear()
    first, _ = await tokenizer.demand(url_of(picture(color=1)), url_of(picture(color=2)))
    with pytest.raises(Overloaded, match="2 images and videos are waiting"):
        await tokenizer.demand(url_of(picture(color=3)), url_of(picture(color=4)))
    second, _ = await tokenizer.demand(url_of(picture(color=5)))
    vision.encoder.go.set()
    assert [(await tokenizer.answer(handle)).error for handle in (first, second)] == [None, None]


async def test_a_demand_asked_again_is_worked_on_once(
    tokenizer: Tokenizer, start: Callable[..., Any], bus: Bus
) -> None:
    vision = await start()
    vision.encoder.go.clear()
    handle, accepted = await tokenizer.demand(url_of(picture()))
    again = m.EncodeMedia(tokenizer.actor.id, handle, "r", [m.MediaSource(url_of(picture()))])
    assert await tokenizer.actor.ask(tokenizer.actor.subjects.encode_media, again, m.EncodeAccepted) == accepted
    assert vision.service.queued_media == 1
    vision.encoder.go.set()
    assert (await tokenizer.answer(handle)).error is None


async def test_a_cancelled_demand_ends_at_once_and_gets_no_answer(
    tokenizer: Tokenizer, start: Callable[..., Any]
) -> None:
    vision = await start()
    vision.encoder.go.clear()
    kept, _ = await tokenizer.demand(url_of(picture(color=1)))
    handle, _ = await tokenizer.demand(url_of(picture(color=1)), url_of(picture(color=2)))
    cancel = m.CancelEncode(tokenizer.actor.id, handle)
    await tokenizer.actor.send(tokenizer.actor.subjects.vision_cancel(vision.actor.id), cancel)
    async with asyncio.timeout(30):
        while vision.service.queued_media > 1:
            await tokenizer.actor.bus.flush()
    vision.encoder.go.set()
    assert (await tokenizer.answer(kept)).error is None
    assert not tokenizer.has_answer(handle)


async def test_the_demands_of_a_lost_tokenizer_are_dropped(tokenizer: Tokenizer, start: Callable[..., Any]) -> None:
    vision = await start()
    vision.encoder.go.clear()
    await tokenizer.actor.beat()
    await tokenizer.demand(url_of(picture()))
    bye = m.Goodbye(service="tokenizer", name="tokenizer-0", id=tokenizer.actor.id, at_s=0.0)
    await tokenizer.actor.send(tokenizer.actor.subjects.goodbye, bye)
    async with asyncio.timeout(30):
        while vision.service.queued_media:
            await tokenizer.actor.bus.flush()


async def test_embeddings_are_shared_with_other_hosts_through_the_object_store(
    tokenizer: Tokenizer, start: Callable[..., Any], bus: Bus
) -> None:
    vision = await start()
    (item,) = (await tokenizer.encode(url_of(picture(16, 16, 33)))).media
    subject = vision.actor.subjects.vision_share(vision.actor.id)
    question = m.ShareEmbedding(item.ref.key)
    answers = await asyncio.gather(*(tokenizer.actor.ask(subject, question, m.EmbeddingShared) for _ in range(4)))
    assert len(set(answers)) == 1
    data = await bus.get_object(answers[0].bucket, answers[0].name)
    assert embedding_file.rows_in(data, item.ref).tobytes() == embedding_file.map_rows(item.ref).tobytes()
    with pytest.raises(MediaLost):
        await tokenizer.actor.ask(subject, m.ShareEmbedding("f" * 32), m.EmbeddingShared)


async def test_the_successor_of_a_killed_instance_has_its_embeddings(
    tokenizer: Tokenizer, start: Callable[..., Any]
) -> None:
    first = await start()
    before = (await tokenizer.encode(url_of(picture(16, 16, 33)))).media[0]
    await first.crash()
    assert embedding_file.map_rows(before.ref).shape[0] == 4
    second = await start()
    after = (await tokenizer.encode(url_of(picture(16, 16, 33)))).media[0]
    assert second.encoder.batches == []
    assert (after.ref.key, after.ref.path, after.ref.vision_id) == (before.ref.key, before.ref.path, second.actor.id)


async def test_a_drain_finishes_what_runs_takes_nothing_new_and_leaves_nothing(
    tokenizer: Tokenizer, start: Callable[..., Any]
) -> None:
    vision = await start()
    vision.encoder.go.clear()
    handle, _ = await tokenizer.demand(url_of(picture()))
    draining = asyncio.ensure_future(vision.service.drain())

    async def demand_until_refused() -> None:
        while True:
            await tokenizer.demand(url_of(picture(color=3)))

    with pytest.raises(Unavailable):
        await demand_until_refused()
    vision.encoder.go.set()
    await draining
    assert (await tokenizer.answer(handle)).error is None
    assert list(Path(vision.config.shared_memory_dir).iterdir()) == []


async def test_a_drain_that_takes_too_long_tells_who_waits(tokenizer: Tokenizer, start: Callable[..., Any]) -> None:
    vision = await start()
    vision.encoder.go.clear()
    handle, _ = await tokenizer.demand(url_of(picture()))
    draining = asyncio.ensure_future(vision.service.drain())
    await asyncio.sleep(0)
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    answer = await tokenizer.answer(handle)
    assert answer.error is not None
    assert answer.error.code == "unavailable"
