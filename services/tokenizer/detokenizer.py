"""Token ids to text, one token at a time.

Every detokenizer keeps two promises for any sequence of ids: the pieces it returns, joined, are the text that
one-shot decoding of all the ids gives, and no piece ends inside a character (what is not decided yet is held back
until the next token or `finish`). One instance per stream; it knows nothing of stop strings or messages.
"""

from __future__ import annotations

from codecs import utf_8_decode
from typing import Protocol

from shared.decode_tables import ByteTable, PieceTable, build_table
from shared.vocabulary import Vocabulary

REPLACEMENT = "\ufffd"
MAX_HELD_TOKENS = 64
"""`WindowDetokenizer` gives up waiting for a character to become whole after this many tokens."""


class Detokenizer(Protocol):
    """Text of one stream."""

    def add(self, token_id: int) -> str:
        """The text that this token settles; "" when everything is still held back."""

    def finish(self) -> str:
        """What was held back, invalid bytes as U+FFFD. Nothing may be added afterwards."""


class ByteLevelDetokenizer:
    """Byte-level BPE: look up the token's bytes, decode UTF-8 incrementally. O(1) per token."""

    __slots__ = ("_data", "_pending", "_texts")

    def __init__(self, table: ByteTable) -> None:
        self._data, self._texts = table.data, table.texts
        self._pending = b""

    def add(self, token_id: int) -> str:
        if not self._pending:
            text = self._texts[token_id]
            if text is not None:
                return text
        data = self._pending + self._data[token_id]
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def finish(self) -> str:
        text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        return text


class PieceDetokenizer:
    """Piece tables with byte fallback. O(1) per token.

    A run of byte tokens is decided as a whole (valid UTF-8, or one U+FFFD per byte), so it is held until it ends.
    Skipped tokens do not end a run.
    """

    __slots__ = ("_run", "_started", "_strip_left", "_table")

    def __init__(self, table: PieceTable) -> None:
        self._table = table
        self._run = bytearray()
        self._started = False
        self._strip_left = table.strip_count

    def add(self, token_id: int) -> str:
        table = self._table
        byte = table.byte_of.get(token_id)
        if byte is not None:
            self._run.append(byte)
            self._started = True
            return ""
        piece = table.rest[token_id] if self._started else table.first[token_id]
        if piece is None:
            return ""
        self._started = True
        if self._run:
            piece = self._end_run() + piece
        return self._stripped(piece) if self._strip_left else piece

    def finish(self) -> str:
        return self._stripped(self._end_run())

    def _end_run(self) -> str:
        run, self._run = self._run, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(run)

    def _stripped(self, piece: str) -> str:
        while self._strip_left and piece:
            if piece[0] != self._table.strip:
                self._strip_left = 0
                break
            piece = piece[1:]
            self._strip_left -= 1
        return piece


class WindowDetokenizer:
    """Any other decoder: decode a short window of ids again with each token and return what is new.

    Equals one-shot decoding where a token's text depends on no more than its neighbours.
    """

    __slots__ = ("_ids", "_read", "_read_text", "_skipped", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, skipped: frozenset[int]) -> None:
        self._vocabulary, self._skipped = vocabulary, skipped
        self._ids: list[int] = []  # the window
        self._read = 0  # ids of the window whose text was returned
        self._read_text = ""

    def add(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        held = len(self._ids) - self._read
        if (text.endswith(REPLACEMENT) and held < MAX_HELD_TOKENS) or len(text) <= len(self._read_text):
            return ""
        new = text[len(self._read_text) :]
        del self._ids[: self._read]
        self._read = len(self._ids)
        self._read_text = self._decode(self._ids)
        return new

    def finish(self) -> str:
        return self._decode(self._ids)[len(self._read_text) :]

    def _decode(self, ids: list[int]) -> str:
        return self._vocabulary.decode(ids, skip_special_tokens=False)


class Detokenizers:
    """Makes the detokenizer that a vocabulary needs. Immutable, one per process."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._table = build_table(vocabulary)
        self._tables: dict[frozenset[int], ByteTable | PieceTable | None] = {frozenset(): self._table}

    def new(self, *, skip_special_tokens: bool, kept: frozenset[int] = frozenset()) -> Detokenizer:
        """A detokenizer for one stream.

        Args:
            kept: special tokens that are shown in any case; few different sets are ever asked for.
        """
        skipped = self._vocabulary.special_ids - kept if skip_special_tokens else frozenset()
        if skipped not in self._tables:
            self._tables[skipped] = None if self._table is None else self._table.without(skipped)
        table = self._tables[skipped]
        if isinstance(table, ByteTable):
            return ByteLevelDetokenizer(table)
        if isinstance(table, PieceTable):
            return PieceDetokenizer(table)
        return WindowDetokenizer(self._vocabulary, skipped)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token as it appears inside a text, special tokens spelled out."""
        if self._table is not None:
            return self._table.token_bytes(token_id)
        return self._vocabulary.decode([token_id], skip_special_tokens=False).encode()
