"""Embeddings of one image or video as one file, so that processes of a host share them without copying.

    b"RZEMB1\\0\\0" | u32 offset of the rows | u32 length of the JSON | JSON of `EncodedMedia` | zeros | rows

The rows start on a multiple of 4096 bytes and lie there raw: `tokens` times `width` numbers, little-endian. Whole files
are written under another name and then renamed, so a file with the right name is complete. Vision writes them, worker
ranks map them; the object store carries whole files. Nothing here knows torch: rows are bytes.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import secrets
import struct
from pathlib import Path

import numpy as np
import orjson

from shared import schema
from shared.errors import InvalidRequest, MediaLost, Unavailable
from shared.messages.embedding import EmbeddingRef
from shared.messages.media import EncodedMedia

SUFFIX = ".emb"
TEMP_SUFFIX = ".tmp"
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_MAGIC = b"RZEMB1\0\0"
_LENGTHS = struct.Struct("<II")
_PREFIX_BYTES = len(_MAGIC) + _LENGTHS.size
_ALIGN_BYTES = 4096
_MAX_HEADER_BYTES = 1024 * 1024


def row_bytes(ref: EmbeddingRef) -> int:
    """Bytes of one token's embedding."""
    return ref.width * DTYPE_BYTES[ref.dtype]


def file_bytes(media: EncodedMedia) -> int:
    """About the bytes that `write` will take: exact but for the length of a path."""
    return len(_header(media)) + media.ref.tokens * row_bytes(media.ref)


def write(folder: Path, media: EncodedMedia, rows: bytes | memoryview) -> EmbeddingRef:
    """Write `<folder>/<key>.emb`, replacing one that is there.

    Args:
        media: its `ref.path` is ignored; everything else is written as it is.
        rows: contiguous bytes, `tokens` times `row_bytes`.

    Returns:
        The reference with the file's path.

    Raises:
        Unavailable: the folder cannot be written, or its memory is full.
    """
    assert memoryview(rows).nbytes == media.ref.tokens * row_bytes(media.ref)
    path = folder / f"{media.ref.key}{SUFFIX}"
    ref = dataclasses.replace(media.ref, path=str(path))
    temp = folder / f".{media.ref.key}.{secrets.token_hex(4)}{TEMP_SUFFIX}"
    try:
        with temp.open("xb", buffering=0) as file:
            for part in (_header(dataclasses.replace(media, ref=ref)), rows):
                _write_all(file.fileno(), memoryview(part).cast("B"))
        temp.rename(path)
    except OSError as fault:
        temp.unlink(missing_ok=True)
        raise Unavailable(
            f"embeddings cannot be kept in {folder}: {fault.strerror}. Give it more shared memory (docker: shm_size), "
            "lower --embedding-cache-bytes or choose another --shared-memory-dir"
        ) from fault
    return ref


def read_header(path: Path) -> EncodedMedia:
    """What a file holds.

    Raises:
        MediaLost: there is no such file, or it is not a complete one.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(_PREFIX_BYTES)
            offset, _ = _lengths(prefix)
            media = _parse_header(prefix + file.read(offset - len(prefix)))
            size = os.fstat(file.fileno()).st_size
    except OSError as fault:
        raise MediaLost(f"no embeddings in {path}: {fault.strerror}") from fault
    if size != offset + media.ref.tokens * row_bytes(media.ref):
        raise MediaLost(f"{path} of {size:,} bytes is not complete")
    return media


def map_rows(ref: EmbeddingRef) -> np.ndarray:
    """The embeddings of a reference, straight from shared memory.

    They stay readable when the file is removed meanwhile; the memory is freed with the last array.

    Shape:
        read-only uint8 [tokens, width * bytes of dtype]

    Raises:
        MediaLost: the file is gone, or holds something else by now.
    """
    try:
        with open(ref.path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as fault:
        raise MediaLost(f"no embeddings in {ref.path}: {fault}") from fault
    return rows_in(data, ref)


def rows_in(data: bytes | mmap.mmap, ref: EmbeddingRef) -> np.ndarray:
    """The embeddings in the bytes of a whole file, as the object store carries it. Nothing is copied.

    Shape:
        read-only uint8 [tokens, width * bytes of dtype]

    Raises:
        MediaLost: they are not those of this reference.
    """
    offset, _ = _lengths(data[:_PREFIX_BYTES])
    found = _parse_header(data[:offset]).ref
    if (found.key, found.tokens, found.width, found.dtype) != (ref.key, ref.tokens, ref.width, ref.dtype):
        raise MediaLost(f"{ref.path} holds embeddings of {found.key}, not of {ref.key}")
    if len(data) != offset + ref.tokens * row_bytes(ref):
        raise MediaLost(f"{ref.path} of {len(data):,} bytes is not complete")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(ref.tokens, row_bytes(ref))


def _header(media: EncodedMedia) -> bytes:
    text = orjson.dumps(schema.to_json(media))
    offset = -(-(_PREFIX_BYTES + len(text)) // _ALIGN_BYTES) * _ALIGN_BYTES
    return (_MAGIC + _LENGTHS.pack(offset, len(text)) + text).ljust(offset, b"\0")


def _lengths(prefix: bytes) -> tuple[int, int]:
    if len(prefix) < _PREFIX_BYTES or not prefix.startswith(_MAGIC):
        raise MediaLost("not a file of embeddings")
    offset, length = _LENGTHS.unpack_from(prefix, len(_MAGIC))
    if not _PREFIX_BYTES + length <= offset <= _MAX_HEADER_BYTES:
        raise MediaLost("not a file of embeddings: its header is damaged")
    return offset, length


def _parse_header(head: bytes) -> EncodedMedia:
    _, length = _lengths(head)
    try:
        return schema.parse(EncodedMedia, orjson.loads(head[_PREFIX_BYTES : _PREFIX_BYTES + length]))
    except (orjson.JSONDecodeError, InvalidRequest) as fault:
        raise MediaLost(f"not a file of embeddings: {fault}") from fault


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
