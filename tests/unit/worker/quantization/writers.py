"""Quantized tensors written by the definitions of their formats, one number at a time, beside the weights they mean.

Nothing here is shared with the code under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""The nibble i of a word holds the column 8 * word + AWQ_ORDER[i]."""
Tensors = dict[str, torch.Tensor]


@dataclass
class Rounded:
    """A weight [N, K] rounded to whole numbers: w = (code - zero) * scale by group."""

    codes: np.ndarray
    zeros: np.ndarray
    """[N, groups]"""
    scales: np.ndarray
    """[N, groups] float16"""
    g_idx: np.ndarray
    """[K] the group of each input"""

    def weight(self) -> np.ndarray:
        """[N, K] float64"""
        out = np.empty(self.codes.shape)
        for k, group in enumerate(self.g_idx):
            out[:, k] = (self.codes[:, k].astype(int) - self.zeros[:, group].astype(int)) * self.scales[
                :, group
            ].astype(float)
        return out


def rounded(weight: np.ndarray, bits: int, group: int, *, symmetric: bool = False, shuffled: bool = False) -> Rounded:
    """To the nearest; `shuffled`: inputs are in groups in random order, as after act-order."""
    width, depth = weight.shape
    group = depth if group < 0 else group
    g_idx = np.arange(depth) // group
    if shuffled:
        g_idx = g_idx[np.random.default_rng(depth).permutation(depth)]
    groups, most = depth // group, 2**bits - 1
    codes = np.empty(weight.shape, np.int64)
    zeros, scales = np.empty((width, groups), np.int64), np.empty((width, groups), np.float16)
    for g in range(groups):
        part = weight[:, g_idx == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales[:, g] = np.maximum((high - low) / most, 1e-4)
        size = scales[:, g].astype(float)
        zeros[:, g] = 2 ** (bits - 1) if symmetric else np.clip(np.rint(-low / size), 1, most)
        codes[:, g_idx == g] = np.clip(np.rint(part / size[:, None]) + zeros[:, g, None], 0, most)
    return Rounded(codes, zeros, scales, g_idx)


def words(values: np.ndarray, bits: int, order: list[int] | None = None) -> torch.Tensor:
    """Along the last dimension into int32, lowest bits first; place i of a word holds its value order[i]."""
    per_word = 32 // bits
    order = order or list(range(per_word))
    out = np.zeros((*values.shape[:-1], values.shape[-1] // per_word), np.uint32)
    for word in range(out.shape[-1]):
        for place in range(per_word):
            out[..., word] |= (values[..., word * per_word + order[place]].astype(np.uint32)) << np.uint32(place * bits)
    return torch.from_numpy(out.view(np.int32).copy())


def awq(weight: np.ndarray, group: int) -> tuple[Tensors, np.ndarray]:
    q = rounded(weight, 4, group)
    tensors = {
        "qweight": words(q.codes.T, 4, AWQ_ORDER), "qzeros": words(q.zeros.T, 4, AWQ_ORDER),
        "scales": torch.from_numpy(q.scales.T.copy()),
    }  # fmt: skip
    return tensors, q.weight()


def gptq(weight: np.ndarray, group: int, bits: int = 4, version: int = 1, **how: Any) -> tuple[Tensors, np.ndarray]:
    q = rounded(weight, bits, group, symmetric=how.get("symmetric", bits == 8), shuffled=how.get("shuffled", False))
    return gptq_tensors(q, bits, version), q.weight()


def gptq_tensors(q: Rounded, bits: int, version: int) -> Tensors:
    return {
        "qweight": words(q.codes, bits).T.contiguous(),
        "qzeros": words(q.zeros.T - (1 if version == 1 else 0), bits),
        "scales": torch.from_numpy(q.scales.T.copy()),
        "g_idx": torch.from_numpy(q.g_idx.astype(np.int32)),
    }


def packed(
    weight: np.ndarray, group: int, bits: int = 4, symmetric: bool = True, shuffled: bool = False
) -> tuple[Tensors, np.ndarray]:
    """compressed-tensors, pack-quantized."""
    q = rounded(weight, bits, group, symmetric=symmetric, shuffled=shuffled)
    tensors = {
        "weight_packed": words(q.codes, bits), "weight_scale": torch.from_numpy(q.scales.astype(np.float32)).bfloat16(),
        "weight_shape": torch.tensor(weight.shape),
    }  # fmt: skip
    q.scales = tensors["weight_scale"].float().numpy()
    if not symmetric:
        tensors["weight_zero_point"] = words(q.zeros.T, bits).T.contiguous()
    if shuffled:
        tensors["weight_g_idx"] = torch.from_numpy(q.g_idx.astype(np.int32))
    return tensors, q.weight()


def one_by_one(
    weight: np.ndarray, bits: int = 8, group: int = -1, symmetric: bool = True
) -> tuple[Tensors, np.ndarray]:
    """compressed-tensors, int-quantized: signed numbers of 8 bits, which is the type that holds those of 4 bits too."""
    q, middle = rounded(weight, bits, group, symmetric=symmetric), 2 ** (bits - 1)
    tensors = {
        "weight": torch.from_numpy((q.codes - middle).astype(np.int8)),
        "weight_scale": torch.from_numpy(q.scales.astype(np.float32)),
    }
    if not symmetric:
        tensors["weight_zero_point"] = torch.from_numpy((q.zeros - middle).astype(np.int8))
    return tensors, q.weight()


def fp8(weight: np.ndarray, by: str, scale_name: str = "weight_scale") -> tuple[Tensors, np.ndarray]:
    """8-bit floats by "tensor", "channel" or "block" (128 x 128)."""
    plain = torch.from_numpy(weight).double()
    width, depth = plain.shape
    if by == "block":
        full = torch.zeros(-(-width // 128), -(-depth // 128), dtype=torch.float64)
        for i in range(full.shape[0]):
            for j in range(full.shape[1]):
                full[i, j] = plain[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128].abs().max() / 448
        by_weight = full.repeat_interleave(128, 0)[:width].repeat_interleave(128, 1)[:, :depth]
    else:
        full = plain.abs().amax(1, keepdim=True) / 448 if by == "channel" else plain.abs().max().reshape(1) / 448
        by_weight = full.float().double().expand_as(plain)
    full = full.float()
    codes = (plain / by_weight).to(torch.float8_e4m3fn)
    scales = by_weight.float().double()
    return {"weight": codes, scale_name: full}, (codes.double() * scales).numpy()


def fp8_of_one_number(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """A scale without dimensions, under the name that others give to those of blocks."""
    tensors, meant = fp8(weight, "tensor")
    return {"weight": tensors["weight"], "weight_scale_inv": tensors["weight_scale"].reshape(())}, meant


def gguf(weight: np.ndarray, kind: str) -> tuple[Tensors, np.ndarray]:
    """Blocks by the package gguf, and what it says that they mean. Types that it cannot write: random blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    quant = GGMLQuantizationType[kind]
    try:
        blocks = quantize(weight.astype(np.float32), quant)
    except NotImplementedError:
        per_block, nbytes = GGML_QUANT_SIZES[quant]
        rng = np.random.default_rng(0)
        blocks = rng.integers(0, 256, (weight.shape[0], weight.shape[1] // per_block, nbytes), dtype=np.uint8)
        for at in {"Q4_K": (0, 2), "Q6_K": (208,)}[kind]:  # the factors are floats
            factors = rng.uniform(1e-5, 1e-4, (*blocks.shape[:2], 1)).astype(np.float16)
            blocks[..., at : at + 2] = factors.view(np.uint8)
        blocks = blocks.reshape(weight.shape[0], -1)
    return {"weight_blocks": torch.from_numpy(blocks.copy())}, dequantize(blocks, quant).astype(np.float64)


Writer = Callable[[np.ndarray], tuple[Tensors, np.ndarray]]


@dataclass(frozen=True)
class Case:
    """A format: what config.json says of it, and how a weight becomes its tensors and the weight they mean."""

    config: dict[str, Any]
    write: Writer
    unit: int = 8
    """Features of both sides are to be a multiple of this."""


def _ct(kind: str, bits: int, strategy: str, layout: str, **more: Any) -> dict[str, Any]:
    weights = {"type": kind, "num_bits": bits, "strategy": strategy, "symmetric": True, **more}
    return {
        "quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip


def cases() -> dict[str, Case]:
    """Every format in every size of groups that is in use."""
    out: dict[str, Case] = {}
    for group in (32, 64, 128, -1):
        out[f"awq {group}"] = Case(
            {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"},
            lambda w, g=group: awq(w, g),
        )
        for version, layout in ((1, "gptq"), (2, "gptq_v2")):
            config = {"quant_method": "gptq", "bits": 4, "group_size": group, "checkpoint_format": layout}
            out[f"gptq v{version} {group}"] = Case(config, lambda w, g=group, v=version: gptq(w, g, version=v))
        config = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": True}
        out[f"gptq act-order {group}"] = Case(config, lambda w, g=group: gptq(w, g, shuffled=True))
        strategy = {"strategy": "channel"} if group < 0 else {"strategy": "group", "group_size": group}
        for symmetric in (True, False):
            config = _ct("int", 4, layout="pack-quantized", symmetric=symmetric, **strategy)
            name = f"compressed-tensors int4 {'symmetric' if symmetric else 'zero points'} {group}"
            out[name] = Case(config, lambda w, g=group, s=symmetric: packed(w, g, symmetric=s))
    for symmetric, suffix in ((True, ""), (False, " zero points")):
        config = {"quant_method": "gptq", "bits": 8, "group_size": 64, "sym": symmetric}
        out[f"gptq int8{suffix}"] = Case(config, lambda w, s=symmetric: gptq(w, 64, bits=8, symmetric=s))
        out[f"gptq int8{suffix} act-order"] = Case(
            config | {"desc_act": True}, lambda w, s=symmetric: gptq(w, 64, bits=8, symmetric=s, shuffled=True)
        )
        for bits in (4, 8):
            config = _ct("int", bits, "group", "pack-quantized", group_size=64, symmetric=symmetric, actorder="group")
            out[f"compressed-tensors int{bits}{suffix} act-order"] = Case(
                config, lambda w, b=bits, s=symmetric: packed(w, 64, b, s, shuffled=True)
            )
        config = _ct("int", 8, "group", "pack-quantized", group_size=64, symmetric=symmetric)
        out[f"compressed-tensors int8 packed{suffix}"] = Case(config, lambda w, s=symmetric: packed(w, 64, 8, s))
        for bits, group, name in ((8, -1, "int8"), (8, 64, "int8 one by one 64"), (4, 64, "int4 one by one 64")):
            strategy = {"strategy": "channel"} if group < 0 else {"strategy": "group", "group_size": group}
            out[f"compressed-tensors {name}{suffix}"] = Case(
                _ct("int", bits, layout="int-quantized", symmetric=symmetric, **strategy),
                lambda w, b=bits, g=group, s=symmetric: one_by_one(w, b, g, s),
            )
    for order in ("weight", "static"):
        config = _ct("int", 4, "group", "pack-quantized", group_size=64, actorder=order)
        out[f"compressed-tensors int4 actorder {order}"] = Case(config, lambda w: packed(w, 64))
    for by in ("tensor", "channel"):
        out[f"compressed-tensors fp8 {by}"] = Case(_ct("float", 8, by, "float-quantized"), lambda w, b=by: fp8(w, b))
    out["fp8 tensor"] = Case({"quant_method": "fp8", "activation_scheme": "dynamic"}, lambda w: fp8(w, "tensor"))
    static = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    out["fp8 tensor, one number"] = Case(static, fp8_of_one_number)
    out["fp8 block"] = Case(
        {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        lambda w: fp8(w, "block", "weight_scale_inv"),
    )
    for kind, unit in (("Q4_0", 32), ("Q4_1", 32), ("Q8_0", 32), ("Q4_K", 256), ("Q6_K", 256)):
        out[f"gguf {kind}"] = Case({"quant_method": "gguf", "types": kind}, lambda w, k=kind: gguf(w, k), unit)
    return out


CASES = cases()
