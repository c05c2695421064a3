"""Short vectors of numbers for kernels whose inner loops are too short for the compiler to vectorise them well.

Two types that kernels hold in variables, and the operations on them as LLVM instructions; the compiler splits a vector
into the registers that the processor has. Offsets are flat and not checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANES = 16 if get_host_cpu_features().get("avx512f") else 8
"""As many as a register holds, where there are vector registers."""
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)


class _Floats(types.Type):
    """LANES x float32"""


class _Ints(types.Type):
    """LANES x int32"""


@register_model(_Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)  # type: ignore[no-untyped-call]


@register_model(_Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _INTS)  # type: ignore[no-untyped-call]


floats, ints = _Floats("floats"), _Ints("ints")


def _zeros(typing_context: Any) -> Any:
    """All zero."""
    return floats(), lambda context, builder, signature, args: ir.Constant(_FLOATS, [0.0] * LANES)


def _load(context: Any, builder: Any, signature: Any, args: Any, kind: ir.VectorType) -> Any:
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    address = builder.bitcast(builder.gep(data, [args[1]]), kind.as_pointer())
    return builder.load(address, align=kind.element.width // 8 if isinstance(kind.element, ir.IntType) else 4)


def _load_floats(typing_context: Any, array: Any, offset: Any) -> Any:
    """Neighbours of a contiguous array of float32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(context, builder, signature, args, _FLOATS)

    return floats(array, types.int64), emit


def _load_codes(typing_context: Any, array: Any, offset: Any) -> Any:
    """Neighbours of a contiguous array of uint8, as int32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(_load(context, builder, signature, args, _BYTES), _INTS)

    return ints(array, types.int64), emit


def _load_signed(typing_context: Any, array: Any, offset: Any) -> Any:
    """Neighbours of a contiguous array of int8, as float32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(builder.sext(_load(context, builder, signature, args, _BYTES), _INTS), _FLOATS)

    return floats(array, types.int64), emit


def _low_halves(typing_context: Any, codes: Any) -> Any:
    """The lower four bits of bytes, as float32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(builder.and_(args[0], ir.Constant(_INTS, [15] * LANES)), _FLOATS)

    return floats(codes), emit


def _high_halves(typing_context: Any, codes: Any) -> Any:
    """The upper four bits of bytes, as float32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(builder.lshr(args[0], ir.Constant(_INTS, [4] * LANES)), _FLOATS)

    return floats(codes), emit


def _add_product(typing_context: Any, total: Any, left: Any, right: Any) -> Any:
    """total + left * right, by element."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(args[0], builder.fmul(args[1], args[2], flags=["fast"]), flags=["fast"])

    return floats(total, left, right), emit


def _spread(typing_context: Any, value: Any) -> Any:
    """One float32 everywhere."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, one, ir.Constant(_INTS, [0] * LANES))

    return floats(types.float32), emit


def _sum_of(typing_context: Any, vector: Any) -> Any:
    """The sum of all elements, in halves."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        part, lanes = args[0], LANES
        while lanes > 1:
            lanes //= 2
            low, high = (
                builder.shuffle_vector(
                    part, part, ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(first, first + lanes)))
                )
                for first in (0, lanes)
            )
            part = builder.fadd(low, high)
        return builder.extract_element(part, ir.Constant(ir.IntType(32), 0))

    return types.float32(vector), emit


zeros: Any = intrinsic(_zeros)
load_floats: Any = intrinsic(_load_floats)
load_codes: Any = intrinsic(_load_codes)
load_signed: Any = intrinsic(_load_signed)
low_halves: Any = intrinsic(_low_halves)
high_halves: Any = intrinsic(_high_halves)
add_product: Any = intrinsic(_add_product)
spread: Any = intrinsic(_spread)
sum_of: Any = intrinsic(_sum_of)
