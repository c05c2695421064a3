"""4-bit weights as the left operand of Hopper's matrix unit, in the registers that it reads them from.

Codes are read from shared memory in the checkpoint's order of inputs, and become weights by the instructions of
`int_codes.py`; nothing moves between threads. Gluon: Triton with layouts spelled out. Called by `hopper_product.py`.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from services.worker.kernels.int_codes import WORD_BF16, WORD_FP16, WORD_REGISTERS

UNIT = gl.constexpr(16)
"""Inputs of one instruction of the matrix unit."""
_BF16, _FP16, _REGISTERS = (gl.constexpr(t.value) for t in (WORD_BF16, WORD_FP16, WORD_REGISTERS))


@gluon.constexpr_function
def _codes_layout(
    rows: int, warps: int, registers: list[list[int]], lanes: list[list[int]], width: int
) -> gl.DistributedLinearLayout:
    """Whose codes become a thread's part of the left operand. It has rows r and r + 8 of each sixteen there, which are
    to be the two features of one row of codes; four threads share it.

    Args:
        registers: bases of a thread's places in a row.
        lanes: those of the four threads.
        width: places in a row.
    """
    blocks = [[8 << at, 0] for at in range((rows // 8).bit_length() - 1)]
    split = warps.bit_length() - 1
    return gl.DistributedLinearLayout(
        [*registers, *blocks[split:]], [*lanes, [1, 0], [2, 0], [4, 0]], blocks[:split], [], [rows, width]
    )


@gluon.constexpr_function
def pairs_layout(rows: int, warps: int, width: int) -> gl.DistributedLinearLayout:
    """Of int16, two neighbouring inputs each."""
    registers = [[0, 4 << at] for at in range((width // 4).bit_length() - 1)]
    return _codes_layout(rows, warps, registers, [[0, 1], [0, 2]], width)


@gluon.constexpr_function
def words_layout(rows: int, warps: int) -> gl.DistributedLinearLayout:
    """Of int32 [P, 4], a unit: word c has inputs 2c, 2c + 1, 2c + 8 and 2c + 9."""
    return _codes_layout(rows, warps, [], [[0, 1], [0, 2]], 4)


@gluon.jit
def _twice(half: gl.tensor, DTYPE: gl.constexpr) -> gl.tensor:
    """A float16 as DTYPE, in both halves of a word."""
    text: gl.constexpr = "cvt.rn.bf16x2.f32 $0, $1, $1;" if gl.bfloat16 == DTYPE else "cvt.rn.f16x2.f32 $0, $1, $1;"
    wide = half.to(gl.int16).to(gl.float16, bitcast=True).to(gl.float32)
    return gl.inline_asm_elementwise(text, "=r,r", [wide], gl.int32, is_pure=True, pack=1)


@gluon.jit
def scales_of(words: gl.tuple, COUNT: gl.constexpr, DTYPE: gl.constexpr) -> gl.tuple:
    """Scale and offset [P, 1] of even and of odd features, for each group."""
    scales: gl.tuple = ()
    for n in gl.static_range(2 * COUNT):
        scale, offset = _twice(words[n] & 0xFFFF, DTYPE), _twice(words[n] >> 16, DTYPE)
        scales = scales + (scale.expand_dims(1), offset.expand_dims(1))  # noqa: RUF005
    return scales


@gluon.jit
def _pieces(words: gl.tensor, ROWS: gl.constexpr, COUNT: gl.constexpr, WORDS: gl.constexpr) -> gl.tuple:
    """[P, 4, COUNT] as COUNT tensors [P, 4]."""
    if COUNT == 1:
        return (gl.convert_layout(words.reshape([ROWS, 4]), WORDS),)
    else:
        first, second = words.reshape([ROWS, 4, 2, COUNT // 2]).permute([0, 1, 3, 2]).split()
        return _pieces(first, ROWS, COUNT // 2, WORDS) + _pieces(second, ROWS, COUNT // 2, WORDS)


@gluon.jit
def units_of(
    codes: gl.shared_memory_descriptor,
    ROWS: gl.constexpr,
    COUNT: gl.constexpr,
    PAIRS: gl.constexpr,
    WORDS: gl.constexpr,
) -> gl.tuple:
    """Codes [P, 8 COUNT] of int16 as COUNT units of words [P, 4], in registers."""
    pairs = codes.load(PAIRS).to(gl.int32).reshape([ROWS, COUNT, 2, 4])
    near, far = pairs.permute([0, 1, 3, 2]).split()
    return _pieces(((near & 0xFFFF) | (far << 16)).permute([0, 2, 1]), ROWS, COUNT, WORDS)


@gluon.jit
def weights_of(unit: gl.tensor, scales: gl.tuple, group: gl.constexpr, DTYPE: gl.constexpr) -> gl.tuple:
    """A unit's weights, two to a word [P, 4]: of even features inputs 2c and 2c + 1, 2c + 8 and 2c + 9; of odd ones."""
    text: gl.constexpr = _BF16 if gl.bfloat16 == DTYPE else _FP16
    first: gl.constexpr = 4 * group
    return gl.inline_asm_elementwise(
        text, _REGISTERS, [unit, scales[first], scales[first + 1], scales[first + 2], scales[first + 3]],
        (gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def left_operand(weights: gl.tuple, ROWS: gl.constexpr, DTYPE: gl.constexpr, MMA: gl.constexpr) -> gl.tensor:
    """A unit's weights as an operand [2 P, 16]: of each sixteen rows eight are even features and eight the odd ones
    after them. No instruction comes of it: it only says what is where."""
    words = gl.join(gl.join(weights[0], weights[1]), gl.join(weights[2], weights[3]))
    low = (words & 0xFFFF).to(gl.int16).to(DTYPE, bitcast=True)
    high = (words >> 16).to(gl.int16).to(DTYPE, bitcast=True)
    places = gl.join(low, high).reshape([ROWS // 8, 8, 4, 2, 2, 2])  # row, c, 2c or 2c + 8, feature, and + 1
    places = places.permute([0, 4, 1, 3, 2, 5]).reshape([2 * ROWS, UNIT])
    return gl.convert_layout(places, gl.DotOperandLayout(0, MMA, 2))
