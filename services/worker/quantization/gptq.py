"""GPTQ: 4 or 8 bits, inputs packed into words; zero points of version 1 (less one) and 2; any order of inputs.

Products may have settings of their own (`dynamic`). Source: the packing of AutoGPTQ and GPTQModel, and how GPTQModel
chooses settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.worker.quantization.input_order import arrange
from services.worker.quantization.product_names import NamePattern
from services.worker.quantization.stored import Part, Shapes, Stored, cover, unpack, usually_plain
from services.worker.quantization.weights import IntWeight, int_weight
from shared.checkpoint.target import ALL, Target
from shared.errors import ConfigError

_LAYOUTS = {"gptq": 1, "gptq_v2": 0}
"""What to add to the zero points in the files."""
_PLAIN, _QUANTIZED = "-:", "+:"
"""Before a pattern of `dynamic`; no prefix is the second."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """What tells a product's layout; whether it is symmetric or in another order is seen in its tensors."""

    bits: int
    group: int
    """Inputs; -1 = all."""


class Gptq:
    """The scheme `gptq`."""

    def __init__(self, config: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: another width or layout, of all products or of those that a pattern means.
        """
        layout = str(config.get("checkpoint_format") or config.get("format") or "gptq")
        layout = "marlin" if config.get("is_marlin_format") else layout
        if layout not in _LAYOUTS:
            raise ConfigError(f"GPTQ layout {layout!r} is not supported: use a checkpoint in {' or '.join(_LAYOUTS)}")
        self._zero_bias = _LAYOUTS[layout]
        self._settings = _settings(config, {}, "")
        self._dynamic: list[tuple[NamePattern, _Settings | None]] = []
        for rule, changes in (config.get("dynamic") or {}).items():
            pattern = NamePattern(rule.removeprefix(_PLAIN).removeprefix(_QUANTIZED))
            own = None if rule.startswith(_PLAIN) else _settings(config, changes or {}, f", which {rule!r} has,")
            self._dynamic.append((pattern, own))
        self.name = f"gptq int{self._settings.bits} group {self._settings.group}"

    def stored(self, part: Part, shapes: Shapes | None, device: torch.device) -> Stored | None:
        own = self._settings_of(part.name)
        guess = own is not None and not usually_plain(part.name)
        if not (guess if shapes is None else f"{part.name}.qweight" in shapes):
            return None
        settings = own or self._settings
        bits, per_word = settings.bits, 32 // settings.bits
        group = settings.group if settings.group > 0 else part.in_features
        num_groups = -(-part.in_features // group)
        inputs, outputs = cover(part.columns, per_word), cover(part.rows, per_word)
        taken_inputs, taken_outputs = (c.take.stop - c.take.start for c in (inputs, outputs))
        qweight = torch.empty((taken_inputs, part.width), dtype=torch.int32, device=device)
        qzeros = torch.empty((num_groups, taken_outputs), dtype=torch.int32, device=device)
        scales = torch.empty((num_groups, part.width), dtype=torch.float32, device=device)
        targets = {
            "qweight": Target(qweight, (part.in_features // per_word, part.out_features), (inputs.take, part.rows)),
            "qzeros": Target(qzeros, (num_groups, part.out_features // per_word), (ALL, outputs.take)),
            "scales": Target(scales, (num_groups, part.out_features), (ALL, part.rows)),
        }
        g_idx: Tensor | None = None
        if shapes is not None and f"{part.name}.g_idx" in shapes:
            g_idx = torch.empty(part.depth, dtype=torch.int32, device=device)
            targets["g_idx"] = Target(g_idx, (part.in_features,), (part.columns,))

        def read() -> IntWeight:
            codes = unpack(qweight.T, bits)[:, inputs.keep]  # [N, K]
            zeros = (unpack(qzeros, bits)[:, outputs.keep].T.int() + self._zero_bias).float()  # [N, groups]
            found = arrange(part, group, g_idx, "desc_act")
            return int_weight(bits, found.inputs(codes), found.groups(scales.T), found.groups(zeros), found.order)

        return Stored(targets, read)

    def _settings_of(self, product: str) -> _Settings | None:
        """By the first pattern that means it; None = it is to be plain."""
        return next((own for pattern, own in self._dynamic if pattern.means(product)), self._settings)


def _settings(config: dict[str, Any], changes: dict[str, Any], whose: str) -> _Settings:
    """Of all products, or of those with changes to that.

    Args:
        changes: what goes before `config`.
        whose: for the error.

    Raises:
        ConfigError: a width that is not supported.
    """
    bits = changes.get("bits", config.get("bits"))
    if bits not in (4, 8):
        raise ConfigError(f"GPTQ with {bits} bits{whose} is not supported: use a checkpoint with 4 or 8")
    return _Settings(int(bits), int(changes.get("group_size", config.get("group_size", 128))))
