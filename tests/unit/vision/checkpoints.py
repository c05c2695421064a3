"""Tiny checkpoints, made once for all tests that read them, and what transformers computes with them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel

from services.vision.models.encoder import Encoder
from services.vision.models.registry import load_encoder
from services.vision.processing.prepared import Processor
from services.vision.processing.registry import make_processor
from shared.log import setup
from shared.media_config import MediaConfig, load_media_config
from tests.fakes.vlm_checkpoints import original_llava_checkpoint, vlm_checkpoint

torch.set_num_threads(1)
_FOLDER = tempfile.TemporaryDirectory()
"""Goes with the process."""
CPU = torch.device("cpu")
SIZES = [(100, 80), (56, 56), (37, 211), (300, 700), (1, 1), (640, 33), (29, 27), (250, 8)]
"""(width, height) of images: odd, tiny, elongated, larger than the limits."""


@functools.cache
def checkpoint(name: str) -> tuple[Path, PreTrainedModel]:
    """A family's, or the original LLaVA layout ("original-inside", "original-beside")."""
    folder = Path(_FOLDER.name) / name
    if name == "original-inside":
        return original_llava_checkpoint(folder, tower="inside")
    if name == "original-beside":
        return original_llava_checkpoint(folder, tower="beside")
    return vlm_checkpoint(name, folder)


def media_config(name: str) -> MediaConfig:
    config = load_media_config(checkpoint(name)[0])
    assert config is not None
    return config


@functools.cache
def processor(name: str) -> Processor:
    return make_processor(media_config(name))


@functools.cache
def encoder(name: str, dtype: torch.dtype = torch.float32) -> Encoder:
    path, _ = checkpoint(name)
    return load_encoder(path, media_config(name), dtype, CPU, "auto", setup("test", "error"))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise: every byte matters."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference_inputs(name: str, image: Image.Image) -> Any:
    """transformers' processed image."""
    return AutoImageProcessor.from_pretrained(checkpoint(name)[0], backend="pil")(image, return_tensors="pt")


def reference_embeddings(model: PreTrainedModel, inputs: Any) -> Tensor:
    """transformers' embeddings of one processed image: [tokens, width]."""
    with torch.no_grad():
        if "image_grid_thw" in inputs:
            out = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        elif "image_sizes" in inputs:
            out = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
        else:
            out = model.get_image_features(inputs["pixel_values"], return_dict=True)
    levels = [out.pooler_output, *getattr(out, "deepstack_features", [])]
    return torch.cat([torch.cat(list(level)) for level in levels], dim=-1)


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs).abs().max() / theirs.abs().max())
