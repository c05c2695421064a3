"""What FlashInfer is told of rows, against a loop over their tokens."""

from __future__ import annotations

import numpy as np
import pytest

from services.worker.attention.flashinfer_plan import ALIGNMENT_BYTES, paged_lengths, partials_bytes


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("padding", [None, 0, 3])
def test_each_row_has_its_pages_and_the_rest_of_its_tokens_in_the_last(page_size: int, padding: int | None) -> None:
    seq_lens = np.random.default_rng().integers(1, 70, 9)
    size = None if padding is None else len(seq_lens) + padding
    lengths = paged_lengths(seq_lens, page_size, size)
    indptr, last = [0], []
    for tokens in [*seq_lens.tolist(), *[1] * (padding or 0)]:
        pages = [range(tokens)[begin : begin + page_size] for begin in range(0, tokens, page_size)]
        indptr.append(indptr[-1] + len(pages))
        last.append(len(pages[-1]))
    assert (lengths.indptr.tolist(), lengths.last_page_len.tolist()) == (indptr, last)
    assert (lengths.indptr.dtype, lengths.last_page_len.dtype) == (np.int32, np.int32)
    assert lengths.num_indices == indptr[-1]


def test_a_step_of_padding_only_has_a_page_per_row() -> None:
    lengths = paged_lengths(np.zeros(0, np.int64), 16, 4)
    assert (lengths.indptr.tolist(), lengths.last_page_len.tolist()) == ([0, 1, 2, 3, 4], [1, 1, 1, 1])


@pytest.mark.parametrize(
    ("heads", "rows", "tiles", "tile"),
    [((32, 8), 256, 319, 16), ((32, 8), 1, 33, 128), ((64, 8), 1024, 1535, 16), ((32, 1), 1024, 1535, 64)],
)
def test_partial_results_have_room_for_the_tiles_of_flashinfers_plans(
    heads: tuple[int, int], rows: int, tiles: int, tile: int
) -> None:
    """Tile counts as FlashInfer's `PrefillPlan` gave them, called with 132 multiprocessors."""
    bytes_ = partials_bytes(*heads, 128, 132, rows)
    assert bytes_ >= heads[0] * tiles * tile * (128 + 1) * 4
    assert bytes_ <= max(heads[0] * tiles * tile * (128 + 1) * 4, heads[0] * 264 // heads[1] * 128 * 129 * 4) + (
        2 * ALIGNMENT_BYTES
    )
