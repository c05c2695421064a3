"""Fill a model's weights from safetensors files, or with random numbers.

Tensors are read one by one, only the part this rank takes, straight into place. Knows names and shapes, no
arithmetic; called by the engine's builder once.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import orjson
import torch
from safetensors import SafetensorError, safe_open

from services.worker.models.weights import Target
from shared.errors import ConfigError

_INDEX = "model.safetensors.index.json"
_PREFIX = re.compile(r"^(language_model\.model\.|model\.language_model\.|language_model\.|model\.)")
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|self_attn\.masked_bias$|self_attn\.bias$")
"""Computed tensors that old checkpoints carry."""
_SHOWN = 5
DUMMY_SCALE = 0.02


def load_checkpoint(folder: str | Path, targets: Mapping[str, Target], *, tied: bool) -> None:
    """Read every target from the checkpoint in `folder`.

    Args:
        targets: by canonical name (`canonical`).
        tied: the output head is the embedding; a copy of it in the files is skipped.

    Raises:
        ConfigError: no files, unreadable files, or tensors that are missing, unexpected or of a wrong shape.
    """
    seen: set[str] = set()
    unexpected: list[str] = []
    misshapen: list[str] = []
    for path in weight_files(Path(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    name = canonical(key)
                    target = targets.get(name)
                    if target is None:
                        if not (_DERIVED.search(name) or (tied and name == "lm_head.weight")):
                            unexpected.append(key)
                        continue
                    seen.add(name)
                    part = file.get_slice(key)
                    shape = tuple(part.get_shape())
                    if shape == target.shape:
                        target.into.copy_(part[target.take])
                    else:
                        misshapen.append(f"{key} is {list(shape)}, config.json wants {list(target.shape)}")
        except (SafetensorError, OSError) as fault:
            raise ConfigError(f"{path} cannot be read: {fault}; download it again") from fault
    missing = [name for name in targets if name not in seen]
    _complain(folder, {"missing": missing, "unexpected": unexpected, "of a wrong shape": misshapen})


def load_dummy(targets: Mapping[str, Target]) -> None:
    """Random weights that depend on nothing but names and full shapes: the same for every sharding and every run.

    They are drawn where they go: a CPU and a GPU draw different ones.
    """
    for name, target in targets.items():
        device = target.into.device
        generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        values = torch.empty(target.shape, device=device).normal_(0.0, DUMMY_SCALE, generator=generator)
        target.into.copy_(values[target.take].add_(1.0 if target.is_norm else 0.0))


def canonical(key: str) -> str:
    """One spelling for what transformers has called a tensor over the years: no leading "model." and the like."""
    return _PREFIX.sub("", key)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or not.

    Raises:
        ConfigError: there are none, or the index names a file that does not exist.
    """
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(orjson.loads(index.read_bytes())["weight_map"].values()))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as fault:
            raise ConfigError(f"{index} is no index of weights: {fault!r}") from fault
        absent = [n for n in names if not (folder / n).is_file()]
        if absent:
            raise ConfigError(f"{index} names {len(absent)} files that are not there, first {absent[0]}")
        return [folder / n for n in names]
    # Some repositories carry the weights a second time under the maker's own names.
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not files:
        hint = " (only .bin files: convert them)" if any(folder.glob("*.bin")) else ""
        raise ConfigError(f"{folder} has no .safetensors file{hint}: check --model-path or use --load-format dummy")
    return files


def _complain(folder: str | Path, faults: dict[str, list[str]]) -> None:
    lines = [
        f"{len(names)} tensors are {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in faults.items()
        if names
    ]
    if lines:
        raise ConfigError(f"the weights in {folder} do not fit its config.json: {'; '.join(lines)}")
