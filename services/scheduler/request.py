"""`Req`: one request as the scheduler sees it, from queue to last token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.scheduler.constraint import Constraint
from services.scheduler.prompt_media import PromptMedia
from services.scheduler.radix_cache import RadixCache, RadixNode
from shared import messages as m
from shared.grammar import GrammarSpec
from shared.sampling import SamplingParams

I32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class Found:
    """A waiting request's cached prefix, as of `version` of `cache`."""

    cache: RadixCache
    version: int = -1
    node: RadixNode | None = None
    tokens: int = 0


@dataclass(slots=True, eq=False)
class Req:
    """Waiting (row < 0) or running (row >= 0) on one engine. Mutated by that engine alone.

    While it waits, `ids` is everything known: the prompt and, after a retraction, the tokens generated so far.
    While it runs, the row's entry in the engine's `RowTable` holds them.
    """

    rid: str
    tokenizer_id: str
    handle: int
    ids: I32
    """[prompt + generated] int32"""
    prompt_len: int
    sampling: SamplingParams
    max_new_tokens: int
    stop_ids: frozenset[int]
    """EOS (unless ignored) and the request's own stop ids."""
    return_logprob: bool
    top_logprobs_num: int
    logprob_start: int
    """First prompt position whose logprob is wanted; -1 = none, or already delivered."""
    priority: int
    cache_salt: str
    arrived_s: float
    """Monotonic."""
    deadline_s: float
    """Monotonic; infinity = none."""
    num_generated: int = 0
    cached_tokens: int = -1
    """Prompt tokens found in the cache at the first admission; -1 before."""
    cached_untold: int = -1
    """Of these, what its tokenizer has still to be told; -1 = nothing."""
    found: Found | None = None
    """What of `ids` was cached when somebody asked last."""
    row: int = -1
    node: RadixNode | None = None
    """Locked end of the cached path that the row stands on."""
    admitted: int = 0
    """Order of admission; the latest is retracted first."""
    retracting: bool = False
    done: bool = False
    """Has had its last word; whatever still arrives for it is ignored."""
    queued_since_s: float = 0.0
    grammar: GrammarSpec | None = None
    constraint: Constraint | None = None
    """Set once the grammar is compiled; until then the request is on no engine."""
    eos_ids: frozenset[int] = frozenset()
    """What ends a text that a grammar says is complete."""
    media: PromptMedia | None = None
    """Images and videos in the prompt."""
    pinned: tuple[str, ...] = ()
    """Of them, what the engine's ranks must keep for it."""
    losses: int = 0
    """Engines that failed while it ran; a request that takes engines down is not tried for ever."""

    @classmethod
    def from_message(cls, msg: m.TokenizedRequest, now_s: float, ids: I32 | None = None) -> Req:
        """ids: those of `msg` with names for its images and videos (`MediaNames.key_ids`), where it has any."""
        stop_ids = set(msg.sampling.stop_token_ids)
        if not msg.sampling.ignore_eos or msg.grammar is not None:  # a complete text allows nothing else
            stop_ids |= set(msg.eos_token_ids)
        assert msg.sampling.max_new_tokens is not None
        return cls(
            rid=msg.rid, tokenizer_id=msg.tokenizer_id, handle=msg.handle, ids=msg.input_ids if ids is None else ids,
            prompt_len=len(msg.input_ids), sampling=msg.sampling, max_new_tokens=msg.sampling.max_new_tokens,
            stop_ids=frozenset(stop_ids), return_logprob=msg.return_logprob, top_logprobs_num=msg.top_logprobs_num,
            logprob_start=msg.logprob_start_len if msg.return_logprob else -1, priority=msg.priority,
            cache_salt=msg.cache_salt, arrived_s=now_s, queued_since_s=now_s,
            deadline_s=now_s + msg.timeout_s if msg.timeout_s else float("inf"), grammar=msg.grammar,
            eos_ids=frozenset(msg.eos_token_ids),
            media=PromptMedia(msg.media, msg.input_ids, msg.positions, msg.position_delta) if msg.media else None,
        )  # fmt: skip

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.logprob_start >= 0

    @property
    def match_limit(self) -> int:
        """Most tokens that may come from the cache: the rest is needed for logits."""
        limit = len(self.ids) - 1
        if self.wants_prompt_logprobs:
            limit = min(limit, max(self.logprob_start - 1, 0))
        return limit

    def row_init(self, row: int) -> m.RowInit:
        """What the worker has to know when this request gets a row."""
        s = self.sampling
        least = 0 if self.grammar is not None else s.min_new_tokens  # the grammar decides what may end when
        penalised = s.repetition_penalty not in (None, 1.0) or s.presence_penalty != 0 or s.frequency_penalty != 0
        return m.RowInit(
            row=row,
            temperature=_given(s.temperature, 1.0), top_p=_given(s.top_p, 1.0), top_k=int(_given(s.top_k, -1)),
            min_p=_given(s.min_p, 0.0), presence_penalty=s.presence_penalty, frequency_penalty=s.frequency_penalty,
            repetition_penalty=_given(s.repetition_penalty, 1.0), seed=s.seed, num_generated=self.num_generated,
            min_new_tokens=least, stop_ids=sorted(self.stop_ids) if least else [],
            logit_bias=s.logit_bias, return_logprob=self.return_logprob, top_logprobs_num=self.top_logprobs_num,
            position_delta=0 if self.media is None else self.media.position_delta,
            history_ids=self._history() if s.repetition_penalty not in (None, 1.0) else [],
            output_ids=self.ids[self.prompt_len :].tolist() if penalised else [],
        )  # fmt: skip

    def _history(self) -> list[int]:
        ids = self.ids[: self.prompt_len]
        return (ids if self.media is None else self.media.ids(ids, 0)).tolist()


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
