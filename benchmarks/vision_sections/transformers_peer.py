"""transformers on the same device: processor, encoder, prefill and first token of one request, by `generate`."""

from __future__ import annotations

import io
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Report
from benchmarks.vision_sections.pictures import picture
from tests.fakes.vlm_checkpoints import TOKEN_IDS

WORDS = 76
"""Tokens of text around the image, as many as our chat has."""


def measure(report: Report, folder: Path, sides: list[int], repeats: int, device: str) -> list[dict[str, Any]]:
    """Time to the first token for one image of each size, random weights."""
    import torch
    from PIL import Image
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config = AutoConfig.from_pretrained(folder)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    qwen = config.model_type.startswith("qwen")
    rows = []
    for side in sides:
        times, stages = [], []
        for i in range(repeats + 1):
            data = picture(side, 70_000 + i)
            began_s = time.perf_counter()
            inputs = processor(images=[Image.open(io.BytesIO(data)).convert("RGB")], return_tensors="pt")
            prepared_s = time.perf_counter()
            ids = _ids(model, config, inputs, qwen)
            moved = {name: value.to(device) for name, value in inputs.items()}
            moved["pixel_values"] = moved["pixel_values"].to(dtype)
            with torch.inference_mode():
                model.generate(
                    input_ids=ids.to(device), attention_mask=torch.ones_like(ids).to(device), max_new_tokens=1,
                    do_sample=False, **moved,
                    **({"mm_token_type_ids": (ids == TOKEN_IDS["<|image_pad|>"]).int().to(device)} if qwen else {}),
                )  # fmt: skip
            if device == "cuda":
                torch.cuda.synchronize()
            if i:  # the first one warms up
                times.append(time.perf_counter() - began_s)
                stages.append(prepared_s - began_s)
        rows.append({"side": side, "prompt_tokens": ids.shape[1], "ttft_ms": round(statistics.median(times) * 1e3, 1),
                     "prepare_ms": round(statistics.median(stages) * 1e3, 1)})  # fmt: skip
        report.note(f"transformers {rows[-1]}")
    del model
    return rows


def _ids(model: Any, config: Any, inputs: Any, qwen: bool) -> Any:
    """A prompt with as many placeholders as transformers wants, and a sentence of bytes."""
    import torch

    words = list(range(65, 65 + WORDS // 2))
    if qwen:
        count = int(inputs["image_grid_thw"].prod()) // config.vision_config.spatial_merge_size**2
        image = [TOKEN_IDS["<|vision_start|>"], *[TOKEN_IDS["<|image_pad|>"]] * count, TOKEN_IDS["<|vision_end|>"]]
    else:
        with torch.inference_mode():
            features = model.get_image_features(
                inputs["pixel_values"].to(model.device, model.dtype), inputs["image_sizes"].to(model.device),
                return_dict=True,
            )  # fmt: skip
        image = [TOKEN_IDS["<image>"]] * sum(len(part) for part in features.pooler_output)
    return torch.tensor([[*words, *image, *words]])
