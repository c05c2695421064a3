"""Encoders on a CUDA device: what they compute on a CPU, at the head sizes of real towers, in bounded memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from services.vision.models.attention import Segments
from services.vision.models.registry import load_encoder
from services.vision.processing.registry import make_processor
from shared.log import setup
from shared.media_config import MediaConfig
from tests.fakes.vlm_checkpoints import FAMILIES
from tests.unit.vision.checkpoints import SIZES, checkpoint, encoder, error, media_config, picture, processor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA, LOG = torch.device("cuda"), setup("test", "error")
QWEN2_5_TOWER = {
    "depth": 4, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "fullatt_block_indexes": [1, 3],
}  # fmt: skip
"""As Qwen2.5-VL's, but for the depth."""


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-4), (torch.float16, 0.01), (torch.bfloat16, 0.05)]
)  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_computes_what_a_cpu_computes(family: str, dtype: torch.dtype, most: float) -> None:
    items = [processor(family).prepare(picture(*size)) for size in SIZES]
    if media_config(family).video is not None:
        items.append(processor(family).prepare_video([picture(90, 64, seed=i) for i in range(7)], [0.5] * 7))
    path, _ = checkpoint(family)
    on_gpu = load_encoder(path, media_config(family), dtype, CUDA, "auto", LOG)
    for ours, theirs in zip(on_gpu.encode(items), encoder(family).encode(items), strict=True):
        assert ours.device.type == "cuda"
        assert error(ours.cpu(), theirs) < most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 72, 80])
def test_segments_of_every_length_attend_to_themselves(dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    lengths = [64, 1, 577, 64, 16, 1024, 577]
    qkv = torch.randn(sum(lengths), 3, 16, dim, device=CUDA).to(dtype)
    ours = Segments(lengths, CUDA).attend(*qkv.unbind(1))
    for part, out in zip(torch.split(qkv.float(), lengths), torch.split(ours, lengths), strict=True):
        alone = F.scaled_dot_product_attention(*part.permute(1, 2, 0, 3).unsqueeze(1))[0].transpose(0, 1).flatten(1)
        assert error(out, alone) < 0.02


def test_memory_does_not_grow_with_the_length_of_a_video() -> None:
    config = real_tower()
    ours = load_encoder("no/such/folder", config, torch.bfloat16, CUDA, "dummy", LOG, max_patches=8192)
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (476, 644, 3), dtype=np.uint8))
    peaks = []
    for frames in (64, 64, 512):  # the first makes what is made once
        video = make_processor(config).prepare_video([frame] * frames, [i / 2 for i in range(frames)])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        (out,) = ours.encode([video])
        peaks.append(torch.cuda.max_memory_allocated() - before - 2 * out.nbytes)
        of_pair = len(out) * 2 // frames
        assert error(out[-of_pair:], out[:of_pair].float()) < 0.02
    assert peaks[2] < 1.2 * peaks[1]


def real_tower() -> MediaConfig:
    config = media_config("qwen2_5_vl")
    return dataclasses.replace(config, vision={**config.vision, **QWEN2_5_TOWER}, hidden_size=2048)
