"""What each token contributes to decoded text, worked out once per model from the decoder in tokenizer.json.

A decoder is a chain of stages. Three shapes matter, best first:

- ByteLevel (GPT-2, Llama 3, Qwen, SmolLM, DeepSeek): a token is bytes, a text is their concatenation: `ByteTable`.
- Stages that look at one token at a time, apart from a rule for the very first one, then perhaps byte fallback and
  a strip of the whole text (Llama 2, Mistral, Gemma, Metaspace, WordPiece, no decoder at all): `PieceTable`.
- Anything else: None, and `detokenizer.WindowDetokenizer` asks the library again and again.

`clean_up_tokenization_spaces` of tokenizer_config.json is left alone on purpose: it rewrites text across tokens
after decoding and corrupts code; WordPiece has its own clean-up in its decoder, and that is honoured.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from tokenizers import Regex, decoders

from shared.vocabulary import Vocabulary

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class ByteTable:
    """Tokens as bytes. Skipped and unknown tokens have none."""

    data: list[bytes]
    texts: list[str | None]
    """The token's bytes as text, None when they are not whole characters by themselves."""

    def token_bytes(self, token_id: int) -> bytes:
        return self.data[token_id]

    def without(self, skipped: frozenset[int]) -> ByteTable:
        """The same table in which `skipped` ids give nothing."""
        data, texts = list(self.data), list(self.texts)
        for i in skipped:
            data[i], texts[i] = b"", ""
        return ByteTable(data, texts)


@dataclass(frozen=True, slots=True)
class PieceTable:
    """Tokens as pieces of text; None = skipped or unknown, as if it were not there."""

    first: list[str | None]
    """The piece of a token that starts the text."""
    rest: list[str | None]
    """Its piece anywhere else."""
    byte_of: dict[int, int]
    """Byte-fallback tokens."""
    strip: str
    """A character stripped from the start of the text,"""
    strip_count: int
    """up to that many times."""

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self.byte_of:
            return bytes((self.byte_of[token_id],))
        return (self.rest[token_id] or "").encode()

    def without(self, skipped: frozenset[int]) -> PieceTable:
        """The same table in which `skipped` ids give nothing."""
        first, rest = list(self.first), list(self.rest)
        for i in skipped:
            first[i] = rest[i] = None
        bytes_left = {i: b for i, b in self.byte_of.items() if i not in skipped}
        return PieceTable(first, rest, bytes_left, self.strip, self.strip_count)


def build_table(vocabulary: Vocabulary) -> ByteTable | PieceTable | None:
    """The table of a vocabulary, special tokens included; None when its decoder has no such shape."""
    stages = _stages(orjson.loads(vocabulary.tokenizer.to_str()).get("decoder"))
    kinds = [stage["type"] for stage in stages]
    if [k for k in kinds if k != "Fuse"] == ["ByteLevel"]:
        return _byte_table(vocabulary.tokens)
    split = next((i for i, k in enumerate(kinds) if k in ("ByteFallback", "Fuse")), len(kinds))
    per_token, whole = stages[:split], stages[split:]
    if any(stage["type"] not in _PER_TOKEN for stage in per_token):
        return None
    fallback = bool(whole) and whole[0]["type"] == "ByteFallback"
    match whole[1:] if fallback else whole:
        case [] | [{"type": "Fuse"}]:
            strip, count = "", 0
        case [{"type": "Fuse"}, {"type": "Strip", "content": str(strip), "start": int(count), "stop": 0}]:
            pass
        case _:
            return None
    first, rest = _pieces(vocabulary.tokens, per_token, joined_by_spaces=not stages)
    byte_of = _byte_tokens(rest) if fallback else {}
    return PieceTable(first, rest, byte_of, strip, count)


def _stages(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        return [decoder]
    return [stage for inner in decoder["decoders"] for stage in _stages(inner)]


# ByteLevel: 256 printable stand-ins for the 256 bytes (GPT-2's table).
class _StandIns(dict[int, int]):
    """Stand-in character to byte, for `str.translate`; any other character becomes one that latin-1 refuses."""

    def __missing__(self, key: int) -> int:
        return 0xFFFF


def _stand_ins() -> _StandIns:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return _StandIns({**{b: b for b in plain}, **{256 + i: b for i, b in enumerate(others)}})


def _byte_table(tokens: list[str | None]) -> ByteTable:
    table = _stand_ins()
    data = [b"" if token is None else _token_bytes(token, table) for token in tokens]
    return ByteTable(data, [_text(b) for b in data])


def _token_bytes(token: str, table: _StandIns) -> bytes:
    try:
        return token.translate(table).encode("latin-1")
    except UnicodeEncodeError:  # an added token with a character that is no stand-in: its own UTF-8
        return token.encode()


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


# Decoders that treat tokens one by one.
_PER_TOKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "Replace": lambda s: decoders.Replace(_pattern(s["pattern"]), s["content"]),
    "Metaspace": lambda s: decoders.Metaspace(s["replacement"], s.get("prepend_scheme", "always")),
    "WordPiece": lambda s: decoders.WordPiece(s["prefix"], s["cleanup"]),
    "Strip": lambda s: decoders.Strip(s["content"], s["start"], s["stop"]),
}


def _pattern(pattern: dict[str, str]) -> Any:
    return pattern["String"] if "String" in pattern else Regex(pattern["Regex"])


def _pieces(
    tokens: list[str | None], per_token: list[dict[str, Any]], *, joined_by_spaces: bool
) -> tuple[list[str | None], list[str | None]]:
    if joined_by_spaces:  # tokenizer.json without a decoder
        return list(tokens), [None if t is None else " " + t for t in tokens]
    if not per_token:
        return list(tokens), list(tokens)
    chain = decoders.Sequence([_PER_TOKEN[stage["type"]](stage) for stage in per_token])
    anchor = "a"
    at = len(chain.decode([anchor]))
    first = [None if t is None else chain.decode([t]) for t in tokens]
    rest = [None if t is None else chain.decode([anchor, t])[at:] for t in tokens]
    return first, rest


def _byte_tokens(pieces: list[str | None]) -> dict[int, int]:
    found = ((i, _BYTE_TOKEN.fullmatch(p)) for i, p in enumerate(pieces) if p is not None)
    return {i: int(match[1], 16) for i, match in found if match}
