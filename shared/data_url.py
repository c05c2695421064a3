"""`data:` URLs of images and videos, strictly: what is not exactly right is refused, never guessed at.

Used by the gateway, which hands large ones on by reference, and by vision for the small ones.
"""

from __future__ import annotations

import binascii
import re

from shared.errors import InvalidRequest

_HEAD = re.compile(
    r"data:(image|video)/[A-Za-z0-9.+-]{1,64}(;[A-Za-z0-9_-]{1,32}=[A-Za-z0-9._-]{1,64}){0,4};base64,", re.I
)
_PIECE_CHARS = 1024 * 1024
"""Decoded at once, so that a thread that decodes megabytes lets others run in between. A multiple of 4."""


def decode(url: str, param: str | None = None) -> bytes:
    """The bytes in a `data:` URL.

    Raises:
        InvalidRequest: it is not `data:image/...;base64,` or `data:video/...;base64,` and padded base64.
    """
    head = _HEAD.match(url)
    if head is None:
        raise InvalidRequest("a data: URL must begin like data:image/png;base64, (image or video)", param=param)
    start, end = head.end(), len(url)
    if start == end:
        raise InvalidRequest("the data: URL is empty", param=param)
    if (end - start) % 4:
        raise InvalidRequest("the data: URL is not valid base64: its length is not a multiple of 4", param=param)
    if url.find("=", start, end - 2) >= 0:
        raise InvalidRequest("the data: URL is not valid base64: padding before its end", param=param)
    out = bytearray()
    try:
        for at in range(start, end, _PIECE_CHARS):
            out += binascii.a2b_base64(url[at : min(at + _PIECE_CHARS, end)], strict_mode=True)
    except ValueError as fault:
        raise InvalidRequest(f"the data: URL is not valid base64: {fault}", param=param) from fault
    return bytes(out)
