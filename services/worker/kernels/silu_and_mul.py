"""SiLU-gated product of a fused gate-and-up projection. Called by the MLP layers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from services.worker.kernels.overlap import let_the_next_begin, overlap, wait_for_the_one_before

BLOCK = 1024


@triton.jit
def gated(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """silu(gate) * up, all float32."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _silu_and_mul_kernel(
    gate_up: tl.tensor,
    out: tl.tensor,
    in_stride: tl.int64,
    out_stride: tl.int64,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    wait_for_the_one_before(OVERLAP)
    let_the_next_begin(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(gate_up + token * in_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * in_stride + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    value = gated(gate, up)
    tl.store(out + token * out_stride + column, value.to(out.dtype.element_ty), mask=inside)


def silu_and_mul(gate_up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """`silu(gate) * up`.

    Args:
        gate_up: [T, 2 * I], gate first; rows may be strided, the last dimension is contiguous.
        out: [T, I] where to write; a new tensor when None.
    """
    assert gate_up.stride(-1) == 1
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    if out is None:
        out = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        block = min(BLOCK, triton.next_power_of_2(width))
        _silu_and_mul_kernel[(tokens, triton.cdiv(width, block))](
            gate_up, out, gate_up.stride(0), out.stride(0), WIDTH=width, BLOCK=block, num_warps=4,
            **overlap(gate_up.device),
        )  # fmt: skip
    return out
