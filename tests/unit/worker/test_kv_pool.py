"""The ways to look at one pool."""

from __future__ import annotations

import pytest
import torch

from services.worker.kv_pool import KvPool


@pytest.mark.parametrize("page_size", [1, 4])
def test_pages_are_views_of_the_slots_with_the_same_strides_for_keys_and_values(page_size: int) -> None:
    pool = KvPool(
        num_layers=2, num_pages=6, page_size=page_size, num_kv_heads=3, head_dim=8, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    pool.layers[1].normal_()
    for pages, slots in zip(pool.pages(1), pool.keys_and_values(1), strict=True):
        assert pages.shape == (7, page_size, 3, 8)
        assert torch.equal(pages.flatten(0, 1), slots)
        assert pages.data_ptr() == slots.data_ptr()
    keys, values = pool.pages(1)
    assert keys.stride() == values.stride()
