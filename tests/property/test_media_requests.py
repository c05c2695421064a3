"""Random traffic of prompts with images: whatever is shared, evicted, retracted, staged late or lost, each request gets
the tokens that it would get alone, and no image is taken for another.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.config import SchedulerConfig
from shared import messages as m
from shared.messages.generation import ABORTED, RUNNING
from tests.fakes.engine import engine_info, expected_tokens, media_token
from tests.fakes.scheduler_driver import EOS, Driver

VOCAB, PLACEHOLDER, WIDTH = 50, 9, 4
Part = int | tuple[int, int]
"""A word, or an image as its number and tokens."""

images = st.sampled_from(((0, 5), (1, 5), (2, 5), (3, 20), (4, 1)))
parts: st.SearchStrategy[Part] = st.one_of(st.integers(3, 6), images)


@st.composite
def prompts(draw: st.DrawFn) -> list[Part]:
    shared = draw(st.sampled_from(([], [(0, 5), 5], [5, 5, (1, 5), 6], [(0, 5), (1, 5), 7, 7, 7, (3, 20)])))
    cut = draw(st.integers(0, len(shared)))
    return [*shared[:cut], *draw(st.lists(parts, min_size=0, max_size=6)), draw(st.integers(3, 6))]


def laid_out(prompt: list[Part]) -> tuple[list[int], list[m.MediaSpan], list[int]]:
    """Ids with placeholders, the images, and what the scripted model sees."""
    ids: list[int] = []
    seen: list[int] = []
    spans: list[m.MediaSpan] = []
    for part in prompt:
        if isinstance(part, int):
            ids.append(part)
            seen.append(part)
            continue
        number, tokens = part
        ref = m.EmbeddingRef(f"{number:032x}", "vision-0", f"/dev/shm/{number}", tokens, WIDTH, "float32")
        spans.append(m.MediaSpan(len(ids), tokens, ref))
        ids += [PLACEHOLDER] * tokens
        seen += [media_token(ref.key, row) for row in range(tokens)]
    return ids, spans, seen


submissions = st.tuples(st.just("submit"), prompts(), st.integers(1, 30))
actions = st.lists(
    st.one_of(
        submissions, submissions, submissions,
        st.tuples(st.just("abort"), st.integers(0, 40)),
        st.tuples(st.just("pump")),
        st.tuples(st.just("answer")),
        st.tuples(st.just("stage"), st.booleans()),
        st.tuples(st.just("run"), st.integers(1, 40)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("lose engine")),
        st.tuples(st.just("wait")),
    ),
    min_size=10,
    max_size=50,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    script=actions,
    page_size=st.sampled_from((1, 4)),
    pool_tokens=st.integers(100, 400),
    depth=st.integers(1, 3),
    chunk=st.sampled_from((-1, 3, 64)),
    budget_tokens=st.integers(20, 40),
    logprobs=st.booleans(),
)
def test_every_request_sees_its_own_images_whatever_happens_around_it(
    script: list[tuple[Any, ...]], page_size: int, pool_tokens: int, depth: int, chunk: int, budget_tokens: int,
    logprobs: bool,
) -> None:  # fmt: skip
    info = engine_info(
        num_pages=-(-pool_tokens // page_size) + 1, page_size=page_size, max_rows=6, context_length=200,
        vocab_size=VOCAB, media_bytes=budget_tokens * WIDTH * 4,
    )  # fmt: skip
    config = SchedulerConfig(
        pipeline_depth=depth, chunked_prefill_size=chunk, queue_timeout_s=1e6, step_timeout_s=1e6,
        schedule_conservativeness=0.02,
    )  # fmt: skip
    driver = Driver(info, config, eos_every=17)
    wanted: dict[int, tuple[list[int], int]] = {}
    aborted: set[int] = set()
    lost = False
    for action, *args in script:
        match action:
            case "submit":
                prompt, max_new = args
                ids, spans, seen = laid_out(prompt)
                max_new = min(max_new, info.num_pages * page_size - len(ids), info.context_length - len(ids))
                if max_new < 1 or sum({span.ref.key: span.tokens for span in spans}.values()) > budget_tokens:
                    continue
                start = 0 if logprobs and not spans else None
                handle = driver.submit(ids, max_new, media=spans, logprob_start=start)
                wanted[handle] = (seen, max_new)
            case "abort" if wanted:
                handle = list(wanted)[args[0] % len(wanted)]
                aborted.add(handle)
                driver.abort(handle)
            case "pump":
                driver.pump()
            case "answer":
                driver.answer()
            case "stage":
                lost |= driver.stage(lost=args[0]) and args[0]
            case "run":
                for _ in range(args[0]):
                    driver.pump()
                    driver.stage()
                    driver.answer()
            case "flush":
                driver.scheduler.flush()
            case "lose engine":
                driver.plans.clear()
                driver.asks.clear()
                driver.open()
            case "wait":
                driver.now += 10.0
        driver.check()
    driver.run()
    driver.check()
    assert driver.engine.staged(driver.session.session) <= driver.session.media.slots()
    assert driver.session.media.pinned == 0
    for handle, (seen, max_new) in wanted.items():
        out = driver.outputs[handle]
        full = expected_tokens(seen, max_new, VOCAB, EOS, 17)
        assert out.finish != RUNNING, "never ended"
        if out.error is not None:
            assert out.error.code == "internal_error" or (lost and out.error.code == "media_lost"), out.error
            continue
        if handle in aborted and out.finish == ABORTED:
            assert out.tokens == full[: len(out.tokens)]
            continue
        assert out.tokens == full
