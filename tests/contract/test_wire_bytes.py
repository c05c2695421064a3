"""Golden bytes: the wire format cannot change without somebody changing this file.

A rolling restart mixes versions, and NATS users write these messages by hand; a difference here breaks them.
"""

from __future__ import annotations

import numpy as np
import pytest

from shared import messages as m
from shared import wire
from shared.sampling import SamplingParams

GENERATE = m.GenerateRequest(
    rid="r1",
    reply="me.stream",
    text="Hi",
    sampling=SamplingParams(max_new_tokens=4, temperature=0.0, stop=["\n"]),
)
DELTAS = m.TextDeltas(
    [
        m.TextDelta("r1", 0, "Hé", [5, 6], prompt=m.PromptInfo(3, 0), completion_tokens=2),
        m.TextDelta("r2", 7, completion_tokens=9, finish_reason="stop", matched_stop=2),
    ]
)
LEDGER = m.TextDeltas([], m.DeltaLedger("tokenizer-0-a1b2c3", 4, ["r1", "r2"], [3, 0]))
ERROR = m.ErrorReply(m.ErrorInfo("invalid_request", "top_p must be in (0, 1], got 2.0", "top_p"))
PLAN = m.StepPlan(
    engine_id="e0", session="s0", seq=1, new_rows=[m.RowInit(row=2, seed=7)],
    page_rows=np.array([2], np.int32), page_starts=np.array([4], np.int32), page_lens=np.array([1], np.int32),
    ext_rows=np.array([2], np.int32), ext_starts=np.array([0], np.int32), ext_lens=np.array([3], np.int32),
    ext_tokens=np.array([10, 11, 12], np.int32), ext_sample=np.array([1], np.uint8),
)  # fmt: skip
RESULT = m.StepResult("e0", "s0", 1, np.array([42], np.int32), logprobs=np.array([-0.5], np.float32))

PLAN_HEADER = (
    b'{"m":{"engine_id":"e0","session":"s0","seq":1,"new_rows":[{"row":2,"seed":7,"stop_ids":[],"logit_bias":{},'
    b'"history_ids":[],"output_ids":[]}]},"a":[["page_rows","<i4",[1]],["page_starts","<i4",[1]],'
    b'["page_lens","<i4",[1]],["ext_rows","<i4",[1]],["ext_starts","<i4",[1]],["ext_lens","<i4",[1]],'
    b'["ext_tokens","<i4",[3]],["ext_sample","|u1",[1]]]}'
)
RESULT_HEADER = (
    b'{"m":{"engine_id":"e0","session":"s0","seq":1,"timing":{}},"a":[["tokens","<i4",[1]],["logprobs","<f4",[1]]]}'
)
GOLDEN = {
    "generate": (
        GENERATE,
        b'{"rid":"r1","reply":"me.stream","text":"Hi","sampling":{"max_new_tokens":4,"temperature":0.0,'
        b'"logit_bias":{},"stop":["\\n"],"stop_token_ids":[]}}',
    ),
    "deltas": (
        DELTAS,
        b'{"deltas":[{"rid":"r1","seq":0,"text":"H\xc3\xa9","token_ids":[5,6],"logprobs":[],'
        b'"prompt":{"prompt_tokens":3,"cached_tokens":0,"logprobs":[]},"completion_tokens":2},'
        b'{"rid":"r2","seq":7,"token_ids":[],"logprobs":[],"completion_tokens":9,"finish_reason":"stop",'
        b'"matched_stop":2}]}',
    ),
    "ledger": (
        LEDGER,
        b'{"deltas":[],"ledger":{"tokenizer_id":"tokenizer-0-a1b2c3","number":4,"rids":["r1","r2"],"seqs":[3,0]}}',
    ),
    "error": (
        ERROR,
        b'{"error":{"code":"invalid_request","message":"top_p must be in (0, 1], got 2.0","param":"top_p"}}',
    ),
    "plan": (
        PLAN,
        b"RZ1\0" + len(PLAN_HEADER).to_bytes(4, "little") + PLAN_HEADER + b"\0" * (-len(PLAN_HEADER) % 8)
        + b"\2\0\0\0\0\0\0\0" + b"\4\0\0\0\0\0\0\0" + b"\1\0\0\0\0\0\0\0"  # page runs
        + b"\2\0\0\0\0\0\0\0" + b"\0\0\0\0\0\0\0\0" + b"\3\0\0\0\0\0\0\0"  # extend rows, starts, lengths
        + b"\x0a\0\0\0\x0b\0\0\0\x0c\0\0\0\0\0\0\0" + b"\1\0\0\0\0\0\0\0",  # tokens, sample
    ),
    "result": (
        RESULT,
        b"RZ1\0" + len(RESULT_HEADER).to_bytes(4, "little") + RESULT_HEADER + b"\0" * (-len(RESULT_HEADER) % 8)
        + b"\x2a\0\0\0\0\0\0\0" + b"\0\0\0\xbf\0\0\0\0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_of_a_message_are_the_published_ones(name: str) -> None:
    msg, raw = GOLDEN[name]
    assert wire.encode(msg) == raw


@pytest.mark.parametrize("name", GOLDEN)
def test_the_published_bytes_are_understood(name: str) -> None:
    msg, raw = GOLDEN[name]
    assert wire.encode(wire.decode(type(msg), raw)) == raw


def test_fields_may_come_in_any_order_and_spacing() -> None:
    raw = b' {"text": "Hi",\n "reply": "me.stream", "rid": "r1"} '
    assert wire.decode(m.GenerateRequest, raw) == m.GenerateRequest(rid="r1", reply="me.stream", text="Hi")
