"""Deltas -> messages that fit the bus."""

from __future__ import annotations

import dataclasses

from shared import messages as m
from shared import wire
from shared.errors import TooLarge


@dataclasses.dataclass(slots=True)
class Packets:
    """Encoded `TextDeltas` in order, and the requests whose delta was replaced by an error because it fits nowhere."""

    data: list[bytes] = dataclasses.field(default_factory=list)
    refused_rids: list[str] = dataclasses.field(default_factory=list)


def pack(deltas: list[m.TextDelta], max_bytes: int) -> Packets:
    """Put the deltas of one reply subject into as few messages as fit: almost always one."""
    out = Packets()
    _pack(deltas, max_bytes, out)
    return out


def _pack(deltas: list[m.TextDelta], max_bytes: int, out: Packets) -> None:
    try:
        data = wire.encode(m.TextDeltas(deltas))
        if len(data) <= max_bytes:
            out.data.append(data)
            return
    except TooLarge:
        pass
    if len(deltas) > 1:
        half = len(deltas) // 2
        _pack(deltas[:half], max_bytes, out)
        _pack(deltas[half:], max_bytes, out)
        return
    out.refused_rids.append(deltas[0].rid)
    out.data.append(wire.encode(m.TextDeltas([_refusal(deltas[0], max_bytes)])))


def _refusal(delta: m.TextDelta, max_bytes: int) -> m.TextDelta:
    error = m.ErrorInfo(
        TooLarge.code,
        f"one part of the answer is over the message limit of {max_bytes:,} bytes: ask for fewer logprobs, or stream",
    )
    return m.TextDelta(
        delta.rid, delta.seq, completion_tokens=delta.completion_tokens, finish_reason="error", error=error
    )
