"""SiLU-gated product of a fused gate-and-up projection, rounded to 8 bits if it is to be `Fp8Rows`. Called by the MLP
layers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.fp8_rows import WIDEST, row_warps, store_rounded, target
from services.worker.kernels.overlap import let_the_next_begin, overlap, wait_for_the_one_before
from services.worker.quantization.rounded import Activations

BLOCK = 1024


@triton.jit
def gated(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """silu(gate) * up, all float32."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _silu_and_mul_kernel(
    gate_up: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    in_stride: tl.int64,
    out_stride: tl.int64,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    let_the_next_begin(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(gate_up + token * in_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * in_stride + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    value = gated(gate, up).to(gate_up.dtype.element_ty)
    if ROUNDS:
        store_rounded(value, out + token * out_stride, scales + token, WIDTH)
    else:
        tl.store(out + token * out_stride + column, value, mask=inside)


def silu_and_mul(gate_up: torch.Tensor, out: Activations) -> None:
    """`silu(gate) * up`.

    Args:
        gate_up: [T, 2 * I], gate first; rows may be strided, the last dimension is contiguous.
        out: [T, I] where to write, rounded to 8 bits, if I is at most `WIDEST`, or in the dtype of `gate_up`.
    """
    assert gate_up.stride(-1) == 1
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    into, scales, rounds = target(out)
    assert not rounds or width <= WIDEST  # a program has the whole row
    if tokens:
        block = triton.next_power_of_2(width)
        block = block if rounds else min(BLOCK, block)
        _silu_and_mul_kernel[(tokens, triton.cdiv(width, block))](
            gate_up, into, scales, gate_up.stride(0), into.stride(0), WIDTH=width, BLOCK=block, ROUNDS=rounds,
            num_warps=row_warps(block) if rounds else 4, **overlap(gate_up.device),
        )  # fmt: skip
