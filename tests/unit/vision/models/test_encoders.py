"""Every family's embeddings are those of transformers, alone and in batches, for images and videos."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from services.vision.models.encoder import MAX_PATCHES
from services.vision.models.llava import LlavaEncoder
from services.vision.models.parts import Place
from services.vision.models.qwen2_vl import Qwen2Vit
from services.vision.models.qwen_vit import flat_patches
from services.vision.models.registry import load_encoder
from services.vision.processing.prepared import Prepared
from shared.errors import ConfigError
from shared.log import setup
from tests.fakes.vlm_checkpoints import FAMILIES
from tests.unit.vision.checkpoints import (
    CPU,
    SIZES,
    checkpoint,
    encoder,
    error,
    media_config,
    picture,
    processor,
    reference_embeddings,
    reference_inputs,
)

QWEN = [family for family in FAMILIES if family.startswith("qwen")]
MAX_ERROR = 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_of_an_image_are_those_of_transformers(family: str, size: tuple[int, int]) -> None:
    image = picture(*size)
    prepared = processor(family).prepare(image)
    (ours,) = encoder(family).encode([prepared])
    assert error(ours, reference_embeddings(checkpoint(family)[1], reference_inputs(family, image))) < MAX_ERROR
    assert ours.shape == (prepared.tokens, media_config(family).width)


@pytest.mark.parametrize("size", [(3, 600), (590, 3)])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llava"])
def test_embeddings_of_the_most_elongated_images_are_too(family: str, size: tuple[int, int]) -> None:
    image = picture(*size)
    (ours,) = encoder(family).encode([processor(family).prepare(image)])
    assert error(ours, reference_embeddings(checkpoint(family)[1], reference_inputs(family, image))) < MAX_ERROR


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_what_its_items_are_alone(family: str) -> None:
    prepared = [processor(family).prepare(picture(*size, seed=i)) for i, size in enumerate(SIZES)]
    together = encoder(family).encode(prepared)
    for item, ours in zip(prepared, together, strict=True):
        assert error(ours, encoder(family).encode([item])[0]) < MAX_ERROR


@pytest.mark.parametrize("family", QWEN)
def test_videos_in_a_batch_with_images_are_those_of_transformers(family: str) -> None:
    frames = [picture(90, 64, seed=i) for i in range(5)]
    video = processor(family).prepare_video(frames, [i / 2 for i in range(5)])
    image = processor(family).prepare(picture(120, 60))
    _, ours = encoder(family).encode([image, video])
    t, h, w = video.grid
    merge = media_config(family).merge_size
    inputs = {"pixel_values": patches(family, video), "image_grid_thw": torch.tensor([[t, h * merge, w * merge]])}
    assert t == 3
    assert error(ours, reference_embeddings(checkpoint(family)[1], inputs)) < MAX_ERROR


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_cut_into_small_chunks_is_the_same(family: str) -> None:
    items = [processor(family).prepare(picture(*size)) for size in ((300, 200), (60, 90), (500, 100))]
    if family in QWEN:
        items.insert(1, processor(family).prepare_video([picture(80, 80, seed=i) for i in range(6)], [0.5] * 6))
    whole = encoder(family).encode(items)
    path, config = checkpoint(family)[0], media_config(family)
    small = load_encoder(path, config, torch.float32, CPU, "auto", setup("test", "error"), max_patches=40)
    for ours, theirs in zip(small.encode(items), whole, strict=True):
        assert error(ours, theirs) < MAX_ERROR


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_near(family: str) -> None:
    item = processor(family).prepare(picture(150, 100))
    (ours,) = encoder(family, torch.bfloat16).encode([item])
    assert ours.dtype == encoder(family, torch.bfloat16).dtype == torch.bfloat16
    assert error(ours, encoder(family).encode([item])[0]) < 0.05


@pytest.mark.parametrize("layout", ["original-inside", "original-beside"])
def test_the_original_llava_layout_gives_what_transformers_computes_with_its_weights(layout: str) -> None:
    image = picture(150, 90)
    (ours,) = encoder(layout).encode([processor(layout).prepare(image)])
    theirs = reference_embeddings(checkpoint(layout)[1], reference_inputs("llava_next", image))
    assert error(ours, theirs) < MAX_ERROR


def test_an_overview_alone_ends_with_a_newline() -> None:
    (ours,) = encoder("llava_next").encode([processor("llava_next").prepare(picture(150, 90), "low")])
    model = checkpoint("llava_next")[1]
    inputs = reference_inputs("llava_next", picture(150, 90))
    overview = reference_embeddings(model, inputs)[:16]
    assert error(ours[:16], overview) < MAX_ERROR
    assert torch.equal(ours[16], model.get_parameter("model.image_newline").data)


def test_several_feature_layers_and_the_class_token_are_joined() -> None:
    config = media_config("llava")
    assert config.llava is not None
    llava = dataclasses.replace(config.llava, feature_layers=(1, -1), keep_class_token=True)
    joined = LlavaEncoder(dataclasses.replace(config, llava=llava), Place(torch.float32, CPU), MAX_PATCHES)
    targets = joined.targets()
    assert targets["projector.0.weight"].shape == (64, 2 * 32)
    assert "vision_tower.encoder.layers.2.mlp.fc1.weight" in targets


def test_an_unknown_activation_is_named() -> None:
    config = media_config("qwen2_vl")
    config = dataclasses.replace(config, vision={**config.vision, "hidden_act": "relu6"})
    with pytest.raises(ConfigError, match="'relu6' is not supported"):
        Qwen2Vit(config, Place(torch.float32, CPU))


def patches(family: str, item: Prepared) -> torch.Tensor:
    """Of a whole item, as the encoder cuts them."""
    config = media_config(family)
    pixels = item.pixels
    if len(pixels) % config.temporal_patch_size:
        pixels = np.concatenate((pixels, pixels[-1:]))
    return flat_patches(
        torch.from_numpy(pixels), config.temporal_patch_size, config.patch_size, config.merge_size, config.pixels
    )
