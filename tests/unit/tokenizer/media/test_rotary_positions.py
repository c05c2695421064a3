"""Positions of prompts with images and videos are transformers' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.tokenizer.media.rotary_positions import GridSpan, rotary_positions
from tests.fakes.vlm_checkpoints import vlm_checkpoint

Part = int | tuple[str, tuple[int, int, int]]
"""So many words, or an image or video of [t, h, w] tokens."""
PROMPTS: dict[str, list[Part]] = {
    "text only": [9],
    "an image between": [5, ("image", (1, 2, 3)), 4],
    "an image first": [("image", (1, 4, 4)), 4],
    "an image last": [3, ("image", (1, 1, 1))],
    "three images": [2, ("image", (1, 2, 2)), 1, ("image", (1, 5, 1)), 2, ("image", (1, 1, 9)), 3],
    "a video": [4, ("video", (3, 2, 2)), 6],
    "a long video and an image": [1, ("video", (9, 1, 2)), 2, ("image", (1, 3, 2)), 2],
}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("name", PROMPTS)
def test_positions_and_delta_equal_those_of_transformers(family: str, name: str, tmp_path: Path) -> None:
    _, model = vlm_checkpoint(family, tmp_path)
    seconds, merge = 0.7, 2
    kinds: list[int] = []
    spans: list[GridSpan] = []
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    for part in PROMPTS[name]:
        if isinstance(part, int):
            kinds += [0] * part
            continue
        kind, (t, h, w) = part
        step = 2 * seconds if kind == "video" and family == "qwen2_5_vl" else 1.0
        spans.append(GridSpan(len(kinds), (t, h, w), step))
        grids[kind].append([t, h * merge, w * merge])
        kinds += [1 if kind == "image" else 2] * (t * h * w)
    more = {"second_per_grid_ts": torch.tensor([seconds])} if family == "qwen2_5_vl" else {}
    want, delta = model.model.get_rope_index(
        torch.zeros((1, len(kinds)), dtype=torch.long),
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.tensor(grids["image"]) if grids["image"] else None,
        video_grid_thw=torch.tensor(grids["video"]) if grids["video"] else None,
        **more,
    )
    positions, our_delta = rotary_positions(len(kinds), spans)
    np.testing.assert_array_equal(positions, want[:, 0].numpy())
    assert our_delta == int(delta)


def test_two_images_without_a_word_between_follow_each_other() -> None:
    positions, delta = rotary_positions(8, [GridSpan(0, (1, 2, 2)), GridSpan(4, (1, 2, 2))])
    assert positions.tolist() == [[0] * 4 + [2] * 4, [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 2, 3, 2, 3]]
    assert delta == -4
