"""Embeddings of images and videos on this rank's device, from the scheduler's word until a plan drops them.

One thread stages (`stage`), reading the files that the vision service wrote; the device thread uses them while it
executes plans. A slot is told ready only after its copy is done, so no plan names one that is not there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.worker.models.media_input import MediaInput
from services.worker.rows import I64
from shared.errors import MediaLost

KEPT_SESSIONS = 2
"""The one whose plans come, and the next one, whose first embeddings come before its first plan."""


class MediaStore:
    """Lives as long as the engine. Slots are numbers of a session."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """width: numbers per token, 0 for models that take text only."""
        self.width, self.dtype = width, dtype
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._sessions: dict[str, dict[int, Tensor]] = {}
        self._lock = threading.Lock()

    def begin(self, session: str) -> None:
        """A session's plans or embeddings come; those of older ones are forgotten."""
        with self._lock:
            self._sessions.setdefault(session, {})
            while len(self._sessions) > KEPT_SESSIONS:
                del self._sessions[next(iter(self._sessions))]

    def has(self, session: str, slot: int) -> bool:
        return slot in self._sessions.get(session, {})

    def stage(self, session: str, slot: int, rows: npt.NDArray[np.uint8], dtype: str) -> None:
        """Copy embeddings to the device and keep them.

        Args:
            rows: [tokens, bytes of a row]
            dtype: what the bytes are, by torch's name.

        Raises:
            MediaLost: they are not what this model takes.
        """
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or rows.shape[1] != self.width * kind.itemsize:
            raise MediaLost(f"embeddings of {rows.shape[1]} bytes in {dtype}, the model takes {self.width} numbers")
        copied = torch.empty(rows.shape, dtype=torch.uint8, pin_memory=self._stream is not None)
        np.copyto(copied.numpy(), rows)
        if self._stream is None:
            tensor = copied.view(kind).to(self.dtype)
        else:
            with torch.cuda.stream(self._stream):
                tensor = copied.view(kind).to(self._device, non_blocking=True).to(self.dtype)
            self._stream.synchronize()
            tensor.record_stream(torch.cuda.default_stream(self._device))
        self.begin(session)
        with self._lock:
            kept = self._sessions.get(session)
            if kept is not None:
                kept[slot] = tensor

    def tokens(self, session: str) -> Mapping[int, int]:
        """Tokens of each slot."""
        with self._lock:
            return {slot: len(tensor) for slot, tensor in self._sessions.get(session, {}).items()}

    def take(self, session: str, runs: I64, at: Tensor) -> MediaInput | None:
        """What a checked plan's `ext_media` [N, 4] names, for the tokens `at` [I]; None if it names nothing."""
        if not len(runs):
            return None
        with self._lock:
            kept = self._sessions[session]
            parts = [kept[slot][first : first + count] for _, count, slot, first in runs.tolist()]
        return MediaInput(at, torch.cat(parts) if len(parts) > 1 else parts[0])

    def drop(self, session: str, slots: I64) -> None:
        """No later plan names these."""
        with self._lock:
            for slot in slots.tolist():
                self._sessions.get(session, {}).pop(slot, None)
