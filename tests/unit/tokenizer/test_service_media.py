"""Requests with images on their way through the service: encoded by vision, asked again, refused, encoded once more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.tokenizer.media.demands import MAX_ASKS
from services.tokenizer.service import VISION_PATIENCE_S, VISION_SILENCE_S
from shared import messages as m
from shared.bus import LocalBus
from shared.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from shared.messages.generation import LENGTH, RUNNING
from tests.fakes.clock import Clock
from tests.fakes.vlm_checkpoints import TOKEN_IDS
from tests.unit.tokenizer import tiny
from tests.unit.tokenizer.service_stack import TEMPLATE, Stack, build
from tests.unit.vision.checkpoints import checkpoint

IMAGE = TOKEN_IDS["<|image_pad|>"]
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
LOST = m.ErrorInfo("media_lost", "the embeddings of an image were lost")
GAVE_UP = m.ErrorInfo("invalid_request", "not an image", "messages[0].content[1].image_url.url")


class Waits:
    """Waiting moves the clock instead of taking time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.count = 0

    async def __call__(self, seconds: float) -> None:
        self._clock.now_s += seconds
        self.count += 1
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waits(clock: Clock) -> Waits:
    return Waits(clock)


@pytest.fixture
async def stack(clock: Clock, waits: Waits) -> AsyncIterator[Stack]:
    folder = checkpoint("qwen2_vl")[0]
    async for built in build(folder, LocalBus(), clock=clock, wait=waits, max_media_per_request=3):
        await built.vision.start()
        yield built


def chat(*urls: str) -> m.ChatInput:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "Look: "}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return m.ChatInput([{"role": "user", "content": parts}])


def item(number: int, height: int, width: int) -> m.EncodedMedia:
    ref = m.EmbeddingRef(f"{number:032x}", "vision-0", f"/shm/{number}", height * width, 64, "float32")
    return m.EncodedMedia("image", ref, [1, height, width])


async def asking(stack: Stack, *urls: str) -> tuple[asyncio.Task[m.Accepted], m.EncodeMedia]:
    """A request that waits for vision, and what vision was asked."""
    task = asyncio.ensure_future(stack.client.generate(chat=chat(*(urls or ("data:,a",)))))
    return task, await stack.vision.demands.get()


async def running(stack: Stack) -> m.TokenizedRequest:
    """A request that its scheduler has."""
    task, demand = await asking(stack)
    await stack.vision.answer(demand, item(1, 2, 2))
    await task
    return await stack.scheduler.requests.get()


async def settled(stack: Stack) -> None:
    """Everything sent so far was read."""
    await stack.client.actor.ask(stack.actor.subjects.detokenize, m.Detokenize([5]), m.Text)


async def test_ids_and_spans_follow_the_prompt_and_the_first_delta_counts_image_tokens(stack: Stack) -> None:
    task, demand = await asking(stack, "data:,a", "data:,b")
    assert demand.tokenizer_id == stack.actor.id
    assert [source.url for source in demand.sources] == ["data:,a", "data:,b"]
    media = [item(1, 2, 3), item(2, 1, 2)]
    await stack.vision.answer(demand, *media)
    accepted = await task
    request = await stack.scheduler.requests.get()
    ids = request.input_ids.tolist()
    assert accepted.prompt_tokens == len(ids)
    assert [(span.start, span.tokens, span.ref) for span in request.media] == [
        (ids.index(IMAGE), 6, media[0].ref), (ids.index(IMAGE) + 6 + 2, 2, media[1].ref)
    ]  # fmt: skip
    assert np.flatnonzero(request.input_ids == IMAGE).tolist() == [
        span.start + i for span in request.media for i in range(span.tokens)
    ]
    assert request.positions is not None
    assert request.positions.shape == (3, len(ids))
    assert request.position_delta == int(request.positions.max()) + 1 - len(ids) < 0
    await stack.scheduler.say(request.handle, [65], 1)
    await stack.scheduler.say(request.handle, [66], 2, LENGTH)
    first, last = await stack.client.deltas.get(), await stack.client.deltas.get()
    assert first.prompt is not None
    assert (first.prompt.prompt_tokens, first.prompt.image_tokens) == (len(ids), 8)
    assert last.prompt is None


async def test_a_text_with_placeholders_takes_media_beside_it(stack: Stack) -> None:
    media = [m.MediaSource("data:,a", param="image_data")]
    task = asyncio.ensure_future(stack.client.generate(text=f"Look: {PICTURE}!", media=media))
    demand = await stack.vision.demands.get()
    assert demand.sources == media
    await stack.vision.answer(demand, item(1, 1, 2))
    await task
    ids = (await stack.scheduler.requests.get()).input_ids.tolist()
    assert ids.count(IMAGE) == 2


async def test_media_without_a_place_in_the_text_are_refused(stack: Stack) -> None:
    media = [m.MediaSource("data:,a", param="image_data")]
    task = asyncio.ensure_future(stack.client.generate(text="Look!", media=media))
    await stack.vision.answer(await stack.vision.demands.get(), item(1, 1, 2))
    with pytest.raises(InvalidRequest, match="places for 0 images") as refused:
        await task
    assert refused.value.param == "prompt"


async def test_a_text_that_only_spells_a_placeholder_needs_no_vision(stack: Stack) -> None:
    await stack.client.generate(text=f"What does {PICTURE} mean?")
    request = await stack.scheduler.requests.get()
    assert (request.media, request.positions, request.position_delta) == (None, None, 0)
    assert stack.vision.demands.empty()


async def test_what_vision_finds_wrong_is_the_request_s_error_with_its_place(stack: Stack) -> None:
    task, demand = await asking(stack)
    await stack.vision.answer(demand, error=GAVE_UP)
    with pytest.raises(InvalidRequest, match="not an image") as refused:
        await task
    assert refused.value.param == GAVE_UP.param
    assert stack.scheduler.requests.empty()
    await running(stack)


async def test_a_full_vision_service_is_heard_at_once(stack: Stack, waits: Waits) -> None:
    stack.vision.refusal = Overloaded("256 images are waiting")
    with pytest.raises(Overloaded, match="256 images"):
        await stack.client.generate(chat=chat("data:,a"))
    assert waits.count == 0


async def test_without_vision_a_request_waits_for_it_and_gives_up_in_the_end(stack: Stack, clock: Clock) -> None:
    await stack.vision.actor.leave_queues()
    began_s = clock.now_s
    with pytest.raises(Unavailable, match="no vision service takes images"):
        await stack.client.generate(chat=chat("data:,a"))
    assert VISION_PATIENCE_S < clock.now_s - began_s < VISION_PATIENCE_S + 1
    assert stack.scheduler.requests.empty()


async def test_a_vision_service_that_comes_within_patience_is_asked(clock: Clock) -> None:
    began = asyncio.Event()

    async def wait(seconds: float) -> None:
        began.set()
        await asyncio.sleep(0)

    async for stack in build(checkpoint("qwen2_vl")[0], LocalBus(), clock=clock, wait=wait):
        task = asyncio.ensure_future(stack.client.generate(chat=chat("data:,a")))
        await began.wait()
        await stack.vision.start()
        await stack.vision.answer(await stack.vision.demands.get(), item(1, 1, 1))
        assert (await task).rid == "r"


async def lose_vision(stack: Stack) -> None:
    """The instance is known, and then gone; another one takes its place under the same address."""
    subjects = stack.actor.subjects
    await stack.client.actor.send(subjects.heartbeat, stack.beat("vision", stack.vision.id))
    await stack.client.actor.send(subjects.goodbye, m.Goodbye("vision", "", stack.vision.id, time.time(), "killed"))


async def test_a_lost_vision_instance_s_work_is_asked_again(stack: Stack) -> None:
    task, demand = await asking(stack)
    await settled(stack)  # the acceptance was read
    await lose_vision(stack)
    again = await stack.vision.demands.get()
    assert again == demand
    await stack.vision.answer(again, item(1, 2, 2))
    await task


async def test_work_that_loses_every_instance_is_given_up(stack: Stack) -> None:
    """The image itself may be what kills them."""
    task, _ = await asking(stack)
    for _ in range(MAX_ASKS - 1):
        await settled(stack)
        await lose_vision(stack)
        await stack.vision.demands.get()
    await settled(stack)
    await lose_vision(stack)
    with pytest.raises(Unavailable, match=f"{MAX_ASKS} times"):
        await task
    assert stack.vision.demands.empty()


async def test_an_answer_that_does_not_come_is_asked_for_again(stack: Stack, clock: Clock) -> None:
    task, demand = await asking(stack)
    await settled(stack)
    clock.now_s += VISION_SILENCE_S - 1
    stack.service.tick()
    await settled(stack)
    assert stack.vision.demands.empty()
    clock.now_s += 2
    stack.service.tick()
    assert await stack.vision.demands.get() == demand
    await stack.vision.answer(demand, item(1, 2, 2))
    await task


async def test_work_that_takes_too_long_is_cancelled_at_vision() -> None:
    async for stack in build(checkpoint("qwen2_vl")[0], LocalBus(), media_timeout_s=0.5):
        await stack.vision.start()
        task, demand = await asking(stack)
        with pytest.raises(DeadlineExceeded, match="--media-timeout-s"):
            await task
        cancel = await asyncio.wait_for(stack.vision.cancels.get(), 10)
        assert cancel == m.CancelEncode(stack.actor.id, demand.handle)
        await stack.vision.answer(demand, item(1, 2, 2))  # too late, and harmless
        await settled(stack)
        assert stack.scheduler.requests.empty()


async def test_work_that_is_accepted_again_when_nobody_waits_any_more_is_cancelled() -> None:
    async for stack in build(checkpoint("qwen2_vl")[0], LocalBus(), media_timeout_s=0.5):
        await stack.vision.start()
        task, demand = await asking(stack)
        await settled(stack)
        stack.vision.hold.clear()
        await lose_vision(stack)
        assert await stack.vision.demands.get() == demand
        with pytest.raises(DeadlineExceeded):
            await task
        stack.vision.hold.set()
        assert (await asyncio.wait_for(stack.vision.cancels.get(), 10)).handle == demand.handle


async def test_nobody_is_asked_again_for_a_request_that_has_given_up() -> None:
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_: float) -> None:
        waiting.set()
        await go_on.wait()

    async for stack in build(checkpoint("qwen2_vl")[0], LocalBus(), wait=wait, media_timeout_s=0.5):
        await stack.vision.start()
        task, _ = await asking(stack)
        await settled(stack)
        await stack.vision.actor.leave_queues()
        await lose_vision(stack)
        await waiting.wait()
        with pytest.raises(DeadlineExceeded):
            await task
        await stack.vision.start()
        go_on.set()
        await settled(stack)
        assert stack.vision.demands.empty()


async def test_lost_embeddings_are_encoded_again_once_and_the_stream_goes_on(stack: Stack) -> None:
    first = await running(stack)
    await stack.scheduler.fail(first.handle, LOST)
    demand = await stack.vision.demands.get()
    await stack.vision.answer(demand, item(9, 2, 2))
    second = await stack.scheduler.requests.get()
    assert second.handle == first.handle
    assert [span.ref.key for span in second.media] == [f"{9:032x}"]
    await stack.scheduler.say(second.handle, [65], 1, LENGTH)
    delta = await stack.client.ending()
    assert (delta.text, delta.finish_reason, delta.seq) == ("b", "length", 0)


async def test_a_ledger_before_the_first_token_does_not_spoil_the_second_try(stack: Stack) -> None:
    first = await running(stack)
    await stack.scheduler.say(first.handle, [], 0, RUNNING)  # all that is known: it waits
    await stack.scheduler.fail(first.handle, LOST)
    await stack.vision.answer(await stack.vision.demands.get(), item(9, 2, 2))
    assert (await stack.scheduler.requests.get()).handle == first.handle


async def test_embeddings_lost_a_second_time_are_the_request_s_error(stack: Stack) -> None:
    first = await running(stack)
    await stack.scheduler.fail(first.handle, LOST)
    await stack.vision.answer(await stack.vision.demands.get(), item(1, 2, 2))
    second = await stack.scheduler.requests.get()
    await stack.scheduler.fail(second.handle, LOST)
    delta = await stack.client.ending()
    assert delta.error is not None
    assert (delta.finish_reason, delta.error.code) == ("error", "media_lost")
    assert stack.vision.demands.empty()


async def test_embeddings_lost_after_the_first_token_end_the_stream(stack: Stack) -> None:
    """What was sent cannot be taken back, and a second try need not say the same."""
    first = await running(stack)
    await stack.scheduler.say(first.handle, [65], 1)
    await stack.scheduler.fail(first.handle, LOST)
    delta = await stack.client.ending()
    assert delta.error is not None
    assert delta.error.code == "media_lost"


async def test_a_second_try_that_fails_ends_the_stream_with_its_reason(stack: Stack) -> None:
    first = await running(stack)
    await stack.scheduler.fail(first.handle, LOST)
    await stack.vision.answer(await stack.vision.demands.get(), error=GAVE_UP)
    delta = await stack.client.ending()
    assert delta.error == GAVE_UP


async def test_an_abort_while_vision_works_ends_the_request_before_it_is_queued(stack: Stack) -> None:
    task, demand = await asking(stack)
    await stack.client.actor.send(stack.actor.subjects.tokenizer_abort(stack.actor.id), m.Abort(["r"]))
    await settled(stack)
    await stack.vision.answer(demand, item(1, 2, 2))
    with pytest.raises(Exception, match="aborted"):
        await task
    assert stack.scheduler.requests.empty()


async def test_more_media_than_allowed_are_refused_before_anything_is_fetched(stack: Stack) -> None:
    with pytest.raises(InvalidRequest, match="4 images and videos are over the limit of 3") as refused:
        await stack.client.generate(chat=chat(*["data:,a"] * 4))
    assert refused.value.param == "messages[0].content[4].image_url.url"
    assert stack.vision.demands.empty()


async def test_media_beside_a_chat_are_refused(stack: Stack) -> None:
    with pytest.raises(InvalidRequest, match="belong into its messages"):
        await stack.client.generate(chat=chat(), media=[m.MediaSource("data:,a")])


async def test_a_prompt_that_media_make_too_long_is_refused(stack: Stack) -> None:
    task, demand = await asking(stack)
    await stack.vision.answer(demand, item(1, 50, 50))
    with pytest.raises(InvalidRequest, match="the context is 2,048"):
        await task


async def test_a_model_of_text_says_so(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "tiny-model", chat_template=TEMPLATE)
    async for stack in build(folder, LocalBus()):
        with pytest.raises(InvalidRequest, match="this model reads text only"):
            await stack.client.generate(chat=chat("data:,a"))
        with pytest.raises(InvalidRequest, match="reads text only") as refused:
            await stack.client.generate(text="x", media=[m.MediaSource("data:,a", param="image_data")])
        assert refused.value.param == "image_data"
        assert stack.scheduler.requests.empty()
