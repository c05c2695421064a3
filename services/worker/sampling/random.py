"""Counter-based random numbers: one uniform per (seed, number of tokens generated so far).

No state is kept, so a row's stream does not depend on what else is in the batch and continues after a retraction.
Source: the SplitMix64 finalizer (Steele, Lea, Flood 2014), applied to the seed and then to seed and counter.
"""

from __future__ import annotations

from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64; arithmetic wraps
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def uniforms(seeds: Tensor, counters: Tensor) -> Tensor:
    """[N] fp32 in [0, 1), from seeds [N] and counters [N], both int64 on any device."""
    z = _mix(_mix(seeds + _GOLDEN) + (counters + 1) * _GOLDEN)
    return _shift_right(z, 40).float() * 2.0**-24


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` of int64 copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
