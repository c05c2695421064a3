"""Token log probabilities of the bus in the three shapes of the HTTP routes."""

from __future__ import annotations

from collections.abc import Sequence

from services.gateway.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    ChatTopLogprob,
    CompletionLogprobs,
    LogprobEntry,
)
from shared.messages import TokenLogprob, TopLogprob

FLOOR = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """`choices[].logprobs` of chat completions."""
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                t.token, _finite(t.logprob), t.bytes or _utf8(t.token),
                [ChatTopLogprob(a.token, _finite(a.logprob), _utf8(a.token)) for a in t.top],
            )
            for t in tokens
        ]
    )  # fmt: skip


class CompletionOffsets:
    """Turns tokens of one choice into completion logprobs, counting characters from call to call."""

    def __init__(self) -> None:
        self._offset = 0

    def take(self, tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """`choices[].logprobs` for the next tokens of the choice."""
        offsets = []
        for t in tokens:
            offsets.append(self._offset)
            # A character belongs to the token that has its first byte.
            self._offset += sum(b & 0xC0 != 0x80 for b in t.bytes) if t.bytes else len(t.token)
        return CompletionLogprobs(
            tokens=[t.token for t in tokens],
            token_logprobs=[None if t.logprob is None else _finite(t.logprob) for t in tokens],
            top_logprobs=[_alternatives(t) for t in tokens],
            text_offset=offsets,
        )


def native_logprobs(tokens: Sequence[TokenLogprob], with_text: bool) -> list[LogprobEntry]:
    """`*_token_logprobs` of /generate."""
    return [
        [None if t.logprob is None else _finite(t.logprob), t.token_id, t.token if with_text else None] for t in tokens
    ]


def native_top_logprobs(tokens: Sequence[TokenLogprob], with_text: bool) -> list[list[LogprobEntry] | None]:
    """`*_top_logprobs` of /generate; null where there is none."""
    return [[_entry(a, with_text) for a in t.top] if t.top else None for t in tokens]


def _entry(a: TopLogprob, with_text: bool) -> LogprobEntry:
    return [_finite(a.logprob), a.token_id, a.token if with_text else None]


def _alternatives(t: TokenLogprob) -> dict[str, float] | None:
    """The most likely tokens, and the token itself in any case."""
    if t.logprob is None:
        return None
    return {a.token: _finite(a.logprob) for a in t.top} | {t.token: _finite(t.logprob)}


def _finite(logprob: float | None) -> float:
    return FLOOR if logprob is None or not logprob > FLOOR else logprob


def _utf8(token: str) -> list[int] | None:
    """Bytes of a token's text; unknown where the text stands for bytes that are no character."""
    return None if "\ufffd" in token else list(token.encode())
