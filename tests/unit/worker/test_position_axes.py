"""Rotary embedding with positions of three dimensions is that of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.worker.models.rope import Rotary, Rotation, position_axes, rotate_
from shared.errors import ConfigError
from shared.model_config import RopeScaling, load_model_config
from tests.fakes.vlm_checkpoints import vlm_checkpoint

HEADS, DIM, TOKENS = 3, 16, 7


def our_rotary(path: Path) -> Rotary:
    config = load_model_config(path)
    return Rotary(config.rope, config.head_dim, config.context_length, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_turning_heads_by_three_dimensions_equals_transformers(family: str, tmp_path: Path) -> None:
    path, model = vlm_checkpoint(family, tmp_path)
    positions = torch.randint(0, 50, (3, TOKENS))
    q = torch.randn(TOKENS, HEADS, DIM)
    cos, sin = (part[0].unsqueeze(1) for part in model.model.language_model.rotary_emb(q, positions.unsqueeze(1)))
    halves = torch.cat((-q[..., DIM // 2 :], q[..., : DIM // 2]), -1)
    want = q * cos + halves * sin
    rotation = Rotation(our_rotary(path), positions)
    turned = q.clone()
    rotate_(turned, *rotation.angles)
    torch.testing.assert_close(turned, want, rtol=1e-5, atol=1e-5)
    table = rotation.table[rotation.positions]  # what kernels read
    cosines, sines = table.unsqueeze(1).chunk(2, dim=-1)
    low, high = q.chunk(2, dim=-1)
    kernels = torch.cat((low * cosines - high * sines, high * cosines + low * sines), -1)
    torch.testing.assert_close(kernels, want, rtol=1e-5, atol=1e-5)


def test_three_equal_dimensions_are_one(tmp_path: Path) -> None:
    path, _ = vlm_checkpoint("qwen2_vl", tmp_path)
    rotary, positions = our_rotary(path), torch.arange(TOKENS)
    for three, one in zip(
        Rotation(rotary, positions.expand(3, -1)).angles, Rotation(rotary, positions).angles, strict=True
    ):
        torch.testing.assert_close(three, one, rtol=0, atol=0)


def test_sections_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ConfigError, match="mrope_section"):
        position_axes(RopeScaling(params={"mrope_section": [1, 2, 3]}), 16)
