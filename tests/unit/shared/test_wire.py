"""Encoding and decoding of every message class; what happens to bytes that are none."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import messages as m
from shared import wire
from shared.errors import InvalidRequest, TooLarge, WireError
from tests.unit.shared.message_strategies import equal, instances

CLASSES = wire.message_classes()
BY_NAME = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
FAST = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

PLAN = m.StepPlan(
    engine_id="e", session="s", seq=3,
    ext_rows=np.array([1], np.int32), ext_starts=np.array([0], np.int32), ext_lens=np.array([3], np.int32),
    ext_tokens=np.array([5, 6, 7], np.int32), ext_sample=np.array([1], np.uint8),
    decode_rows=np.array([], np.int32),
)  # fmt: skip


def frame(header: object, tail: bytes = b"") -> bytes:
    head = orjson.dumps(header)
    return wire.MAGIC + struct.pack("<I", len(head)) + head + b"\0" * (-len(head) % 8) + tail


def result_header(*specs: list[Any]) -> dict[str, Any]:
    return {"m": {"engine_id": "e", "session": "s", "seq": 0}, "a": list(specs)}


def test_every_message_class_is_exported_by_the_messages_package() -> None:
    assert {c.__name__ for c in CLASSES} <= set(m.__all__)


@BY_NAME
@FAST
@given(data=st.data())
def test_every_message_survives_the_round_trip(cls: type, data: st.DataObject) -> None:
    msg = data.draw(instances(cls))
    assert equal(wire.decode(cls, wire.encode(msg)), msg)


@BY_NAME
@FAST
@given(data=st.data())
def test_a_damaged_message_is_a_wire_error_or_another_message(cls: type, data: st.DataObject) -> None:
    raw = bytearray(wire.encode(data.draw(instances(cls))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decode_or_wire_error(cls, bytes(raw))
    decode_or_wire_error(cls, bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@BY_NAME
@FAST
@given(raw=st.binary(max_size=64))
def test_random_bytes_are_a_wire_error(cls: type, raw: bytes) -> None:
    decode_or_wire_error(cls, raw)
    decode_or_wire_error(cls, wire.MAGIC + raw)
    decode_or_wire_error(cls, b'{"a":' + raw)


def decode_or_wire_error(cls: type, raw: bytes) -> None:
    with contextlib.suppress(WireError):
        assert isinstance(wire.decode(cls, raw), cls)


def test_every_truncation_of_a_frame_is_a_wire_error() -> None:
    raw = wire.encode(PLAN)
    padding = 7  # the tail of the last array may be padding that carries nothing
    for length in range(len(raw) - padding):
        with pytest.raises(WireError):
            wire.decode(m.StepPlan, raw[:length])


def test_arrays_come_back_as_aligned_read_only_views_of_the_message() -> None:
    raw = wire.encode(PLAN)
    plan = wire.decode(m.StepPlan, raw)
    assert plan.ext_tokens is not None
    assert not plan.ext_tokens.flags.writeable
    assert not plan.ext_tokens.flags.owndata
    address = np.frombuffer(raw, np.uint8).__array_interface__["data"][0]
    assert (plan.ext_tokens.__array_interface__["data"][0] - address) % 8 == 0


def test_an_empty_array_is_not_the_same_as_no_array() -> None:
    assert wire.decode(m.StepPlan, wire.encode(PLAN)).decode_rows is not None
    bare = m.StepPlan(engine_id="e", session="s", seq=0)
    assert wire.decode(m.StepPlan, wire.encode(bare)).decode_rows is None


def test_big_endian_and_strided_arrays_travel_by_value() -> None:
    values = np.arange(10, dtype=">i4")[::2]
    plan = m.StepPlan(engine_id="e", session="s", seq=0, decode_rows=values)
    out = wire.decode(m.StepPlan, wire.encode(plan)).decode_rows
    assert out is not None
    assert out.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    "shape", [[2**40], [2**62], [2**63], [2**64 - 1], [2**32, 2**32], [-1], [-5], [1.5], ["3"], [True], [[1], [2, 3]],
              None, 1, "1", {"a": 1}, [1] * 100],
)  # fmt: skip
def test_a_shape_that_the_bytes_do_not_hold_is_refused_without_allocating_it(shape: object) -> None:
    raw = frame(result_header(["tokens", "<i4", shape]), b"\0" * 4)
    tracemalloc.start()
    with pytest.raises(WireError):
        wire.decode(m.StepResult, raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize(
    "spec",
    [["nothing", "<i4", [1]], ["seq", "<i4", [1]], ["tokens", "<f8", [1]], ["tokens", "|O", [1]], ["tokens", [], [1]],
     [{}, "<i4", [1]], ["tokens"], "tokens", None],
)  # fmt: skip
def test_an_unknown_array_is_refused(spec: Any) -> None:
    with pytest.raises(WireError):
        wire.decode(m.StepResult, frame(result_header(spec), b"\0" * 8))


@pytest.mark.parametrize("header", [[], {}, None, 3, {"m": {}}, {"a": []}, {"m": [], "a": []}, {"m": {}, "a": {}}])
def test_a_frame_header_of_another_form_is_refused(header: object) -> None:
    with pytest.raises(WireError):
        wire.decode(m.StepResult, frame(header))


def test_a_missing_required_array_is_refused_by_name() -> None:
    for raw in (frame(result_header()), orjson.dumps(result_header()["m"])):
        with pytest.raises(WireError, match="tokens"):
            wire.decode(m.StepResult, raw)


def test_a_header_length_beyond_the_message_is_refused() -> None:
    with pytest.raises(WireError):
        wire.decode(m.StepResult, wire.MAGIC + struct.pack("<I", 2**32 - 1) + b"{}")


def test_the_path_of_a_wrong_field_is_kept() -> None:
    raw = orjson.dumps({"deltas": [{"rid": "a", "seq": 0}, {"rid": "b", "seq": "x"}]})
    with pytest.raises(WireError, match=r"deltas\[1\].seq") as caught:
        wire.decode(m.TextDeltas, raw)
    assert caught.value.param == "deltas[1].seq"


def test_deep_nesting_is_a_wire_error() -> None:
    for depth in (500, 1000, 5000):
        raw = b'{"rids":' + b"[" * depth + b"]" * depth + b"}"
        with pytest.raises(WireError):
            wire.decode(m.Abort, raw)


def test_a_value_that_json_cannot_carry_is_an_invalid_request() -> None:
    nested: Any = "x"
    for _ in range(600):
        nested = [nested]
    chat = m.ChatInput(messages=[{"role": "user", "content": nested}])
    for msg in (m.Tokenize(chat=chat), m.Tokenize(text="\ud800")):
        with pytest.raises(InvalidRequest):
            wire.encode(msg)


def test_no_limit_is_over_what_the_server_takes() -> None:
    assert all(wire.max_bytes(c) <= wire.MAX_PAYLOAD_BYTES for c in CLASSES)


def test_a_message_over_the_limit_of_its_class_is_too_large() -> None:
    limit = wire.max_bytes(m.Text)
    overhead = len(wire.encode(m.Text("")))
    assert len(wire.encode(m.Text("x" * (limit - overhead)))) == limit
    with pytest.raises(TooLarge, match=f"{limit + 1:,} bytes is over its limit of {limit:,}"):
        wire.encode(m.Text("x" * (limit - overhead + 1)))


def test_unicode_travels() -> None:
    text = "é漢字🦜\u0000\u2028\ufffd"
    assert wire.decode(m.Text, wire.encode(m.Text(text))).text == text
