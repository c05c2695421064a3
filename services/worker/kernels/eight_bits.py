"""8-bit numbers as 16-bit floats: weights, keys and values. Called by the kernels that read them."""

from __future__ import annotations

import triton
import triton.language as tl

from services.worker.kernels.device import INTERPRETED

_COMPILED = tl.constexpr(not INTERPRETED)


@triton.jit
def widened(tile: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Values of 8 bits, or of `dtype` already, in `dtype`.

    From e4m3 to bfloat16 there is one instruction a code, at an eighth of the usual rate. So the bits of a code are put
    where a bfloat16 has its own (subnormal ones too), and 2 ** 120 makes up for the unlike biases of their exponents.
    """
    if _COMPILED and dtype == tl.bfloat16 and tile.dtype == tl.float8e4nv:
        out = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 wide, rest, bias, zero;
            mov.b32 bias, 0x7B807B80;
            mov.b32 zero, 0x80008000;
            prmt.b32 wide, $2, 0, 0x1404;
            shr.b32 rest, wide, 4;
            and.b32 wide, wide, 0x80008000;
            and.b32 rest, rest, 0x07F007F0;
            or.b32 wide, wide, rest;
            fma.rn.bf16x2 $0, wide, bias, zero;
            prmt.b32 wide, $2, 0, 0x3424;
            shr.b32 rest, wide, 4;
            and.b32 wide, wide, 0x80008000;
            and.b32 rest, rest, 0x07F007F0;
            or.b32 wide, wide, rest;
            fma.rn.bf16x2 $1, wide, bias, zero;
            }
            """,
            "=&r,=&r,r", [tile.to(tl.uint8, bitcast=True)], dtype=tl.bfloat16, is_pure=True, pack=4,
        )  # fmt: skip
    else:
        out = tile.to(dtype)
    return out
