"""Messages <-> bytes.

A message class is a dataclass decorated with `@message(max_bytes)`. Without arrays it is one JSON object, so a
`nats sub` reads it as it is. With arrays it is a frame:

    b"RZ1\\0" | u32 header length | JSON header | pad | array 0 | pad | array 1 ...

with little-endian arrays, each starting on a multiple of 8 bytes and read back as read-only zero-copy views.
The header is `{"m": fields, "a": [[name, dtype, shape], ...]}`. No pickle, no code, nothing implied by order.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import orjson

from shared import schema
from shared.errors import InvalidRequest, TooLarge, WireError

T = TypeVar("T")
MAGIC = b"RZ1\0"
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024  # what the NATS server of a deployment must allow (`max_payload`)
_DTYPES = {"<i4", "<i8", "<u4", "<u8", "<f4", "|u1", "|b1"}
_MAX_DIMS = 4
_PAD = b"\0" * 8


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def message(max_bytes: int = 64 * 1024) -> Callable[[type[T]], type[T]]:
    """Class decorator: a frozen, slotted dataclass that may travel, with the most bytes it may take."""

    def wrap(cls: type[T]) -> type[T]:
        out = dataclasses.dataclass(frozen=True, slots=True)(cls)
        _LIMITS[out] = max_bytes
        return out

    return wrap


def max_bytes(cls: type) -> int:
    """The size limit given to `@message`."""
    return _LIMITS[cls]


def message_classes() -> list[type]:
    """Every message class that has been imported, in order of definition."""
    return list(_LIMITS)


def encode(msg: Any) -> bytes:
    """Message to bytes.

    Raises:
        TooLarge: the encoded message is over the limit of its class.
        InvalidRequest: a value is nested too deeply or holds text that is no valid Unicode.
    """
    header = schema.to_json(msg)
    names = _array_fields(type(msg))  # type: ignore[arg-type]
    arrays = [(n, a) for n in names if (a := getattr(msg, n)) is not None]
    try:
        data = orjson.dumps(header) if not arrays else _frame(header, arrays)
    except orjson.JSONEncodeError as fault:
        raise InvalidRequest(f"{type(msg).__name__} cannot be written as JSON: {fault}") from fault
    limit = _LIMITS[type(msg)]
    if len(data) > limit:
        raise TooLarge(f"{type(msg).__name__} of {len(data):,} bytes is over its limit of {limit:,}")
    return data


def decode(cls: type[T], data: bytes) -> T:
    """Bytes to a message; arrays are views into `data`.

    Raises:
        WireError: the bytes are no message of this class.
    """
    try:
        msg = _unframe(cls, data) if data[:4] == MAGIC else schema.parse(cls, orjson.loads(data))
    except (orjson.JSONDecodeError, struct.error, ValueError, KeyError, IndexError, TypeError) as fault:
        raise WireError(f"not a {cls.__name__}: {fault}") from fault
    except InvalidRequest as fault:
        raise WireError(f"not a {cls.__name__}: {fault.message}", param=fault.param) from fault
    for name in _required_arrays(cls):  # type: ignore[arg-type]
        if getattr(msg, name) is None:
            raise WireError(f"not a {cls.__name__}: missing array {name!r}", param=name)
    return msg


_LIMITS: dict[type, int] = {}


@functools.cache
def _array_fields(cls: type) -> tuple[str, ...]:
    return tuple(name for name, tp in schema.hints(cls).items() if schema.is_array_type(tp))


@functools.cache
def _required_arrays(cls: type) -> tuple[str, ...]:
    names = _array_fields(cls)
    return tuple(f.name for f in dataclasses.fields(cls) if f.name in names and f.default is dataclasses.MISSING)


def _frame(header: dict[str, Any], arrays: list[tuple[str, Any]]) -> bytes:
    specs = [[name, a.dtype.newbyteorder("<").str, list(a.shape)] for name, a in arrays]
    head = orjson.dumps({"m": header, "a": specs})
    parts = [MAGIC, struct.pack("<I", len(head)), head, _PAD[: -len(head) % 8]]
    for _, a in arrays:
        raw = np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<")).tobytes()
        parts += (raw, _PAD[: -len(raw) % 8])
    return b"".join(parts)


def _unframe(cls: type[T], data: bytes) -> T:
    (head_len,) = struct.unpack_from("<I", data, 4)
    head = orjson.loads(data[8 : 8 + head_len])
    msg = schema.parse(cls, head["m"])
    known = _array_fields(cls)  # type: ignore[arg-type]
    at = 8 + head_len + (-head_len % 8)
    for name, dtype, shape in head["a"]:
        if name not in known or dtype not in _DTYPES:
            raise WireError(f"{cls.__name__} has no array {name!r} of {dtype}")
        a = np.frombuffer(data, dtype=dtype, count=_count(shape, len(data)), offset=at).reshape(shape)
        object.__setattr__(msg, name, a)
        at += a.nbytes + (-a.nbytes % 8)
    return msg


def _count(shape: Any, most: int) -> int:
    """Number of elements of a shape that came from outside; never negative, so never "all that is left"."""
    if type(shape) is not list or len(shape) > _MAX_DIMS:
        raise ValueError("a shape is a short list of sizes")
    if not all(type(size) is int and 0 <= size <= most for size in shape) or math.prod(shape) > most:
        raise ValueError("an array is longer than the message")
    return math.prod(shape)
