"""Pictures like photographs (soft shapes, a little noise), each different, as JPEG; and requests with them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import orjson
from PIL import Image


def picture(side: int, seed: int) -> bytes:
    """A square JPEG."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    coarse = coarse.resize((side, side), Image.Resampling.BICUBIC)
    grain = rng.integers(-6, 7, (side, side, 1), dtype=np.int16)
    pixels = np.clip(np.asarray(coarse, np.int16) + grain, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def chat_body(urls: list[str], *, max_tokens: int, salt: str = "", text: str = "Describe the image.") -> bytes:
    """A streamed, greedy chat request with images before the text."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return orjson.dumps({
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}], "temperature": 0,
        "max_tokens": max_tokens, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        **({"cache_salt": salt} if salt else {}),
    })  # fmt: skip
