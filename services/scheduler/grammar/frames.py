"""Frames between the scheduler and its compile processes: two lengths, a JSON header, raw bytes."""

from __future__ import annotations

import asyncio
import struct
from typing import Any, BinaryIO

import orjson

_LENGTHS = struct.Struct("<II")
Frame = tuple[dict[str, Any], bytes]


def pack(header: dict[str, Any], blob: bytes) -> bytes:
    """One frame."""
    head = orjson.dumps(header)
    return _LENGTHS.pack(len(head), len(blob)) + head + blob


def write_frame(out: BinaryIO, header: dict[str, Any], blob: bytes) -> None:
    """Write and flush one frame."""
    out.write(pack(header, blob))
    out.flush()


def read_frame(source: BinaryIO) -> Frame:
    """Raises EOFError: the input ended."""
    head, blob = _LENGTHS.unpack(_exactly(source, _LENGTHS.size))
    return orjson.loads(_exactly(source, head)), _exactly(source, blob)


async def receive_frame(reader: asyncio.StreamReader) -> Frame:
    """Raises asyncio.IncompleteReadError: the other side is gone."""
    head, blob = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    header: dict[str, Any] = orjson.loads(await reader.readexactly(head))
    return header, await reader.readexactly(blob)


def _exactly(source: BinaryIO, count: int) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise EOFError
    return data
