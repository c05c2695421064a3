"""From config.json and the flags to what reads a checkpoint's products. Called once, when a model is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.worker.quantization.awq import Awq
from services.worker.quantization.compressed_tensors import CompressedTensors
from services.worker.quantization.fp8 import Fp8, RoundedToFp8
from services.worker.quantization.gguf import Gguf
from services.worker.quantization.gptq import Gptq
from services.worker.quantization.stored import Scheme
from shared.errors import ConfigError
from shared.json_file import read_json_object

_SCHEMES: dict[str, Callable[[dict[str, Any]], Scheme]] = {
    "awq": Awq,
    "gptq": Gptq,
    "compressed-tensors": CompressedTensors,
    "fp8": Fp8,
    "gguf": Gguf,
}


def quantization_config(folder: str | Path) -> dict[str, Any] | None:
    """What a checkpoint says of its weights, in config.json or, as old tools wrote it, in a file of its own.

    Raises:
        ConfigError: a file is not a JSON object.
    """
    raw = read_json_object(Path(folder) / "config.json", required=True)
    config = raw.get("quantization_config") or raw.get("compression_config")
    if config is None and isinstance(inner := raw.get("text_config"), dict):  # of models that take images
        config = inner.get("quantization_config")
    old = None if config else read_json_object(Path(folder) / "quantize_config.json")
    return {"quant_method": "gptq", **old} if old else config or None


def choose_scheme(config: dict[str, Any] | None, flag: str) -> Scheme | None:
    """None: every product has a plain weight.

    Args:
        config: of `quantization_config`.
        flag: --quantization.

    Raises:
        ConfigError: a format that is not supported, a field of it that is wrong, or a flag that contradicts it.
    """
    if config is None or _of_cache_alone(config):
        return RoundedToFp8() if flag == "fp8" else None
    method = str(config.get("quant_method", ""))
    if flag not in ("auto", method):
        raise ConfigError(f"--quantization {flag}: the checkpoint is quantized already ({method}): leave the flag out")
    if method not in _SCHEMES:
        raise ConfigError(f"quantization {method!r} in config.json is not supported: use one of {', '.join(_SCHEMES)}")
    try:
        return _SCHEMES[method](config)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as fault:
        raise ConfigError(f"quantization_config of config.json has a wrong value: {fault!r}") from fault


def _of_cache_alone(config: dict[str, Any]) -> bool:
    """Whether compressed-tensors was asked to quantize keys and values, and left the weights plain."""
    method, groups = config.get("quant_method"), config.get("config_groups")
    return method == "compressed-tensors" and bool(config.get("kv_cache_scheme")) and not groups
