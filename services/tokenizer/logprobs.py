"""Logprob arrays of a token batch -> entries with the tokens' text and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.tokenizer.detokenizer import Detokenizers
from shared import messages as m
from shared.messages.generation import F32, I32

LEAST = -9999.0
"""Stands for minus infinity, which JSON does not have."""


@dataclass(frozen=True, slots=True)
class LogprobArrays:
    """A stretch of positions of one request: logprobs [T], alternatives [T, K] or None."""

    logprobs: list[float]
    top_ids: list[list[int]] | None
    top_logprobs: list[list[float]] | None

    @classmethod
    def cut(cls, logprobs: F32, top_ids: I32 | None, top_logprobs: F32 | None, start: int, end: int) -> LogprobArrays:
        """Positions start..end of a batch's arrays."""
        return cls(
            logprobs[start:end].tolist(),
            None if top_ids is None else top_ids[start:end].tolist(),
            None if top_logprobs is None else top_logprobs[start:end].tolist(),
        )


class LogprobTexts:
    """Spells tokens. Immutable."""

    def __init__(self, detokenizers: Detokenizers) -> None:
        self._bytes_of = detokenizers.token_bytes

    def entries(self, token_ids: list[int], arrays: LogprobArrays, top_num: int) -> list[m.TokenLogprob]:
        """One entry per token; at most `top_num` alternatives each (the batch may carry more for others)."""
        return [
            self._entry(token_id, logprob, self._top(arrays, i, top_num))
            for i, (token_id, logprob) in enumerate(zip(token_ids, arrays.logprobs, strict=False))
        ]

    def _entry(self, token_id: int, logprob: float, top: list[m.TopLogprob]) -> m.TokenLogprob:
        data = self._bytes_of(token_id)
        value = None if math.isnan(logprob) else max(logprob, LEAST)
        return m.TokenLogprob(token_id, data.decode("utf-8", "replace"), value, list(data), top)

    def _top(self, arrays: LogprobArrays, i: int, top_num: int) -> list[m.TopLogprob]:
        if not top_num or arrays.top_ids is None or arrays.top_logprobs is None:
            return []
        pairs = zip(arrays.top_ids[i][:top_num], arrays.top_logprobs[i], strict=False)
        return [
            m.TopLogprob(token_id, self._bytes_of(token_id).decode("utf-8", "replace"), max(logprob, LEAST))
            for token_id, logprob in pairs
            if token_id >= 0 and not math.isnan(logprob)
        ]
