"""RMS norm, alone and after adding to the residual stream."""

from __future__ import annotations

import numpy as np
from numba import prange

from services.worker.cpu_kernels.jit import inner, kernel

SERIAL_ELEMENTS = 1 << 17
"""Below this one thread is done before a second has begun."""
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@kernel
def rms_norm(x: np.ndarray, weight: np.ndarray, eps: np.float32, out: np.ndarray) -> None:
    """Norm of the rows of x [T, N] times weight [N], to out [T, N]; all fp32."""
    if x.size < SERIAL_ELEMENTS:
        for t in range(x.shape[0]):
            _norm(x[t], weight, eps, out[t])
    else:
        for t in prange(x.shape[0]):
            _norm(x[t], weight, eps, out[t])


@kernel
def add_rms_norm(residual: np.ndarray, delta: np.ndarray, weight: np.ndarray, eps: np.float32) -> None:
    """Add `delta` [T, N] to `residual` [T, N]; `delta` becomes the norm of the sum. All fp32."""
    if residual.size < SERIAL_ELEMENTS:
        for t in range(residual.shape[0]):
            _add(residual[t], delta[t])
            _norm(residual[t], weight, eps, delta[t])
    else:
        for t in prange(residual.shape[0]):
            _add(residual[t], delta[t])
            _norm(residual[t], weight, eps, delta[t])


@inner
def _add(residual, delta):  # type: ignore[no-untyped-def]
    for n in range(residual.shape[0]):
        residual[n] += delta[n]


@inner
def _norm(x, weight, eps, out):  # type: ignore[no-untyped-def]
    squares = _ZERO
    for n in range(x.shape[0]):
        squares += x[n] * x[n]
    factor = _ONE / np.sqrt(squares / np.float32(x.shape[0]) + eps)
    for n in range(x.shape[0]):
        out[n] = x[n] * factor * weight[n]
