"""Flags of the vision service. Imports nothing heavy, so that `--help` is quick and the launcher may read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.config import CommonConfig, option
from shared.errors import ConfigError

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Resolved once in `__main__`, passed down, never changed."""

    model_path: str = option(help="model directory in Hugging Face format", group="model", metavar="DIR")
    load_format: Literal["auto", "dummy"] = option(
        "auto", help="auto: safetensors; dummy: random weights, only config.json is read", group="model"
    )
    vision_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", help="of the encoder and of embeddings; auto: float32 on CPU, else the checkpoint's", group="vision"
    )
    vision_device: Literal["auto", "cpu", "cuda"] = option("auto", help="where the encoder runs", group="vision")
    vision_gpu_id: int = option(0, help="the GPU of the encoder; it may be that of a worker", group="vision")
    vision_threads: int = option(0, help="CPU threads of the encoder; 0 = torch's default", group="vision")
    decode_threads: int = option(2, help="images decoded and resized at the same time", group="vision")
    max_batch_patches: int = option(16384, help="patches encoded at once; one image may be more", group="vision")
    embedding_cache_bytes: int = option(
        1024 * _MIB, help="embeddings kept in shared memory; at most half of what is free there", group="vision"
    )
    shared_memory_dir: str = option(
        "", help="where processes of this host share media and embeddings (default: /dev/shm, else the directory for "
        "temporary files)", group="media", metavar="DIR",
    )  # fmt: skip

    allowed_media_hosts: tuple[str, ...] = option(
        (), help="host or host:port from which media may be fetched although its address is private, repeatable",
        group="media", metavar="HOST[:PORT]",
    )  # fmt: skip
    allowed_media_folder: tuple[str, ...] = option(
        (), help="folder from which file: URLs may be read, repeatable; none by default", group="media", metavar="DIR"
    )
    media_fetch_timeout_s: float = option(10.0, help="seconds to fetch one image or video", group="media")
    media_decode_timeout_s: float = option(30.0, help="seconds to read the frames of one video", group="media")
    max_media_bytes: int = option(64 * _MIB, help="largest image or video file", group="media")
    max_media_per_request: int = option(64, help="images and videos in one request", group="media")
    max_queued_media: int = option(256, help="images and videos in work or waiting; more are refused", group="media")
    max_image_pixels: int = option(64 * _MIB, help="largest image or video frame, pixels", group="media")
    max_image_side: int = option(16384, help="longest side of an image, pixels", group="media")
    max_video_pixels: int = option(256 * _MIB, help="pixels in all frames taken from one video", group="media")
    max_video_s: float = option(3600.0, help="longest video, seconds", group="media")
    common: CommonConfig = field(default_factory=CommonConfig)

    def __post_init__(self) -> None:
        for name in ("decode_threads", "max_batch_patches", "embedding_cache_bytes", "media_fetch_timeout_s",
                     "media_decode_timeout_s", "max_media_bytes", "max_media_per_request", "max_queued_media",
                     "max_image_pixels", "max_image_side", "max_video_pixels", "max_video_s"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be positive")
        for name in ("vision_gpu_id", "vision_threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must not be negative")
        for folder in self.allowed_media_folder:
            if not Path(folder).is_dir():
                raise ConfigError(f"--allowed-media-folder {folder}: no such directory")
