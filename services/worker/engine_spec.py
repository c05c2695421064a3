"""What an engine is, in plain values: read by the service without importing torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Fixed when the engine is built; the same on all its ranks."""

    engine_id: str
    group: list[str]
    """Instance ids of the ranks, rank 0 first."""
    model: str
    tp_size: int
    device: str
    dtype: str
    attention_backend: str
    page_size: int
    num_pages: int
    max_rows: int
    context_length: int
    vocab_size: int
    prefill_tokens: int
    mask_slots: int
    """Places in the bank of masks of grammars."""
    media_bytes: int = 0
    """Embeddings of images and videos that may be staged; 0: the model takes text only."""
