"""Codes of 4 bits as operands of the matrix unit.

Bits are moved to where 16-bit floats have theirs: to a power of two whose last bit is worth one, several codes an
instruction. Called by the kernels of products with packed weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

_NIBBLES = """
{
.reg .b32 low, high;
and.b32 low, $6, 0x0F0F0F0F;
shr.b32 high, $6, 4;
and.b32 high, high, 0x0F0F0F0F;
prmt.b32 $0, low, BASE, 0x4140;
prmt.b32 $1, low, BASE, 0x4342;
prmt.b32 $2, high, BASE, 0x4140;
prmt.b32 $3, high, BASE, 0x4342;
mov.b32 $4, ONES;
mov.b32 $5, ONES;
}
"""
"""Of four bytes: low halves, high halves and ones, two to a register."""
_SCALED = """
{
.reg .b32 low, high, base, code;
mov.b32 base, ZERO;
and.b32 low, $4, 0x0F0F0F0F;
shr.b32 high, $4, 4;
and.b32 high, high, 0x0F0F0F0F;
PAIRS
}
"""
"""Of four bytes: low halves, two and two, and high halves, each pair times a pair of scales plus one of offsets."""
_SCALED_PAIR = """prmt.b32 code, {half}, BASE, {bytes};
sub.rn.KIND code, code, base;
fma.rn.KIND ${out}, code, ${scale}, ${offset};"""
_PAIRS = ("low", "0x4140"), ("low", "0x4342"), ("high", "0x4140"), ("high", "0x4342")


def _with_registers(scales: tuple[int, ...], offsets: tuple[int, ...]) -> tuple[str, str]:
    """The text, and what its registers are for the compiler, that has pairs of scales and offsets at these places."""
    pairs = [
        _SCALED_PAIR.format(half=half, bytes=which, out=out, scale=scale, offset=offset)
        for out, ((half, which), scale, offset) in enumerate(zip(_PAIRS, scales, offsets, strict=True))
    ]
    return _SCALED.replace("PAIRS", "\n".join(pairs)), ",".join(4 * ["=&r"] + (max(offsets) - 3) * ["r"])


def _for_dtype(text: str, kind: str, base: str, one: str) -> tl.constexpr:
    """
    Args:
        kind: of instructions with two numbers in a register.
        base: upper byte of the power of two, in hex; its lower byte is zero, and a code is put there.
        one: 1.0 in hex.
    """
    words = {"KIND": kind, "BASE": f"0x{base * 4}", "ZERO": f"0x{base}00{base}00", "ONES": f"0x{one * 2}"}
    for name, word in words.items():
        text = text.replace(name, word)
    return tl.constexpr(text)


_TILE, _registers = _with_registers((5, 6, 9, 10), (7, 8, 11, 12))
_TILE_REGISTERS = tl.constexpr(_registers)
_WORD, _registers = _with_registers((5, 5, 7, 7), (6, 6, 8, 8))
WORD_REGISTERS = tl.constexpr(_registers)
_NIBBLES_BF16, _SCALED_BF16, WORD_BF16 = (_for_dtype(text, "bf16x2", "43", "3F80") for text in (_NIBBLES, _TILE, _WORD))
_NIBBLES_FP16, _SCALED_FP16, WORD_FP16 = (_for_dtype(text, "f16x2", "64", "3C00") for text in (_NIBBLES, _TILE, _WORD))
"""A tile's elements have scales and offsets of their own; a word's are all of one row, whose are in a word twice."""


@triton.jit
def nibbles(
    tile: tl.tensor, dtype: tl.constexpr, BASE: tl.constexpr, ASM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Low and high halves of bytes plus BASE, a power of two whose bits they can be written into; and ones.

    The ones come from here because the compiler then lays them out as it does the codes, and reads the inputs once.
    """
    if ASM and dtype == tl.bfloat16:
        low, high, ones = tl.inline_asm_elementwise(
            _NIBBLES_BF16, "=r,=r,=r,=r,=r,=r,r", [tile], (tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    elif ASM:
        low, high, ones = tl.inline_asm_elementwise(
            _NIBBLES_FP16, "=r,=r,=r,=r,=r,=r,r", [tile], (tl.float16, tl.float16, tl.float16), is_pure=True, pack=4
        )
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
                _SCALED_BF16, _TILE_REGISTERS, [tile, scale, offset, scale_high, offset_high],
                (tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
            )  # fmt: skip
        else:
            low, high = tl.inline_asm_elementwise(
                _SCALED_FP16, _TILE_REGISTERS, [tile, scale, offset, scale_high, offset_high],
                (tl.float16, tl.float16), is_pure=True, pack=4,
            )  # fmt: skip
    else:
        low = ((tile & 15).to(tl.float32) * scale[:, None] + offset[:, None]).to(dtype)
        high = ((tile >> 4).to(tl.float32) * scale_high[:, None] + offset_high[:, None]).to(dtype)
    return low, high
