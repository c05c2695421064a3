"""What numba's Python lacks, as single LLVM instructions: bits as another type, memory asked for in advance."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I32 = ir.IntType(32)
_READ, _INTO_L2, _DATA = ir.Constant(_I32, 0), ir.Constant(_I32, 2), ir.Constant(_I32, 1)


def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    """int32 -> the float32 of the same bits."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), emit


def _prefetch(typing_context: Any, array: Any, offset: Any) -> Any:
    """Bring the cache line of element `offset` (flat, unchecked) of a contiguous array to L2; never faults."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.gep(data, [args[1]])
        shape = ir.FunctionType(ir.VoidType(), [address.type, _I32, _I32, _I32])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [address.type], shape)
        builder.call(ask, [address, _READ, _INTO_L2, _DATA])
        return context.get_dummy_value()

    return types.void(array, types.int64), emit


float_of_bits: Any = intrinsic(_float_of_bits)
prefetch: Any = intrinsic(_prefetch)
