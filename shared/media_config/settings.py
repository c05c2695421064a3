"""What a vision-language checkpoint says about images and videos, in one form for all families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@dataclass(frozen=True, slots=True)
class PixelScale:
    """From bytes to what the encoder takes: (byte * factor - mean) / std, per channel of RGB."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    factor: float = 1 / 255


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """How an image is brought to size."""

    resample: int
    """Pillow's number of the filter."""
    min_pixels: int = 0
    max_pixels: int = 0
    """Models of any resolution: the area that an image is resized to lies between these."""
    pad_to_square: bool = False
    """Models of one resolution: the shorter edge is padded, instead of the longer one cropped."""
    pinpoints: tuple[tuple[int, int], ...] = ()
    """(height, width) of canvases that are cut into tiles; empty = the model sees one square."""


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """How frames are chosen and brought to size."""

    resample: int
    min_pixels: int
    max_pixels: int
    """Of a frame, or of all frames together: what the family's processing makes of them."""
    fps: float
    """Frames a second that are looked at when a request does not say."""
    min_frames: int
    max_frames: int
    max_tokens: int | None = None
    """Bounds a frame's share further; None = nothing does."""


@dataclass(frozen=True, slots=True)
class LlavaSettings:
    """How features of the tower become embeddings in the LLaVA families."""

    feature_layers: tuple[int, ...]
    """Hidden states of the tower that are joined; 0 = its input, -1 = after its last layer."""
    keep_class_token: bool
    projector_layers: int
    projector_act: str
    projector_bias: bool
    tower: str | None = None
    """Folder or hub name of the tower's own checkpoint, for when the model's does not contain it."""


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """Of one checkpoint."""

    family: Family
    hidden_size: int
    """Of the language model."""
    image_token_id: int
    """Stands for an image's embeddings in a prompt."""
    video_token_id: int | None
    vision_start_token_id: int | None
    vision_end_token_id: int | None
    placeholder: str | None
    """What chat templates write for an image where the tokenizer has no token of that name; None = it has one."""
    patch_size: int
    merge_size: int
    """A token covers merge_size * merge_size patches."""
    temporal_patch_size: int
    """Frames that are joined to one."""
    vision: dict[str, Any]
    """Fields of the vision tower, those that the file leaves out filled in."""
    pixels: PixelScale
    image: ImageSettings
    video: VideoSettings | None
    """None: the model takes no videos."""
    deepstack_levels: int = 0
    """Layers of the language model, from the first, that get embeddings of their own."""
    mrope: bool = False
    """Positions have three dimensions."""
    tokens_per_second: float | None = None
    """Positions in time per second of a video; None = a joined frame is one position."""
    llava: LlavaSettings | None = None

    @property
    def width(self) -> int:
        """Numbers per token of an embedding."""
        return self.hidden_size * (1 + self.deepstack_levels)
