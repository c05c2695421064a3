"""LLaVA-NeXT's canvases, tiles and token counts are those of transformers."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor as Reference

from services.vision.models.clip import square_patches
from services.vision.processing.llava_next import LlavaNextProcessor
from tests.unit.vision.checkpoints import SIZES, checkpoint, media_config, picture, processor, reference_inputs

REAL = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_every_size_are_those_of_transformers(size: tuple[int, int]) -> None:
    image = picture(*size)
    prepared = processor("llava_next").prepare(image)
    ours = square_patches(torch.from_numpy(prepared.pixels), 14, media_config("llava_next").pixels)
    theirs = torch.nn.functional.unfold(reference_inputs("llava_next", image)["pixel_values"][0], 14, stride=14)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=0, atol=1e-6)
    assert prepared.layout == processor("llava_next").layout(*size)


def test_tokens_of_every_size_are_those_of_transformers() -> None:
    config = media_config("llava_next")
    config = dataclasses.replace(
        config,
        vision={**config.vision, "image_size": 336},
        image=dataclasses.replace(config.image, pinpoints=tuple((h, w) for h, w in REAL)),
    )
    ours = LlavaNextProcessor(config)
    theirs = Reference(
        LlavaNextImageProcessorPil(
            image_grid_pinpoints=REAL, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ),
        AutoTokenizer.from_pretrained(checkpoint("llava_next")[0]),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    dice = random.Random(0)
    sizes = []
    for _ in range(500):
        width = int(2 ** dice.uniform(3, 12))
        sizes.append((width, max(1, int(width * 2 ** dice.uniform(-9, 9)))))
    counts = theirs._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])
    assert [ours.layout(*size).tokens for size in sizes] == counts["num_image_tokens"]


def test_low_detail_is_the_overview_alone() -> None:
    low = processor("llava_next").prepare(picture(150, 90), "low")
    assert low.pixels.shape == (1, 56, 56, 3)
    assert low.layout == processor("llava_next").layout(150, 90, "low")
    assert (low.tokens, low.patches, low.canvas) == (17, 16, None)
