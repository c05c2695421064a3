"""Fill a model's weights from safetensors files, or with random numbers.

File after file, only the part this rank takes, straight into place (`weight_copies.py`). Knows names and shapes, no
arithmetic; called once by whoever builds a model: the worker's engine, or the vision service for what encodes images.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open

from shared.checkpoint.checkpoint_names import canonical, of_vision, pieces
from shared.checkpoint.target import Target
from shared.checkpoint.weight_copies import WeightCopies
from shared.errors import ConfigError
from shared.log import Log

_INDEX = "model.safetensors.index.json"
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|self_attn\.masked_bias$|self_attn\.bias$|embeddings\.position_ids$")
"""Computed tensors that old checkpoints carry."""
_SHOWN = 5
DUMMY_SCALE = 0.02


def load_checkpoint(
    folder: str | Path,
    targets: Mapping[str, Target],
    *,
    tied: bool,
    log: Log,
    skip: Callable[[str], bool] = of_vision,
    num_threads: int | None = None,
) -> None:
    """Read every target from the checkpoint in `folder`.

    Args:
        targets: by canonical name (`checkpoint_names.py`), all on one device.
        tied: the output head is the embedding; a copy of it in the files is skipped.
        log: gets a line a second.
        skip: canonical names of tensors that are not this model's, but rightly in its files.
        num_threads: that read; None = as many as pay.

    Raises:
        ConfigError: no files, unreadable files, or tensors that are missing, unexpected or of a wrong shape.
    """
    device = next(iter(targets.values())).into.device
    total_bytes = sum(target.into.nbytes for target in targets.values())
    with WeightCopies(device, total_bytes, log, num_threads) as copies:
        loading = _Loading(targets, copies, tied, skip)
        for path in weight_files(Path(folder)):
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                        loading.read(key, file.get_slice(key))
                    copies.wait()
            except (SafetensorError, OSError) as fault:
                raise ConfigError(f"{path} cannot be read: {fault}; download it again") from fault
        loading.finish(folder)


class _Loading:
    """One run of `load_checkpoint`: what is filled so far, and what does not fit."""

    def __init__(
        self, targets: Mapping[str, Target], copies: WeightCopies, tied: bool, skip: Callable[[str], bool]
    ) -> None:
        self._targets, self._copies, self._tied, self._skip = targets, copies, tied, skip
        self._seen: set[str] = set()
        self._unexpected: list[str] = []
        self._misshapen: list[str] = []

    def read(self, key: str, tensor: Any) -> None:
        """Begin to copy what this rank takes of a file's tensor, given as its lazy slice."""
        for piece in pieces(key, tuple(tensor.get_shape())):
            target = self._targets.get(piece.name)
            if target is None:
                if not (self._skip(piece.name) or self._is_derived(piece.name)):
                    self._unexpected.append(piece.name)
                continue
            self._seen.add(piece.name)
            if piece.shape == target.shape:
                self._copies.add(tensor, piece.index(target.take), target.into, target.write)
            else:
                want = list(target.shape)
                self._misshapen.append(f"{piece.name} is {list(piece.shape)}, config.json wants {want}")

    def _is_derived(self, name: str) -> bool:
        return bool(_DERIVED.search(name)) or (self._tied and name == "lm_head.weight")

    def finish(self, folder: str | Path) -> None:
        """Complain of everything that did not fit."""
        missing = [name for name in self._targets if name not in self._seen]
        faults = {"missing": missing, "unexpected": self._unexpected, "of a wrong shape": self._misshapen}
        lines = [
            f"{len(names)} tensors are {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
            for kind, names in faults.items()
            if names
        ]
        if lines:
            raise ConfigError(f"the weights in {folder} do not fit its config.json: {'; '.join(lines)}")


def load_dummy(targets: Mapping[str, Target]) -> None:
    """Random weights that depend on nothing but names and full shapes: the same for every sharding and every run.

    They are drawn where they go: a CPU and a GPU draw different ones.
    """
    for name, target in targets.items():
        device = target.into.device
        generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        if not target.into.dtype.is_floating_point:  # packed codes: any bits do
            limits = torch.iinfo(target.into.dtype)
            codes = torch.empty(target.shape, dtype=target.into.dtype, device=device)
            target.into.copy_(codes.random_(limits.min, limits.max, generator=generator)[target.take])
            continue
        values = torch.empty(target.shape, device=device).normal_(0.0, DUMMY_SCALE, generator=generator)
        values = values[target.take].add_(1.0 if target.is_norm else 0.0)
        if target.write is None:
            target.into.copy_(values)
        else:
            target.write(values, slice(0, len(values)))


def tensor_names(folder: str | Path) -> set[str]:
    """Canonical names of the tensors in a checkpoint.

    Raises:
        ConfigError: no files, or unreadable files.
    """
    names: set[str] = set()
    for path in weight_files(Path(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                names.update(canonical(key) for key in file.keys())  # noqa: SIM118 - safe_open is no mapping
        except (SafetensorError, OSError) as fault:
            raise ConfigError(f"{path} cannot be read: {fault}; download it again") from fault
    return names


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
