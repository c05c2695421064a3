"""Images and videos as other messages name them: where they come from, and where their embeddings are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class EmbeddingRef:
    """Embeddings of one image or video, which some vision instance holds."""

    key: str
    """32 hexadecimal digits: hash of the content, the model and the settings it was processed with."""
    vision_id: str
    """Whom to ask where the file cannot be seen."""
    path: str
    """Absolute path of the file (`shared.embedding_file`) in shared memory."""
    tokens: int
    width: int
    """Numbers per token: hidden size, times 1 + levels where deeper layers get embeddings of their own."""
    dtype: str
    """float32, float16 or bfloat16."""


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """Prompt tokens that stand for (a part of) an image or video."""

    start: int
    """First position in the prompt."""
    tokens: int
    ref: EmbeddingRef
    offset: int = 0
    """First row of the embeddings; not 0 where text lies between frames of a video."""
