"""GPTQ: 4 or 8 bits, inputs packed into words; zero points of version 1 (less one) and 2; any order of inputs.

Source: the packing of AutoGPTQ and GPTQModel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from services.worker.quantization.stored import Part, Shapes, Stored, cover, groups_of, unpack, usually_plain
from services.worker.quantization.weights import IntWeight
from shared.checkpoint.target import ALL, Target
from shared.errors import ConfigError


class Gptq:
    """The scheme `gptq`."""

    def __init__(self, config: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: another width or layout, or layers that differ from each other in it.
        """
        bits = config.get("bits")
        if bits not in (4, 8):
            raise ConfigError(f"GPTQ with {bits} bits is not supported: use a checkpoint with 4 or 8")
        self._bits = int(bits)
        layout = str(config.get("checkpoint_format") or "gptq")
        if layout not in ("gptq", "gptq_v2"):
            raise ConfigError(f"GPTQ layout {layout!r} is not supported: use gptq or gptq_v2")
        differing = [pattern for pattern in config.get("dynamic") or {} if not pattern.startswith("-:")]
        if differing:
            raise ConfigError(f"GPTQ layers with settings of their own are not supported: {differing[0]!r}")
        self._zero_bias = 1 if layout == "gptq" else 0
        self._group = int(config.get("group_size", 128))
        self.name = f"gptq int{self._bits} group {self._group}"

    def stored(self, part: Part, shapes: Shapes | None, device: torch.device) -> Stored | None:
        if usually_plain(part.name) if shapes is None else f"{part.name}.qweight" not in shapes:
            return None
        bits, per_word = self._bits, 32 // self._bits
        group = self._group if self._group > 0 else part.in_features
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
            if g_idx is not None and not torch.equal(g_idx, _in_order(part, group, device)):
                order, members = _order(part, g_idx, group)
                return _weight(part, bits, codes[:, order], scales.T[:, members], zeros[:, members], order)
            groups = groups_of(part, group)
            return _weight(part, bits, codes, groups.of(scales.T[:, groups.take]), groups.of(zeros[:, groups.take]))

        return Stored(targets, read)


def _in_order(part: Part, group: int, device: torch.device) -> Tensor:
    return torch.arange(part.columns.start, part.columns.stop, dtype=torch.int32, device=device) // group


def _order(part: Part, g_idx: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Inputs by their groups, and the groups in that order.

    Raises:
        ConfigError: groups of unequal size, as ranks that share the inputs of such a product have.
    """
    if part.depth < part.in_features:
        raise ConfigError(
            f"{part.name}: GPTQ with inputs in another order (desc_act) cannot be shared among ranks along its inputs: "
            "use --tp-size 1 or a checkpoint without desc_act"
        )
    members, counts = torch.unique(g_idx, return_counts=True)
    if not bool((counts == group).all()):
        raise ConfigError(f"{part.name}: g_idx puts {counts.tolist()[:8]} inputs into groups of {group}: broken file?")
    return g_idx.argsort(stable=True), members.long()


def _weight(
    part: Part, bits: int, codes: Tensor, scales: Tensor, zeros: Tensor, order: Tensor | None = None
) -> IntWeight:
    scales = scales.contiguous()
    if bits == 4:
        return IntWeight(4, codes.contiguous(), scales, zeros * -scales, order)
    if not bool((zeros == 128).all()):
        raise ConfigError(f"{part.name}: GPTQ with 8 bits and zero points is not supported: use one quantized with sym")
    return IntWeight(8, (codes.int() - 128).to(torch.int8).contiguous(), scales, None, order)
