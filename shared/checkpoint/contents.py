"""Which tensors a checkpoint's files hold. Reads their headers only; called before a quantized model is built."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from shared.checkpoint.checkpoint_names import pieces
from shared.checkpoint.loader import weight_files
from shared.errors import ConfigError


def shapes_of(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by its canonical name.

    Raises:
        ConfigError: no files, or unreadable ones.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(Path(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    shape = tuple(file.get_slice(key).get_shape())
                    shapes |= {piece.name: piece.shape for piece in pieces(key, shape)}
        except (SafetensorError, OSError) as fault:
            raise ConfigError(f"{path} cannot be read: {fault}; download it again") from fault
    return shapes
