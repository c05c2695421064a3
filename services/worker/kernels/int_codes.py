"""Codes of 4 and 8 bits as operands of the matrix unit.

Bits are moved to where 16-bit floats have theirs, several codes an instruction. Called by the kernels of products with
packed weights.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nibbles(
    tile: tl.tensor, dtype: tl.constexpr, BASE: tl.constexpr, ASM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Low and high halves of bytes plus BASE, a power of two whose bits they can be written into; and ones.

    The ones come from here because the compiler then lays them out as it does the codes, and reads the inputs once.
    """
    if ASM:
        if dtype == tl.bfloat16:
            low, high, ones = tl.inline_asm_elementwise(
                """
                {
                .reg .b32 low, high;
                and.b32 low, $6, 0x0F0F0F0F;
                shr.b32 high, $6, 4;
                and.b32 high, high, 0x0F0F0F0F;
                prmt.b32 $0, low, 0x43434343, 0x4140;
                prmt.b32 $1, low, 0x43434343, 0x4342;
                prmt.b32 $2, high, 0x43434343, 0x4140;
                prmt.b32 $3, high, 0x43434343, 0x4342;
                mov.b32 $4, 0x3F803F80;
                mov.b32 $5, 0x3F803F80;
                }
                """,
                "=r,=r,=r,=r,=r,=r,r", [tile], dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
            )  # fmt: skip
        else:
            low, high, ones = tl.inline_asm_elementwise(
                """
                {
                .reg .b32 low, high;
                and.b32 low, $6, 0x0F0F0F0F;
                shr.b32 high, $6, 4;
                and.b32 high, high, 0x0F0F0F0F;
                prmt.b32 $0, low, 0x64646464, 0x4140;
                prmt.b32 $1, low, 0x64646464, 0x4342;
                prmt.b32 $2, high, 0x64646464, 0x4140;
                prmt.b32 $3, high, 0x64646464, 0x4342;
                mov.b32 $4, 0x3C003C00;
                mov.b32 $5, 0x3C003C00;
                }
                """,
                "=r,=r,=r,=r,=r,=r,r", [tile], dtype=(tl.float16, tl.float16, tl.float16), is_pure=True, pack=4,
            )  # fmt: skip
    else:
        low = ((tile & 15).to(tl.float32) + BASE).to(dtype)
        high = ((tile >> 4).to(tl.float32) + BASE).to(dtype)
        ones = tl.full(tile.shape, 1.0, dtype)
    return low, high, ones


@triton.jit
def scaled_nibbles(
    tile: tl.tensor,
    scale: tl.tensor,
    offset: tl.tensor,
    scale_high: tl.tensor,
    offset_high: tl.tensor,
    dtype: tl.constexpr,
    ASM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Low and high halves of bytes [P, K] times scale plus offset [P] of their own, in `dtype`."""
    if ASM:
        scale, offset = scale.to(dtype)[:, None], offset.to(dtype)[:, None]
        scale_high, offset_high = scale_high.to(dtype)[:, None], offset_high.to(dtype)[:, None]
        if dtype == tl.bfloat16:
            low, high = tl.inline_asm_elementwise(
                """
                {
                .reg .b32 low, high, base, code;
                mov.b32 base, 0x43004300;
                and.b32 low, $4, 0x0F0F0F0F;
                shr.b32 high, $4, 4;
                and.b32 high, high, 0x0F0F0F0F;
                prmt.b32 code, low, 0x43434343, 0x4140;
                sub.rn.bf16x2 code, code, base;
                fma.rn.bf16x2 $0, code, $5, $7;
                prmt.b32 code, low, 0x43434343, 0x4342;
                sub.rn.bf16x2 code, code, base;
                fma.rn.bf16x2 $1, code, $6, $8;
                prmt.b32 code, high, 0x43434343, 0x4140;
                sub.rn.bf16x2 code, code, base;
                fma.rn.bf16x2 $2, code, $9, $11;
                prmt.b32 code, high, 0x43434343, 0x4342;
                sub.rn.bf16x2 code, code, base;
                fma.rn.bf16x2 $3, code, $10, $12;
                }
                """,
                "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r", [tile, scale, offset, scale_high, offset_high],
                dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
            )  # fmt: skip
        else:
            low, high = tl.inline_asm_elementwise(
                """
                {
                .reg .b32 low, high, base, code;
                mov.b32 base, 0x64006400;
                and.b32 low, $4, 0x0F0F0F0F;
                shr.b32 high, $4, 4;
                and.b32 high, high, 0x0F0F0F0F;
                prmt.b32 code, low, 0x64646464, 0x4140;
                sub.rn.f16x2 code, code, base;
                fma.rn.f16x2 $0, code, $5, $7;
                prmt.b32 code, low, 0x64646464, 0x4342;
                sub.rn.f16x2 code, code, base;
                fma.rn.f16x2 $1, code, $6, $8;
                prmt.b32 code, high, 0x64646464, 0x4140;
                sub.rn.f16x2 code, code, base;
                fma.rn.f16x2 $2, code, $9, $11;
                prmt.b32 code, high, 0x64646464, 0x4342;
                sub.rn.f16x2 code, code, base;
                fma.rn.f16x2 $3, code, $10, $12;
                }
                """,
                "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r", [tile, scale, offset, scale_high, offset_high],
                dtype=(tl.float16, tl.float16), is_pure=True, pack=4,
            )  # fmt: skip
    else:
        low = ((tile & 15).to(tl.float32) * scale[:, None] + offset[:, None]).to(dtype)
        high = ((tile >> 4).to(tl.float32) * scale_high[:, None] + offset_high[:, None]).to(dtype)
    return low, high
