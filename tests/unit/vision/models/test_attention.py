"""Attention inside segments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from services.vision.models.attention import Segments


@pytest.mark.parametrize("dim", [64, 72, 80])
@pytest.mark.parametrize("lengths", [[7], [4, 4, 4], [3, 8, 3, 1, 8], [1] * 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_segment_attends_to_itself_only(lengths: list[int], dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 2, dim).to(dtype)
    q, k, v = qkv.unbind(1)
    ours = Segments(lengths, torch.device("cpu")).attend(q, k, v)
    alone = []
    for part in torch.split(qkv, lengths):
        of_heads = part.permute(1, 2, 0, 3).unsqueeze(1)  # [3, 1, H, L, D]
        alone.append(F.scaled_dot_product_attention(*of_heads)[0].transpose(0, 1).flatten(1))
    torch.testing.assert_close(ours, torch.cat(alone))
