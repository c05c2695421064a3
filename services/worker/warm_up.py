"""Plans that an engine runs before it is announced, so that the first request finds everything compiled, allocated and
connected. Knows messages, not the engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from services.worker.engine_spec import EngineSpec
from shared.messages.step import I32, RowInit, StepPlan

SESSION = "warm-up"
_PROMPT_TOKENS = 32
_SPARE = 6
"""Slots for the tokens that a row decodes."""
_AS_ASKED = {
    "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "presence_penalty": 0.1, "seed": 0,
    "logit_bias": {"0": 1.0}, "min_new_tokens": 1, "stop_ids": [0], "return_logprob": True, "top_logprobs_num": 2,
}  # fmt: skip
"""Everything a request may want of sampling."""


def warm_up_plans(spec: EngineSpec, *, thorough: bool) -> Iterator[StepPlan]:
    """The session `SESSION`: a small prompt and two decode steps, as far as the engine has room for them.

    Args:
        thorough: then also the longest prompt that a step may have, beside a decode row, sampled in every way and with
            log probabilities of the prompt; and decode steps of both rows. For devices whose kernels are compiled when
            they first run: the others gain nothing from what takes them seconds.
    """
    small = min(_PROMPT_TOKENS, spec.context_length - _SPARE, spec.num_pages * spec.page_size - _SPARE)
    if small < 1:
        return
    seq = itertools.count()
    pages = -(-(small + _SPARE) // spec.page_size)
    yield _prompt(spec, next(seq), RowInit(0, top_p=0.9, seed=0), small, 1, pages)
    for _ in range(2):
        yield StepPlan(spec.engine_id, SESSION, next(seq), decode_rows=_i32(0))
    left = (spec.num_pages - pages) * spec.page_size
    large = min(spec.prefill_tokens, spec.context_length - _SPARE, left - _SPARE)
    if not thorough or spec.max_rows < 2 or large < 2:
        return
    asked = RowInit(1, **_AS_ASKED)  # type: ignore[arg-type]
    large_pages = -(-(large + _SPARE) // spec.page_size)
    yield _prompt(spec, next(seq), asked, large, 1 + pages, large_pages, decode=(0,), lp_start=large - 2)
    for _ in range(2):
        yield StepPlan(spec.engine_id, SESSION, next(seq), decode_rows=_i32(0, 1))


def _prompt(
    spec: EngineSpec, seq: int, init: RowInit, tokens: int, first_page: int, pages: int,
    decode: tuple[int, ...] = (), lp_start: int = -1,
) -> StepPlan:  # fmt: skip
    return StepPlan(
        spec.engine_id, SESSION, seq, new_rows=[init],
        page_rows=_i32(init.row), page_starts=_i32(first_page), page_lens=_i32(pages),
        ext_rows=_i32(init.row), ext_starts=_i32(0), ext_lens=_i32(tokens), ext_tokens=np.zeros(tokens, np.int32),
        ext_sample=np.ones(1, np.uint8), ext_lp_starts=_i32(lp_start), ext_next=_i32(-1), decode_rows=_i32(*decode),
    )  # fmt: skip


def _i32(*values: int) -> I32:
    return np.array(values, np.int32)
