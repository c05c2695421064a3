"""A model whose weights are blocks of GGUF as one with plain float32 weights, for transformers to read.

The blocks are expanded by the package `gguf`, not by code of this project: it is the oracle of what they mean.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.numpy import load_file, save_file


def plain_model(folder: Path, into: Path) -> Path:
    """`folder` itself if its weights are plain, else a copy with plain ones in the new directory `into`."""
    config = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config", None)
    if quantization is None:
        return folder
    assert quantization["quant_method"] == "gguf"
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.safetensors"))
    (into / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name, kind in quantization["types"].items():
        blocks = weights.pop(f"{name}.weight_blocks")
        weights[f"{name}.weight"] = dequantize(blocks, GGMLQuantizationType[kind])
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    return into
