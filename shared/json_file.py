"""JSON objects from a model's directory. Read by whatever configures itself from one; knows no field of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from shared.errors import ConfigError


def read_json_object(path: Path, *, required: bool = False) -> dict[str, Any]:
    """The object in `path`; an empty one where the file does not exist and is not required.

    Raises:
        ConfigError: it is required and absent, or there is something else in it.
    """
    if not path.is_file():
        if required:
            raise ConfigError(f"{path} does not exist: --model-path needs a directory in Hugging Face format")
        return {}
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as fault:
        raise ConfigError(f"{path} is not JSON: {fault}") from fault
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return value
