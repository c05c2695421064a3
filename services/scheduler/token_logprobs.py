"""Log probabilities of a step's tokens on their way from a worker's answer to the tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of T tokens, with K alternatives each."""

    chosen: F32
    """[T] NaN where not asked for"""
    top_ids: I32 | None
    """[T, K] padded with -1"""
    top: F32 | None
    """[T, K]"""

    @classmethod
    def of(cls, chosen: F32 | None, top_ids: I32 | None, top: F32 | None, keep: Index) -> TokenLogprobs | None:
        """Those at the indices `keep` of a step's answer, if it has any."""
        return None if chosen is None else cls(chosen, top_ids, top).take(keep)

    def take(self, keep: Index | slice) -> TokenLogprobs:
        return TokenLogprobs(
            self.chosen[keep],
            None if self.top_ids is None else self.top_ids[keep],
            None if self.top is None else self.top[keep],
        )

    def behind(self, forced: Mapping[int, TokenLogprobs], rows: I32, counts: I32) -> TokenLogprobs:
        """These, of one sampled token per row, each behind what its row was forced to.

        Args:
            forced: by row; rows that asked for nothing are missing.
            rows: [N]
            counts: [N] tokens of each row, the sampled one last.
        """
        ends = np.cumsum(counts)
        parts = [(ends[i] - counts[i], forced[row]) for i, row in enumerate(rows.tolist()) if row in forced]
        chosen = np.full(ends[-1], np.nan, np.float32)
        chosen[ends - 1] = self.chosen
        widths = [part.top_ids.shape[1] for part in (self, *(p for _, p in parts)) if part.top_ids is not None]
        width = max(widths, default=0)
        top_ids, top = np.full((len(chosen), width), -1, np.int32), np.full((len(chosen), width), np.nan, np.float32)
        for at, part in [*parts, (ends - 1, self)]:
            where = at if isinstance(at, np.ndarray) else np.arange(at, at + len(part.chosen))
            chosen[where] = part.chosen
            if part.top_ids is not None and part.top is not None:
                top_ids[where, : part.top_ids.shape[1]] = part.top_ids
                top[where, : part.top.shape[1]] = part.top
        return TokenLogprobs(chosen, top_ids if width else None, top if width else None)
