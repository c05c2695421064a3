"""AWQ, in the layout that AutoAWQ calls gemm: 4 bits with zero points, eight outputs in a word.

Source: AutoAWQ's packing of `WQLinear_GEMM`.
"""

from __future__ import annotations

from typing import Any

import torch

from services.worker.quantization.stored import Part, Shapes, Stored, cover, groups_of, unpack, usually_plain
from services.worker.quantization.weights import IntWeight, int_weight
from shared.checkpoint.target import Target
from shared.errors import ConfigError

_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where in a word the outputs 0..7 are, in steps of 4 bits."""
_PER_WORD = 8


class Awq:
    """The scheme `awq`."""

    def __init__(self, config: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: another width or layout.
        """
        bits, version = config.get("bits", config.get("w_bit")), str(config.get("version", "gemm")).lower()
        if bits != 4:
            raise ConfigError(f"AWQ with {bits} bits is not supported: use a checkpoint with 4")
        if version != "gemm":
            raise ConfigError(f"AWQ layout {version!r} is not supported: use a checkpoint in the gemm layout")
        self._group = int(config.get("group_size", config.get("q_group_size", 128)))
        self.name = f"awq int4 group {self._group}"

    def stored(self, part: Part, shapes: Shapes | None, device: torch.device) -> Stored | None:
        if usually_plain(part.name) if shapes is None else f"{part.name}.qweight" not in shapes:
            return None
        group = self._group if self._group > 0 else part.in_features
        groups, words = groups_of(part, group), cover(part.rows, _PER_WORD)
        num_groups, num_words = -(-part.in_features // group), part.out_features // _PER_WORD
        taken_words, taken_groups = (s.stop - s.start for s in (words.take, groups.take))
        qweight = torch.empty((part.depth, taken_words), dtype=torch.int32, device=device)
        qzeros = torch.empty((taken_groups, taken_words), dtype=torch.int32, device=device)
        scales = torch.empty((taken_groups, part.width), dtype=torch.float32, device=device)

        def read() -> IntWeight:
            codes, zeros = (
                unpack(t, 4).view(len(t), -1, _PER_WORD)[..., _PLACES].flatten(1)[:, words.keep].T
                for t in (qweight, qzeros)
            )
            return int_weight(4, codes, groups.of(scales.T), groups.of(zeros).float())

        targets = {
            "qweight": Target(qweight, (part.in_features, num_words), (part.columns, words.take)),
            "qzeros": Target(qzeros, (num_groups, num_words), (groups.take, words.take)),
            "scales": Target(scales, (num_groups, part.out_features), (groups.take, part.rows)),
        }
        return Stored(targets, read)
