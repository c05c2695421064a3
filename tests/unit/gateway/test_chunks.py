"""Chunk bytes that are joined by hand equal the JSON that a dict would have given."""

from __future__ import annotations

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.logprobs import CompletionOffsets, chat_logprobs
from services.gateway.sse import ChunkTemplate
from shared import messages as m

NASTY = ['"', "\\", "\n", "\r\n\r\n", "\x00", "\u2028", "</script>", "data: [DONE]", "é", "😀", "\ufffd", "", " "]


@given(st.one_of(st.sampled_from(NASTY), st.text(max_size=30)), st.text(max_size=20), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_a_chunk_is_one_event_of_valid_json_whatever_the_text_and_the_model_name(
    text: str, model: str, index: int
) -> None:
    template = ChunkTemplate("chatcmpl-1", "chat.completion.chunk", 1, model, with_usage=True)
    tail = b'},"logprobs":null,"finish_reason":null'
    frame = template.choice(index) + b'"delta":{"content":' + orjson.dumps(text) + tail + template.end
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    assert b"\n" not in frame[:-2]
    assert b"\r" not in frame
    assert orjson.loads(frame.removeprefix(b"data: ")) == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "system_fingerprint": None,
        "choices": [{"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}],
        "usage": None,
    }


def test_text_offsets_count_characters_even_when_tokens_split_them() -> None:
    grin = "😀".encode()
    tokens = [
        m.TokenLogprob(1, "a", -1.0, list(b"a")),
        m.TokenLogprob(2, "\ufffd", -1.0, list(grin[:2])),
        m.TokenLogprob(3, "\ufffd", -1.0, list(grin[2:])),
        m.TokenLogprob(4, "é!", -1.0, list("é!".encode())),
        m.TokenLogprob(5, "<eos>", -1.0),
    ]
    assert CompletionOffsets().take(tokens).text_offset == [0, 1, 2, 2, 4]


def test_minus_infinity_becomes_a_number_and_unknown_bytes_null() -> None:
    top = [m.TopLogprob(1, "\ufffd", float("-inf"))]
    one = chat_logprobs([m.TokenLogprob(1, "x", float("-inf"), [], top)]).content[0]
    assert (one.logprob, one.bytes) == (-9999.0, [120])
    assert (one.top_logprobs[0].logprob, one.top_logprobs[0].bytes) == (-9999.0, None)
