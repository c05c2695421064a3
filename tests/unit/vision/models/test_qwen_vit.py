"""Patches, positions and windows of the Qwen families, against definitions and transformers' index arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from services.vision.models.qwen2_5_vl import batch_windows
from services.vision.models.qwen3_vl import corners
from services.vision.models.qwen_vit import flat_patches, merge_order
from services.vision.processing.prepared import Prepared
from shared.media_config import PixelScale
from tests.fakes.vlm_checkpoints import FAMILIES
from tests.unit.vision.checkpoints import SIZES, media_config, picture, processor, reference_inputs

GRIDS = [(1, 4, 6), (3, 16, 10), (1, 2, 2), (2, 8, 8), (1, 2, 38)]
QWEN = [family for family in FAMILIES if family.startswith("qwen")]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", QWEN)
def test_patches_of_an_image_are_those_of_transformers(family: str, size: tuple[int, int]) -> None:
    config, image = media_config(family), picture(*size)
    item: Prepared = processor(family).prepare(image)
    frames = torch.from_numpy(item.pixels).expand(config.temporal_patch_size, -1, -1, -1).contiguous()
    ours = flat_patches(frames, config.temporal_patch_size, config.patch_size, config.merge_size, config.pixels)
    torch.testing.assert_close(ours, reference_inputs(family, image)["pixel_values"], rtol=0, atol=1e-6)


def test_patches_of_a_video_are_cut_through_joined_frames() -> None:
    joined, patch, merge, (t, h, w) = 2, 2, 2, (2, 4, 6)
    frames = np.random.default_rng(0).integers(0, 256, (t * joined, h * patch, w * patch, 3), dtype=np.uint8)
    scale = PixelScale((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    scaled = (frames / 255 - np.array(scale.mean)) / np.array(scale.std)
    expected = [
        scaled[
            frame * joined : (frame + 1) * joined, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch
        ].transpose(3, 0, 1, 2)
        for frame in range(t)
        for row, col in merge_order(h, w, merge)
    ]
    ours = flat_patches(torch.from_numpy(frames), joined, patch, merge, scale)
    np.testing.assert_allclose(ours.numpy(), np.stack(expected).reshape(t * h * w, -1), atol=1e-6)


def test_patches_of_a_token_follow_each_other() -> None:
    theirs = get_vision_position_ids(torch.tensor(GRIDS), 2).numpy()
    assert np.array_equal(np.concatenate([np.tile(merge_order(h, w, 2), (t, 1)) for t, h, w in GRIDS]), theirs)


def test_windows_are_those_of_transformers() -> None:
    order, lengths = batch_windows(GRIDS, 2, 4)
    theirs, bounds = get_vision_window_index(torch.tensor(GRIDS), 2, 112, 14)
    assert np.array_equal(order, theirs.numpy())
    assert lengths == bounds.diff().tolist()


@pytest.mark.parametrize("grid", [(1, 4, 6), (1, 2, 2), (1, 60, 2), (1, 48, 48), (1, 62, 34)])
def test_learned_positions_are_interpolated_as_transformers_does(grid: tuple[int, int, int]) -> None:
    cells, weights = corners(grid[1], grid[2], 2, 48)
    theirs = get_vision_interpolation_indices_and_weights(
        torch.tensor([grid]), 48, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    table = np.random.default_rng(0).standard_normal(48 * 48)
    ours = (table[cells] * weights).sum(0)
    np.testing.assert_allclose(ours, (table[theirs[0].numpy()] * theirs[1].numpy()).sum(1), atol=1e-5)
