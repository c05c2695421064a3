"""What an engine has to say after a step: token batches by tokenizer, in order of happening.

The common case (every live row gained one token) is built with array operations only.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from services.scheduler.request import Req
from services.scheduler.token_logprobs import Index, TokenLogprobs
from shared import messages as m
from shared.errors import RhizomeError
from shared.messages.generation import RUNNING

I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


class Outbox:
    """Ordered (tokenizer id, batch) pairs, emptied by the service. `owner` numbers stand for tokenizer ids."""

    def __init__(self, scheduler_id: str) -> None:
        self._scheduler_id = scheduler_id
        self._numbers: dict[str, int] = {}
        self._ids: list[str] = []
        self.pending: list[tuple[str, m.TokenBatch]] = []

    def owner(self, tokenizer_id: str) -> int:
        """Small number for a tokenizer id, for use in arrays."""
        number = self._numbers.get(tokenizer_id)
        if number is None:
            number = self._numbers[tokenizer_id] = len(self._ids)
            self._ids.append(tokenizer_id)
        return number

    def take(self) -> list[tuple[str, m.TokenBatch]]:
        out, self.pending = self.pending, []
        return out

    def tokens(
        self, owners: I32, handles: npt.NDArray[np.uint32], counts: I32, totals: I32, tokens: I32, finish: U8,
        cached: I32, logprobs: TokenLogprobs | None = None,
    ) -> None:  # fmt: skip
        """Tokens of N rows, `counts` [N] of each in `tokens` and `logprobs`; the other arrays are [N]."""
        for owner in np.unique(owners):
            pick: Index | slice = slice(None)
            several: Index | slice = pick
            if len(self._ids) > 1:
                pick, several = np.flatnonzero(owners == owner), np.flatnonzero(np.repeat(owners, counts) == owner)
            of = None if logprobs is None else logprobs.take(several)
            batch = m.TokenBatch(
                scheduler_id=self._scheduler_id, handles=handles[pick], counts=counts[pick], totals=totals[pick],
                tokens=tokens[several], finish=finish[pick], cached_tokens=cached[pick],
                logprobs=None if of is None else of.chosen, top_ids=None if of is None else of.top_ids,
                top_logprobs=None if of is None else of.top,
            )  # fmt: skip
            self.pending.append((self._ids[owner], batch))

    def prompt_logprobs(
        self, req: Req, cached: int, total: int, logprobs: F32, top_ids: I32 | None, top: F32 | None
    ) -> None:
        """Logprobs of prompt positions, before the request's first token."""
        batch = dataclasses.replace(
            self._entry(req, RUNNING, cached, total),
            prompt_counts=np.array([len(logprobs)], np.int32), prompt_logprobs=logprobs,
            prompt_top_ids=top_ids, prompt_top_logprobs=top,
        )  # fmt: skip
        self.pending.append((req.tokenizer_id, batch))

    def end(self, req: Req, code: int, *, total: int, cached: int = -1) -> None:
        """The request ends without another token."""
        self.pending.append((req.tokenizer_id, self._entry(req, code, cached, total)))

    def failed(self, req: Req, fault: RhizomeError) -> None:
        """The request ends with an error, which is its last word."""
        error = m.TokenError(req.handle, m.ErrorInfo(fault.code, fault.message, fault.param))
        none, no_codes = np.empty(0, np.int32), np.empty(0, np.uint8)
        batch = m.TokenBatch(
            scheduler_id=self._scheduler_id, handles=np.empty(0, np.uint32), counts=none, totals=none, tokens=none,
            finish=no_codes, cached_tokens=none, errors=[error],
        )  # fmt: skip
        self.pending.append((req.tokenizer_id, batch))

    def ledger(self, tokenizer_id: str, number: int, entries: list[tuple[int, int]]) -> None:
        """All requests of a tokenizer, as (handle, tokens told so far)."""
        handles, totals = np.array(entries, np.int64).reshape(-1, 2).T
        n = len(entries)
        batch = m.TokenBatch(
            scheduler_id=self._scheduler_id, handles=handles.astype(np.uint32), counts=np.zeros(n, np.int32),
            totals=totals.astype(np.int32), tokens=np.empty(0, np.int32), finish=np.full(n, RUNNING, np.uint8),
            cached_tokens=np.full(n, -1, np.int32), ledger=number,
        )  # fmt: skip
        self.pending.append((tokenizer_id, batch))

    def _entry(self, req: Req, code: int, cached: int, total: int) -> m.TokenBatch:
        """One request, no token."""
        return m.TokenBatch(
            scheduler_id=self._scheduler_id, handles=np.array([req.handle], np.uint32),
            counts=np.zeros(1, np.int32), totals=np.array([total], np.int32), tokens=np.empty(0, np.int32),
            finish=np.array([code], np.uint8), cached_tokens=np.array([cached], np.int32),
        )  # fmt: skip
