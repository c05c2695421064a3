"""Names of embeddings: equal exactly when content, model and settings are equal, on every host."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shared.messages.embedding import MediaSource

_SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_SAMPLES = 8
_SAMPLE_BYTES = 16 * 1024


def model_fingerprint(folder: Path, *settings: str) -> str:
    """Of a model directory and of what else changes its embeddings. Reads settings whole and weights in samples."""
    digest = hashlib.blake2b(digest_size=16)
    for text in settings:
        digest.update(text.encode() + b"\0")
    for name in _SETTINGS:
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"-")
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for i in range(_SAMPLES):
                file.seek(size * i // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def media_key(data: bytes, source: MediaSource, fingerprint: str) -> str:
    """32 hexadecimal digits for one image or video under one model."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{fingerprint} {source.kind} {source.detail} {source.fps} {source.max_frames}\0".encode())
    digest.update(data)
    return digest.hexdigest()
