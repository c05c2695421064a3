"""exp in single precision that the compiler can vectorise, which it cannot do with the C library's."""

from __future__ import annotations

import math

import numpy as np

from services.worker.cpu_kernels.intrinsics import float_of_bits
from services.worker.cpu_kernels.jit import inner

_F = np.float32
_LEAST, _MOST = _F(-87.0), _F(88.0)  # beyond these the exponent of the result does not fit
_LOG2_E = _F(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)  # their sum is ln 2; n * high is exact
_C5, _C4, _C3 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_C2, _C1, _C0 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
_HALF, _ONE = _F(0.5), _F(1.0)
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)


@inner
def exp(x: np.float32) -> np.float32:
    """exp(x) of a float32 within two units in the last place; arguments are clamped to -87..88.

    Source: the reduction and polynomial of Cephes' expf (Moshier 1992).
    """
    x = min(max(x, _LEAST), _MOST)
    n = math.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _C0
    power: np.float32 = float_of_bits((np.int32(n) + _BIAS) << _MANTISSA_BITS)
    return (p * r * r + r + _ONE) * power
