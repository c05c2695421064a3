"""A model's tokens as grammar engines see them: the bytes of every id, the special ids, and the canonical encoder.

Read once when the scheduler starts to compile. Knows no grammar library.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from shared import vocabulary as shared_vocabulary
from shared.decode_tables import build_table
from shared.errors import ConfigError
from shared.model_config import load_model_config


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Immutable, lives as long as the process."""

    token_bytes: list[bytes]
    """[V] What each token adds to the text; empty for special tokens and for ids without a token."""
    special_tokens: dict[str, int]
    """Special tokens by their text; a text never spells them, only a structural tag or the request's end may."""
    tokenizer: Tokenizer | None
    """Its `encode_batch_fast` is the canonical encoder. None where only masks matter: cuts are greedy then."""

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        return frozenset(self.special_tokens.values())

    @property
    def size(self) -> int:
        """V: rows of the model's lm_head, padding included."""
        return len(self.token_bytes)

    def text_of(self, token_ids: Sequence[int]) -> bytes:
        """Bytes that tokens add to a text."""
        return b"".join(self.token_bytes[i] for i in token_ids if 0 <= i < self.size)

    def encode(self, text: bytes) -> list[int]:
        """Canonical ids of a text, such that their bytes are exactly `text`.

        What the tokenizer cannot give (half a character, a prefix space that it adds by itself) is covered by the
        longest tokens that fit, from left to right; bytes that no token covers end the list.
        """
        ids = self.encode_after(b"", text)
        return self._greedy(text) if ids is None else ids

    def encode_after(self, context: bytes, text: bytes) -> list[int] | None:
        """Ids of `text` as the tokenizer cuts it when `context` stands before it; None when that is no clean cut.

        A token that straddles the boundary, or an encoder that changes the text, gives None.
        """
        if self.tokenizer is None:
            return None
        whole = _from_whole_character(context) + text
        try:
            ids = self.tokenizer.encode_batch_fast([whole.decode()], add_special_tokens=False)[0].ids
        except UnicodeDecodeError:
            return None
        left, start = len(text), len(ids)
        while left > 0 and start > 0:
            start -= 1
            left -= len(self._bytes(ids[start]))
        return ids[start:] if left == 0 and self.text_of(ids[start:]) == text else None

    def _bytes(self, token_id: int) -> bytes:
        return self.token_bytes[token_id] if token_id < self.size else b""

    @functools.cached_property
    def _by_bytes(self) -> tuple[dict[bytes, int], int]:
        table = {data: i for i, data in reversed(list(enumerate(self.token_bytes))) if data}
        return table, min(max(map(len, table), default=1), 32)

    def _greedy(self, text: bytes) -> list[int]:
        table, longest = self._by_bytes
        ids, at = [], 0
        while at < len(text):
            for length in range(min(longest, len(text) - at), 0, -1):
                found = table.get(text[at : at + length])
                if found is not None:
                    ids.append(found)
                    at += length
                    break
            else:
                return ids
        return ids

    def pack(self) -> tuple[dict[str, Any], bytes]:
        """The vocabulary as a header and raw bytes, for another process. The tokenizer stays behind."""
        lengths = np.array([len(data) for data in self.token_bytes], np.uint32)
        header = {"size": self.size, "special_tokens": self.special_tokens}
        return header, lengths.tobytes() + b"".join(self.token_bytes)

    @staticmethod
    def unpack(header: dict[str, Any], blob: bytes) -> Vocabulary:
        """The reverse of `pack`."""
        lengths = np.frombuffer(blob, np.uint32, count=header["size"])
        ends = header["size"] * 4 + np.cumsum(lengths, dtype=np.int64)
        cuts = zip(ends.tolist(), lengths.tolist(), strict=True)
        return Vocabulary([blob[end - length : end] for end, length in cuts], header["special_tokens"], None)


def from_tokenizer(vocabulary: shared_vocabulary.Vocabulary) -> Vocabulary:
    """The grammar engines' view of a loaded vocabulary.

    Raises:
        ConfigError: tokens of this tokenizer have no bytes of their own, so that no grammar can be followed.
    """
    table = build_table(vocabulary)
    decoder = type(vocabulary.tokenizer.decoder).__name__
    if table is None or decoder in ("NoneType", "WordPiece"):
        raise ConfigError(
            f"tokenizer.json has the decoder {decoder}, under which a token has no bytes of its own: grammars "
            "need a byte-level or byte-fallback tokenizer"
        )
    special = vocabulary.special_ids
    size = vocabulary.size
    data = [b"" if i in special else table.token_bytes(i) for i in range(min(size, len(vocabulary.tokens)))]
    data += [b""] * (size - len(data))
    texts = {str(vocabulary.tokens[i]): i for i in sorted(special) if i < size}
    return Vocabulary(data, texts, vocabulary.tokenizer)


def load_vocabulary(model_path: str | Path) -> Vocabulary:
    """Read tokenizer.json and the size of the model's lm_head.

    Raises:
        ConfigError: a file is missing or unreadable, or grammars cannot work with this tokenizer.
    """
    size = load_model_config(model_path).vocab_size
    return from_tokenizer(shared_vocabulary.load_vocabulary(model_path, size))


def _from_whole_character(data: bytes) -> bytes:
    """`data` without continuation bytes at its start."""
    start = 0
    while start < len(data) and start < 4 and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:]
