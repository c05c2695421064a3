"""The gated activation of an MLP."""

from __future__ import annotations

import numpy as np
from numba import prange

from services.worker.cpu_kernels.exponential import exp
from services.worker.cpu_kernels.jit import inner, kernel

SERIAL_ELEMENTS = 1 << 15
"""Below this one thread is done before a second has begun."""
_ONE = np.float32(1.0)


@kernel
def silu_and_mul(gate_up: np.ndarray, out: np.ndarray) -> None:
    """silu(gate) * up of gate_up [T, 2 * I], gate first, to out [T, I]; both fp32."""
    if out.size < SERIAL_ELEMENTS:
        for t in range(out.shape[0]):
            _row(gate_up[t], out[t])
    else:
        for t in prange(out.shape[0]):
            _row(gate_up[t], out[t])


@inner
def _row(gate_up, out):  # type: ignore[no-untyped-def]
    width = out.shape[0]
    for i in range(width):
        gate = gate_up[i]
        out[i] = gate / (_ONE + exp(-gate)) * gate_up[width + i]
