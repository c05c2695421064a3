"""One forward as arrays: which tokens, at which positions, into which slots, and whose logits are wanted.

Built once per plan on the host, vectorised. Tokens of extend rows come first, then one per decode row, then
padding. Decode rows are ordered by length, so that attention can treat neighbours alike; `sample_at` undoes it. What
the device needs of all this goes there in one copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.worker.plan_check import Work
from services.worker.rows import I64, Rows, ragged_arange
from services.worker.upload import upload_all


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward. Lives for one step."""

    ids: Tensor
    """[T] int64"""
    positions: Tensor
    """[T] int64 rotary positions; [3, T] where a row's have three dimensions"""
    slots: Tensor
    """[T] int64, where keys and values go; padding goes to page 0."""
    ext_rows: I64
    """[E]"""
    ext_starts: I64
    """[E] tokens already in the pool"""
    ext_lens: I64
    """[E]"""
    decode_rows: I64
    """[D] ascending by length"""
    decode_lens: I64
    """[D] tokens each sees, its new one included"""
    sample_rows: I64
    """[S] rows to sample for, in the order of `StepResult.tokens`"""
    sample_at: Tensor
    """[max(S, min_samples)] int64, their positions among the T tokens, the last one repeated; [0] where S = 0"""
    sample_into: Tensor
    """[S] int64 `sample_rows` on the device"""
    media_at: Tensor
    """[I] int64, tokens among the T whose input is an embedding of an image or video, in the order of `ext_media`"""

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.ids.shape[0]

    @property
    def num_extend_tokens(self) -> int:
        return int(self.ext_lens.sum())


def build_batch(work: Work, rows: Rows, min_tokens: int, min_samples: int | None = None) -> Batch:
    """Arrange a checked plan whose new rows and pages are already applied. Does not advance the rows.

    Args:
        min_tokens: pad to this many tokens.
        min_samples: pad the sampled positions to this many; default: `min_tokens`.
    """
    min_samples = min_tokens if min_samples is None else min_samples
    device = rows.last_token.device
    ext_count = len(work.ext_tokens)
    lengths = rows.lengths[work.decode_rows]
    order = np.argsort(lengths, kind="stable")
    decode_rows, decode_positions = work.decode_rows[order], lengths[order]
    padding = max(0, min_tokens - ext_count - len(decode_rows))
    pad = np.zeros(padding, np.int64)

    token_rows = np.concatenate((np.repeat(work.ext_rows, work.ext_lens), decode_rows))
    positions = np.concatenate(
        (np.repeat(work.ext_starts, work.ext_lens) + ragged_arange(work.ext_lens), decode_positions)
    )
    sampled = work.ext_sample != 0
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    sample_rows = np.concatenate((work.ext_rows[sampled], work.decode_rows))
    sample_index = np.concatenate((np.cumsum(work.ext_lens)[sampled] - 1, ext_count + place))
    if len(sample_index):
        sample_index = np.pad(sample_index, (0, max(0, min_samples - len(sample_index))), mode="edge")
    media_at = np.repeat(work.ext_media[:, 0], work.ext_media[:, 1]) + ragged_arange(work.ext_media[:, 1])
    ext_ids, decoding, pad_ids, rotary, slots, sample_at, sample_into, media_at_ = upload_all(
        [
            work.ext_tokens, decode_rows, pad, _rotary_positions(work, rows, token_rows, positions, padding),
            np.concatenate((rows.slots(token_rows, positions), pad)), sample_index, sample_rows, media_at,
        ],
        device,
    )  # fmt: skip
    parts = [ids for ids in (ext_ids, rows.last_token.index_select(0, decoding), pad_ids) if len(ids)]
    return Batch(
        ids=torch.cat(parts) if len(parts) > 1 else parts[0],
        positions=rotary.view(3, -1) if work.ext_positions is not None else rotary,
        slots=slots,
        ext_rows=work.ext_rows,
        ext_starts=work.ext_starts,
        ext_lens=work.ext_lens,
        decode_rows=decode_rows,
        decode_lens=decode_positions + 1,
        sample_rows=sample_rows,
        sample_at=sample_at,
        sample_into=sample_into,
        media_at=media_at_,
    )


def _rotary_positions(work: Work, rows: Rows, token_rows: I64, positions: I64, padding: int) -> I64:
    """[T], or [3 * T] of time, height and width where a row's positions have three dimensions."""
    along = positions + rows.position_delta.host[token_rows]
    if work.ext_positions is None:
        return np.pad(along, (0, padding))
    three = np.tile(along, (3, 1))
    three[:, : work.ext_positions.shape[1]] = work.ext_positions
    return np.pad(three, ((0, 0), (0, padding))).ravel()
