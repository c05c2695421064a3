"""Images and videos: tokenizer <-> vision, and how their embeddings reach the engines.

Embeddings never travel in messages. A message carries an `EmbeddingRef`; whoever needs the numbers maps the file on the
same host, or asks the vision instance to put them into the object store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shared.messages.embedding import EmbeddingRef
from shared.messages.generation import ErrorInfo
from shared.wire import message

MediaKind = Literal["image", "video"]
Detail = Literal["auto", "low", "high"]


@dataclass(frozen=True, slots=True)
class MediaSource:
    """Where an image or a video comes from."""

    url: str
    """http:, https:, data: or file: (from allowed folders), or blob: (see `shared.blobs`)."""
    kind: MediaKind = "image"
    detail: Detail = "auto"
    """OpenAI's: "low" bounds the tokens of an image; "auto" and "high" are as large as the model takes it."""
    param: str = ""
    """The request's field, for errors."""
    fps: float | None = None
    """Frames a second sampled from a video; None = the model's own."""
    max_frames: int | None = None


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
