"""Plans of requests with images: ids, positions and slots as ranks need them, beside rows of words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.scheduler import router
from services.scheduler.config import SchedulerConfig
from services.tokenizer.media.rotary_positions import GridSpan, rotary_positions
from shared import messages as m
from shared.errors import InvalidRequest
from shared.messages.generation import LENGTH
from tests.fakes.engine import engine_info, expected_tokens, media_token
from tests.fakes.scheduler_driver import EOS, Driver

PLACEHOLDER, WIDTH, VOCAB = 9, 4, 1000
IMAGE_BYTES = WIDTH * 4


def ref(image: int, tokens: int) -> m.EmbeddingRef:
    return m.EmbeddingRef(f"{image:032x}", "vision-0", f"/shm/{image}", tokens, WIDTH, "float32")


def driver(tokens: int = 100, config: SchedulerConfig | None = None, **size: int) -> Driver:
    """One engine with room for the embeddings of so many tokens."""
    return Driver(engine_info(media_bytes=tokens * IMAGE_BYTES, **size), config)


def listed(values: Any) -> list[Any]:
    assert values is not None
    return values.tolist()  # type: ignore[no-any-return]


def staged_plan(d: Driver) -> m.StepPlan:
    """The first plan, once its images are there."""
    d.pump()
    assert not d.plans, "a prompt was computed before its images were there"
    while d.stage():
        pass
    d.pump()
    return d.plans[0]


PROMPT = [5, 6, *[PLACEHOLDER] * 4, 7]
SPAN = m.MediaSpan(2, 4, ref(1, 4))
POSITIONS, DELTA = rotary_positions(7, [GridSpan(2, (1, 2, 2))])


def test_a_plan_names_the_rows_of_each_image_and_shows_the_model_placeholders() -> None:
    d = driver()
    d.submit(PROMPT, 3, media=[SPAN], positions=POSITIONS, position_delta=DELTA)
    plan = staged_plan(d)
    assert listed(plan.ext_tokens) == PROMPT
    assert listed(plan.ext_media) == [[2, 4, 0, 0]]
    np.testing.assert_array_equal(plan.ext_positions, POSITIONS)
    assert plan.new_rows[0].position_delta == DELTA


def test_rows_of_words_in_the_same_plan_keep_their_own_positions() -> None:
    d = driver()
    d.submit(PROMPT, 1, media=[SPAN], positions=POSITIONS, position_delta=DELTA)
    d.pump()
    d.stage()
    words = [d.submit([20, 21, 22], 1), d.submit([30, 31], 1)]
    d.pump()
    (plan,) = d.plans
    lens, rows = listed(plan.ext_lens), [init.row for init in plan.new_rows]
    assert sorted(lens) == [2, 3, 7]
    at = dict(zip(lens, np.cumsum([0, *lens[:-1]]).tolist(), strict=True))
    assert listed(plan.ext_media) == [[at[7] + 2, 4, 0, 0]]
    assert plan.ext_positions is not None
    for count, want in ((7, POSITIONS), (3, np.tile(np.arange(3), (3, 1))), (2, np.tile(np.arange(2), (3, 1)))):
        np.testing.assert_array_equal(plan.ext_positions[:, at[count] : at[count] + count], want)
    deltas = {init.row: init.position_delta for init in plan.new_rows}
    assert [deltas[row] for row in rows if lens[rows.index(row)] != 7] == [0, 0]
    d.run()
    assert [d.outputs[handle].finish for handle in words] == [LENGTH] * 2


def test_several_prompts_in_one_plan_name_their_own_images() -> None:
    d = driver()
    for image in (1, 2):
        d.submit([20 + image, *PROMPT], 1, media=[m.MediaSpan(3, 4, ref(image, 4))])
    d.submit([30, *PROMPT], 1, media=[m.MediaSpan(3, 4, ref(1, 4))])
    plan = staged_plan(d)
    assert listed(plan.ext_lens) == [8, 8, 8]
    assert listed(plan.ext_media) == [[3, 4, 0, 0], [11, 4, 1, 0], [19, 4, 0, 0]]
    d.run()
    seen = [[media_token(ref(image, 4).key, row) for row in range(4)] for image in (1, 2, 1)]
    for handle, first, rows in zip((1, 2, 3), (21, 22, 30), seen, strict=True):
        assert d.outputs[handle].tokens == expected_tokens([first, 5, 6, *rows, 7], 1, VOCAB, EOS)


def test_a_step_of_words_alone_carries_nothing_of_images() -> None:
    d = driver()
    d.submit([20, 21, 22], 1)
    d.pump()
    (plan,) = d.plans
    assert (plan.ext_media, plan.ext_positions, plan.drop_media) == (None, None, None)


def test_chunks_of_an_image_name_their_own_rows_and_what_comes_next() -> None:
    d = driver(config=SchedulerConfig(chunked_prefill_size=3, pipeline_depth=1))
    handle = d.submit(PROMPT, 1, media=[SPAN], positions=POSITIONS, position_delta=DELTA, logprob_start=0)
    plans = [staged_plan(d)]
    while d.answer() and d.pump():
        plans.append(d.plans[0])
    assert [listed(plan.ext_tokens) for plan in plans] == [PROMPT[:3], PROMPT[3:6], PROMPT[6:]]
    assert [None if plan.ext_media is None else listed(plan.ext_media) for plan in plans] == [
        [[2, 1, 0, 0]], [[0, 3, 0, 1]], None,
    ]  # fmt: skip
    assert [listed(plan.ext_next) for plan in plans] == [[PLACEHOLDER], [7], [-1]]
    np.testing.assert_array_equal(plans[1].ext_positions, POSITIONS[:, 3:6])
    assert plans[2].ext_positions is None  # index and delta say it
    assert d.outputs[handle].prompt_logprobs[1:] == [-float(token) for token in PROMPT[1:]]


def test_two_prompts_with_one_image_share_its_keys_and_stage_it_once() -> None:
    d = driver()
    first = d.submit(PROMPT, 2, media=[SPAN])
    d.run()
    second = d.submit([*PROMPT, 8], 2, media=[SPAN])
    d.run()
    assert d.outputs[second].cached == len(PROMPT)
    assert len([plan for plan in d.history if plan.ext_media is not None]) == 1
    seen = [5, 6, *(media_token(SPAN.ref.key, row) for row in range(4)), 7]
    assert d.outputs[first].tokens == expected_tokens(seen, 2, VOCAB, EOS)
    assert d.outputs[second].tokens == expected_tokens([*seen, 8], 2, VOCAB, EOS)


def test_the_same_ids_with_another_image_share_only_the_words_before() -> None:
    d = driver()
    d.submit(PROMPT, 2, media=[SPAN])
    d.run()
    other = d.submit(PROMPT, 2, media=[m.MediaSpan(2, 4, ref(2, 4))])
    d.run()
    assert d.outputs[other].cached == 2


def test_words_do_not_wait_for_another_s_image() -> None:
    d = driver()
    waits = d.submit(PROMPT, 1, media=[SPAN])
    words = d.submit([20, 21], 1)
    while d.pump() or d.answer():
        pass
    assert d.outputs[words].finish == LENGTH
    assert d.outputs[waits].tokens == []
    d.run()
    assert d.outputs[waits].finish == LENGTH


def test_a_plan_drops_what_was_pushed_out_and_ranks_hold_no_more_than_the_bank() -> None:
    d = driver(tokens=4)
    for image in (1, 2, 3):
        d.submit(PROMPT, 1, media=[m.MediaSpan(2, 4, ref(image, 4))])
        d.run()
    dropped = [slot for plan in d.history if plan.drop_media is not None for slot in listed(plan.drop_media)]
    assert dropped == [0, 1]
    assert d.engine.staged(d.session.session) == {2}


def test_ranks_are_told_what_to_drop_also_when_there_is_nothing_to_compute() -> None:
    """Else requests that come and go before they start would fill the device."""
    d = driver(tokens=4)
    for image in range(1, 10):
        handle = d.submit(PROMPT, 1, media=[m.MediaSpan(2, 4, ref(image, 4))])
        d.pump()
        d.stage()
        d.abort(handle)
        while d.answer():
            pass
        assert len(d.engine.staged(d.session.session)) <= 2
    last = d.submit(PROMPT, 3, media=[SPAN])
    d.run()
    assert d.outputs[last].finish == LENGTH
    assert d.engine.staged(d.session.session) == d.session.media.slots()


def test_a_lost_image_ends_its_request_and_no_other() -> None:
    d = driver()
    lost, other = d.submit(PROMPT, 1, media=[SPAN]), d.submit(PROMPT, 1, media=[m.MediaSpan(2, 4, ref(2, 4))])
    d.pump()
    ask = d.asks.popleft()
    assert ask.refs == [ref(1, 4), ref(2, 4)]
    d.engine.stage(ask)
    d.scheduler.staged(m.MediaStaged(ask.engine_id, ask.session, 0, [ask.slots[1]], [ask.slots[0]]))
    d.run()
    error = d.outputs[lost].error
    assert error is not None
    assert error.code == "media_lost"
    assert d.outputs[other].finish == LENGTH


def test_a_request_whose_images_never_fit_is_refused_with_the_flag() -> None:
    d = driver(tokens=3)
    handle = d.submit(PROMPT, 1, media=[SPAN])
    d.run()
    error = d.outputs[handle].error
    assert error is not None
    assert (error.code, "--media-staging-bytes" in error.message) == ("invalid_request", True)


def test_images_survive_the_loss_of_their_engine() -> None:
    d = driver()
    handle = d.submit(PROMPT, 4, media=[SPAN])
    staged_plan(d)
    d.plans.clear()
    d.open()
    d.run()
    seen = [5, 6, *(media_token(SPAN.ref.key, row) for row in range(4)), 7]
    assert d.outputs[handle].tokens == expected_tokens(seen, 4, VOCAB, EOS)


def test_engines_that_read_text_only_are_passed_over() -> None:
    d = driver()
    d.open(engine_info(engine_id="text-0-test"))
    text = d.scheduler.engines["text-0-test"]
    handle = d.submit(PROMPT, 1, media=[SPAN])
    req = d.req(handle)
    assert router.choose([text, d.session], req) is d.session
    assert router.choose([text], req) is None
    assert router.choose([text], d.req(d.submit([20, 21], 1))) is text


def test_where_no_engine_takes_images_the_request_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequest, match="text only") as refused:
        Driver().submit(PROMPT, 1, media=[SPAN])
    assert refused.value.param == "messages"


def test_listeners_of_the_cache_see_negative_ids_in_the_places_of_images() -> None:
    """Which no tokenizer gives, so a router that compares prompts never takes an image for words."""
    d = driver(config=SchedulerConfig(enable_kv_events=True))
    d.submit(PROMPT, 1, media=[SPAN])
    d.run()
    log = d.session.kv_log
    assert log is not None
    event = log.take()
    assert event is not None
    tokens = [token for block in event.stored for token in block.token_ids]
    assert tokens[:7] == [5, 6, *[tokens[2]] * 4, 7]
    assert tokens[2] < -1
