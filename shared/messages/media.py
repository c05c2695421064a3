"""Images and videos: tokenizer <-> vision, and how their embeddings reach the engines.

Embeddings never travel in messages. A message carries an `EmbeddingRef`; whoever needs the numbers maps the file on the
same host, or asks the vision instance to put them into the object store.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.messages.embedding import EmbeddingRef, MediaKind, MediaSource
from shared.messages.generation import ErrorInfo
from shared.wire import message


@message(max_bytes=8 * 1024 * 1024)
class EncodeMedia:
    """Tokenizer -> vision (queue group), answered by `EncodeAccepted` at once and by `MediaEncoded` when done."""

    tokenizer_id: str
    handle: int
    """The tokenizer's number of this demand."""
    rid: str
    sources: list[MediaSource]


@message()
class EncodeAccepted:
    """Answer to `EncodeMedia`: this instance works on it."""

    vision_id: str


@dataclass(frozen=True, slots=True)
class EncodedMedia:
    """One image or video, ready for the language model."""

    kind: MediaKind
    ref: EmbeddingRef
    grid: list[int] = field(default_factory=list)
    """[t, h, w] in tokens, for models with positions of three dimensions; empty for others."""
    timestamps_s: list[float] = field(default_factory=list)
    """Of a video: the time of each of the t frames (pairs of frames, where the model joins two)."""
    seconds_per_frame: float = 0.0
    """Of a video: time between two of the t frames, as the model's processor counts it."""


@message(max_bytes=1024 * 1024)
class MediaEncoded:
    """Vision -> tokenizer: all media of a demand in its order, or what is wrong with them."""

    vision_id: str
    handle: int
    media: list[EncodedMedia] = field(default_factory=list)
    error: ErrorInfo | None = None


@message()
class CancelEncode:
    """Tokenizer -> vision instance: nobody waits for this demand any more."""

    tokenizer_id: str
    handle: int


@message()
class ShareEmbedding:
    """Worker rank on another host -> vision instance: put it into the object store. Answered by `EmbeddingShared`."""

    key: str


@message()
class EmbeddingShared:
    """Answer to `ShareEmbedding`: the object, which expires by itself."""

    bucket: str
    name: str


@message(max_bytes=1024 * 1024)
class StageMedia:
    """Scheduler -> all ranks of an engine: have these embeddings at hand. Each rank answers with `MediaStaged`."""

    engine_id: str
    session: str
    slots: list[int]
    """Numbers by which plans name them; a plan's `drop_media` ends one."""
    refs: list[EmbeddingRef]


@message(max_bytes=1024 * 1024)
class MediaStaged:
    """Worker rank -> scheduler."""

    engine_id: str
    session: str
    tp_rank: int
    slots: list[int]
    """Ready."""
    missing: list[int] = field(default_factory=list)
    """Nobody has them any more."""
