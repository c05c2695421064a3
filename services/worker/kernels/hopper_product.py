"""Products with weights of 4 bits on Hopper, for more tokens than `int_product.py` multiplies straight from codes.

The matrix unit's instructions run on their own there, and take their left operand from registers: codes go from shared
memory to the registers in which it is wanted, become weights there, 16 inputs at a time, and the next ones are made
while those before are multiplied. Triton's own pipeline waits for every product with operands in registers (or forgets
to, docs/log.md), so this is Gluon, Triton with layouts and waits spelled out. Programs that share a tile of the output
split its inputs and meet as those of `int_product.py` do, which calls this.
"""

from __future__ import annotations

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, warpgroup_mma, warpgroup_mma_wait

from services.worker.kernels.hopper_operand import (
    UNIT,
    left_operand,
    pairs_layout,
    scales_of,
    units_of,
    weights_of,
    words_layout,
)
from services.worker.kernels.int_config import IntConfig
from services.worker.kernels.int_tiles import IntTiles
from services.worker.kernels.overlap import overlap

# Renamed between Triton 3.6 and 3.9.
_copy = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
_barrier = getattr(gl, "barrier", None) or gl.thread_barrier


@gluon.jit
def wait_for_the_one_before(OVERLAP: gl.constexpr) -> None:
    """As in overlap.py, whose functions are Triton's."""
    if OVERLAP:
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], gl.int32, is_pure=False, pack=1)


@gluon.jit
def let_the_next_begin(OVERLAP: gl.constexpr) -> None:
    if OVERLAP:
        gl.inline_asm_elementwise("griddepcontrol.launch_dependents; // $0", "=r", [], gl.int32, is_pure=False, pack=1)


@gluon.jit
def _words(
    words_at: gl.tensor,
    start: gl.tensor,
    ROWS: gl.constexpr,
    DEPTH: gl.constexpr,
    GROUP: gl.constexpr,
    COUNT: gl.constexpr,
) -> gl.tuple:
    """Words [P] of the table, of even and of odd features, for COUNT groups from that of input `start` on."""
    words: gl.tuple = ()
    for n in gl.static_range(COUNT):
        at = words_at + gl.minimum(start // GROUP + n, DEPTH // GROUP - 1) * (2 * ROWS)
        words = words + (gl.load(at), gl.load(at + ROWS))  # noqa: RUF005 - Triton knows no other way
    return words


@gluon.jit
def _ask(
    x_at: gl.tensor,
    codes_at: gl.tensor,
    inputs: gl.shared_memory_descriptor,
    codes: gl.shared_memory_descriptor,
    step: gl.tensor,
    last: gl.tensor,
    BLOCK_K: gl.constexpr,
) -> None:
    """Have a step's inputs and codes copied to shared memory, if there is such a step."""
    there = step < last
    wanted = gl.full(codes_at.shape, True, gl.int1, codes_at.type.layout) & there
    _copy(codes, codes_at + step * (BLOCK_K // 2), mask=wanted)
    wanted = gl.full(x_at.shape, True, gl.int1, x_at.type.layout) & there
    _copy(inputs, x_at + step * BLOCK_K, mask=wanted)
    async_copy.commit_group()


@gluon.jit(do_not_specialize=["num_tokens", "factor"])
def _hopper_product_kernel(
    x: gl.tensor,
    codes: gl.tensor,
    table: gl.tensor,
    bias: gl.tensor,
    out: gl.tensor,
    partial: gl.tensor,
    arrivals: gl.tensor,
    num_tokens: gl.int32,
    factor: gl.float32,
    x_stride: gl.int32,
    ROWS: gl.constexpr,
    DEPTH: gl.constexpr,
    GROUP: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    GATED: gl.constexpr,
    SPLITS: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_P: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
    OVERLAP: gl.constexpr,
    num_warps: gl.constexpr,
) -> None:
    DTYPE: gl.constexpr = x.dtype.element_ty
    UNITS: gl.constexpr = BLOCK_K // UNIT
    GROUPS: gl.constexpr = (BLOCK_K + GROUP - 1) // GROUP
    STEPS: gl.constexpr = DEPTH // BLOCK_K
    SHARE: gl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_M, UNIT])
    PAIRS: gl.constexpr = pairs_layout(BLOCK_P, num_warps, BLOCK_K // 2)
    WORDS: gl.constexpr = words_layout(BLOCK_P, num_warps)
    LINE: gl.constexpr = BLOCK_K // 8  # copies of 16 bytes in a row of inputs; in one of codes there are half as many
    X: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LINE, LINE], [num_warps, 1], [1, 0])
    CODES: gl.constexpr = gl.BlockedLayout([1, 8], [64 // LINE, LINE // 2], [num_warps, 1], [1, 0])
    inputs = gl.allocate_shared_memory(DTYPE, [STAGES, BLOCK_M, BLOCK_K], gl.NVMMASharedLayout(128, 16))
    # Eight rows' pairs are read at once: sixteen bytes apart in a row are put where their banks differ.
    SPREAD: gl.constexpr = gl.SwizzledSharedLayout(8, 128 // BLOCK_K, BLOCK_K // 16, [1, 0])
    tiles = gl.allocate_shared_memory(gl.int16, [STAGES, BLOCK_P, BLOCK_K // 2], SPREAD)
    first_token, first_row = gl.program_id(0) * BLOCK_M, gl.program_id(1) * BLOCK_P
    first = gl.program_id(2) * SHARE
    last = gl.minimum(first + SHARE, STEPS)
    gl.assume(first < last)

    # Rows and tokens that are not there are read as others that are; the stores have masks.
    row = (first_row + gl.arange(0, BLOCK_P, gl.SliceLayout(1, CODES))) % ROWS
    codes_at = codes + (row * (DEPTH // 2))[:, None] + gl.arange(0, BLOCK_K // 2, gl.SliceLayout(0, CODES))[None, :]
    token = gl.minimum(first_token + gl.arange(0, BLOCK_M, gl.SliceLayout(1, X)), num_tokens - 1)
    x_at = x + (token * x_stride)[:, None] + gl.arange(0, BLOCK_K, gl.SliceLayout(0, X))[None, :]
    words_at = table + (first_row + gl.arange(0, BLOCK_P, gl.SliceLayout(1, WORDS))) % ROWS
    words = _words(words_at, first * BLOCK_K, ROWS, DEPTH, GROUP, GROUPS)
    wait_for_the_one_before(OVERLAP)
    for stage in gl.static_range(STAGES - 1):
        _ask(x_at, codes_at, inputs.index(stage), tiles.index(stage), first + stage, last, BLOCK_K)
    acc = gl.zeros([2 * BLOCK_P, BLOCK_M], gl.float32, MMA)
    async_copy.wait_group(STAGES - 2)
    scales = scales_of(words, GROUPS, DTYPE)
    units = units_of(tiles.index(0), BLOCK_P, UNITS, PAIRS, WORDS)
    weights = weights_of(units[0], scales, 0, DTYPE)
    multiplied = weights
    slot = 0
    for step in range(first, last):
        words = _words(words_at, (step + 1) * BLOCK_K, ROWS, DEPTH, GROUP, GROUPS)
        right = inputs.index(slot).permute([1, 0])
        for unit in gl.static_range(UNITS):
            part = right.slice(unit * UNIT, UNIT, 0)
            acc = warpgroup_mma(left_operand(weights, BLOCK_P, DTYPE, MMA), part, acc, is_async=True)
            # The unit before is done, so that its registers may be written.
            done = warpgroup_mma_wait(1, deps=[acc, multiplied[0], multiplied[1], multiplied[2], multiplied[3]])
            acc = done[0]
            multiplied = weights
            if unit + 1 < UNITS:
                weights = weights_of(units[unit + 1], scales, (unit + 1) * UNIT // GROUP, DTYPE)
        async_copy.wait_group(STAGES - 3)
        # Every warp that has come here is done with the step before, whose place is asked for next.
        slot = gl.where(slot == STAGES - 1, 0, slot + 1)
        free = gl.where(slot >= 2, slot - 2, slot + STAGES - 2)
        _ask(x_at, codes_at, inputs.index(free), tiles.index(free), step + STAGES - 1, last, BLOCK_K)
        scales = scales_of(words, GROUPS, DTYPE)
        units = units_of(tiles.index(slot), BLOCK_P, UNITS, PAIRS, WORDS)
        weights = weights_of(units[0], scales, 0, DTYPE)
    done = warpgroup_mma_wait(0, deps=[acc, multiplied[0], multiplied[1], multiplied[2], multiplied[3]])
    async_copy.wait_group(0)
    let_the_next_begin(OVERLAP)

    LANES: gl.constexpr = min(32, BLOCK_P // 2)
    OUT: gl.constexpr = gl.BlockedLayout([1, 4], [32 // LANES, LANES], [num_warps, 1], [1, 0])
    features = (done[0] * factor).reshape([BLOCK_P // 8, 2, 8, BLOCK_M]).permute([3, 0, 2, 1])
    features = gl.convert_layout(features.reshape([BLOCK_M, 2 * BLOCK_P]), OUT)
    token = first_token + gl.arange(0, BLOCK_M, gl.SliceLayout(1, OUT))
    feature = 2 * first_row + gl.arange(0, 2 * BLOCK_P, gl.SliceLayout(0, OUT))
    inside = (token < num_tokens)[:, None] & (feature < 2 * ROWS)[None, :]
    at = (token * (2 * ROWS))[:, None] + feature[None, :]
    if SPLITS > 1:
        part_size = num_tokens.to(gl.int64) * (2 * ROWS)
        gl.store(partial + gl.program_id(2) * part_size + at, features, mask=inside)
        # As arrivals.py: every thread's stores before the one thread that tells of them, and it before their loads.
        _barrier()
        counter = arrivals + gl.program_id(1) * gl.num_programs(0) + gl.program_id(0)
        arrived = gl.atomic_add(counter, 1, sem="acq_rel")
        _barrier()
        if arrived < SPLITS - 1:
            return
        gl.store(counter, 0)
        features = gl.zeros([BLOCK_M, 2 * BLOCK_P], gl.float32, OUT)
        for split in range(SPLITS):
            features += gl.load(partial + split * part_size + at, mask=inside, other=0.0, cache_modifier=".cg")
    if HAS_BIAS:
        bias_at = feature % 2 * ROWS + feature // 2 % ROWS if GATED else feature % (2 * ROWS)
        features += gl.load(bias + bias_at).to(gl.float32)[None, :]
    if GATED:
        gate, up = features.reshape([BLOCK_M, BLOCK_P, 2]).split()
        value = gate / (1.0 + gl.exp(-gate)) * up
        GATED_OUT: gl.constexpr = value.type.layout
        token = first_token + gl.arange(0, BLOCK_M, gl.SliceLayout(1, GATED_OUT))
        row = first_row + gl.arange(0, BLOCK_P, gl.SliceLayout(0, GATED_OUT))
        inside = (token < num_tokens)[:, None] & (row < ROWS)[None, :]
        gl.store(out + (token * ROWS)[:, None] + row[None, :], value.to(DTYPE), mask=inside)
    else:
        gl.store(out + at, features.to(DTYPE), mask=inside)


def hopper_product(
    x: torch.Tensor,
    tiles: IntTiles,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    partial: torch.Tensor,
    arrivals: torch.Tensor,
    config: IntConfig,
) -> None:
    """x W^T + b into `out`, for weights that `int_config.fits_hopper`; arguments are those of `int_product`.

    Args:
        partial: float32 with room for every split's results, if there are several.
    """
    if x.stride(0) % 16 or x.data_ptr() % 16:  # rows that lie in something wider; copies are of 16 bytes
        x = x.clone(memory_format=torch.contiguous_format)
    rows, depth = tiles.codes.shape
    grid = (triton.cdiv(len(x), config.block_m), triton.cdiv(rows, config.block_p), config.splits)
    _hopper_product_kernel[grid](
        x, tiles.codes.view(torch.int16), tiles.table, out if bias is None else bias, out, partial, arrivals, len(x),
        tiles.factor, x.stride(0),
        ROWS=rows, DEPTH=depth, GROUP=tiles.group, HAS_BIAS=bias is not None, GATED=tiles.gated,
        SPLITS=config.splits, BLOCK_M=config.block_m, BLOCK_P=config.block_p, BLOCK_K=config.block_k,
        STAGES=config.num_stages, num_warps=config.num_warps, **overlap(x.device),
    )  # fmt: skip
