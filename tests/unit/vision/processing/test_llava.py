"""LLaVA-1.5's square is transformers' square."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from services.vision.models.clip import square_patches
from services.vision.processing.llava import LlavaProcessor
from services.vision.processing.prepared import Layout
from shared.errors import InvalidRequest
from tests.unit.vision.checkpoints import SIZES, media_config, picture, processor, reference_inputs

PATCH, SIDE = 14, 56


def folded(pixel_values: torch.Tensor) -> torch.Tensor:
    """transformers' squares [B, 3, side, side] as patches, by definition: row by row, channels first."""
    cells = torch.nn.functional.unfold(pixel_values, PATCH, stride=PATCH)
    return cells.transpose(1, 2)


def our_patches(pixels: np.ndarray) -> torch.Tensor:
    return square_patches(torch.from_numpy(pixels), PATCH, media_config("llava").pixels)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_every_size_are_those_of_transformers(size: tuple[int, int]) -> None:
    image = picture(*size)
    ours = our_patches(processor("llava").prepare(image).pixels)
    torch.testing.assert_close(ours, folded(reference_inputs("llava", image)["pixel_values"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(4000, 30), (17, 3000), (30_000, 1)])
def test_of_a_very_elongated_image_the_middle_is_computed_alone(size: tuple[int, int]) -> None:
    image = picture(*size).resize(size)
    pixels = processor("llava").prepare(image).pixels
    assert pixels.shape == (1, SIDE, SIDE, 3)
    if min(size) > 1:
        theirs = folded(reference_inputs("llava", image)["pixel_values"])
        step = 1 / 255 / min(media_config("llava").pixels.std)
        assert (our_patches(pixels) - theirs).abs().mean() < step


@pytest.mark.parametrize("size", SIZES)
def test_padding_is_that_of_transformers(size: tuple[int, int]) -> None:
    config = media_config("llava")
    padding = LlavaProcessor(dataclasses.replace(config, image=dataclasses.replace(config.image, pad_to_square=True)))
    reference = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    image = picture(*size)
    theirs = folded(reference(image, return_tensors="pt")["pixel_values"])
    torch.testing.assert_close(our_patches(padding.prepare(image).pixels), theirs, rtol=0, atol=1e-6)


def test_padding_an_enormous_edge_takes_no_enormous_square() -> None:
    config = media_config("llava")
    padding = LlavaProcessor(dataclasses.replace(config, image=dataclasses.replace(config.image, pad_to_square=True)))
    pixels = padding.prepare(Image.new("RGB", (200_000, 1), (255, 0, 0))).pixels
    background = [int(mean * 255) for mean in config.pixels.mean]
    assert pixels.shape == (1, SIDE, SIDE, 3)
    assert (pixels[0, 0] == background).all()


def test_every_image_costs_the_same() -> None:
    assert processor("llava").layout(3000, 20, "low") == processor("llava").layout(1, 1) == Layout(16, [], 16)
    assert processor("llava").prepare(Image.new("RGB", (5, 9))).tokens == 16


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_videos_are_refused(family: str) -> None:
    ours = processor(family)
    for attempt in (
        lambda: ours.sample_frames(1.0, 1.0, 1, None, None),
        lambda: ours.video_layout(10, 10, 1),
        lambda: ours.prepare_video([picture(10, 10)], [0.0]),
    ):
        with pytest.raises(InvalidRequest, match="this model takes images, no videos"):
            attempt()
