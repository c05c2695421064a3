"""From config.json and the flags to what reads a checkpoint's products. Called once, when a model is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import torch

from services.worker.quantization.awq import Awq
from services.worker.quantization.compressed_tensors import CompressedTensors
from services.worker.quantization.fp8 import Fp8, RoundedToFp8
from services.worker.quantization.gguf import Gguf
from services.worker.quantization.gptq import Gptq
from services.worker.quantization.stored import Scheme
from shared.errors import ConfigError

_SCHEMES: dict[str, Callable[[dict[str, Any]], Scheme]] = {
    "awq": Awq,
    "gptq": Gptq,
    "compressed-tensors": CompressedTensors,
    "fp8": Fp8,
    "gguf": Gguf,
}


def choose_scheme(folder: str | Path, raw: dict[str, Any], flag: str, dtype: torch.dtype) -> Scheme | None:
    """None: every product has a plain weight.

    Args:
        raw: config.json.
        flag: --quantization.
        dtype: of plain weights.

    Raises:
        ConfigError: a format that is not supported, a field of it that is wrong, or a flag that contradicts it.
    """
    config = raw.get("quantization_config") or raw.get("compression_config") or _old_gptq(Path(folder))
    if config is None:
        return RoundedToFp8(dtype) if flag == "fp8" else None
    method = str(config.get("quant_method", ""))
    if flag != "auto" and flag != method:
        raise ConfigError(f"--quantization {flag}: the checkpoint is quantized already ({method}): leave the flag out")
    if method not in _SCHEMES:
        raise ConfigError(f"quantization {method!r} in config.json is not supported: use one of {', '.join(_SCHEMES)}")
    try:
        return _SCHEMES[method](config)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as fault:
        raise ConfigError(f"quantization_config of config.json has a wrong value: {fault!r}") from fault


def _old_gptq(folder: Path) -> dict[str, Any] | None:
    """What old tools wrote into a file of its own."""
    path = folder / "quantize_config.json"
    if not path.is_file():
        return None
    try:
        config = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as fault:
        raise ConfigError(f"{path} is not JSON: {fault}") from fault
    return {"quant_method": "gptq", **config}
