"""Launches of the kernels for quantized weights, beside those of `launch_cases.py`: dense products, experts, and the
rounding of activations. Compiled by `compile_sm90`; tiles to choose from are timed by `benchmarks.quantization`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.kernel_sections.launch_cases import CPU, MOE_SHAPES, empty, ints
from services.worker.kernels.arrivals import arrival_counters
from services.worker.kernels.expert_routing import assign_blocks
from services.worker.kernels.expert_tiles import ExpertTiles
from services.worker.kernels.fp8_product import Fp8Config, fp8_config, fp8_product
from services.worker.kernels.fp8_rows import FP8, fp8_rows
from services.worker.kernels.int_config import IntConfig, int_config
from services.worker.kernels.int_product import int_product
from services.worker.kernels.int_tiles import IntTiles, expand
from services.worker.kernels.packed_config import PackedConfig, packed_configs
from services.worker.kernels.packed_experts import down_product, gated_product
from services.worker.kernels.rms_norm import add_rms_norm, rms_norm
from services.worker.kernels.silu_and_mul import silu_and_mul
from services.worker.quantization.rounded import unfilled_rows

CASES: dict[str, Callable[[], None]] = {}
PACKED_FORMS = {
    "4-bit": (torch.uint8, 128),
    "fp8": (torch.float8_e4m3fn, None),
    "fp8 block": (torch.float8_e4m3fn, 128),
}
"""Codes, and the inputs that share a scale; None: all."""
PACKED_CANDIDATES = {
    form: [PackedConfig(*shape, operands) for operands, shapes in kinds.items() for shape in shapes]
    for form, kinds in {
        "4-bit": {
            "codes": [
                (8, 32, 128, 2, 4), (8, 16, 128, 1, 4), (8, 32, 128, 2, 6), (8, 64, 128, 4, 4),
                (16, 32, 128, 2, 4), (16, 16, 128, 1, 4), (16, 64, 128, 4, 3), (32, 32, 128, 2, 4), (32, 64, 128, 4, 3),
                (64, 32, 128, 4, 3), (64, 64, 64, 4, 3),
            ],
            "staged": [
                (64, 64, 64, 4, 4), (64, 64, 128, 4, 3), (64, 32, 64, 4, 5), (64, 128, 64, 8, 4), (64, 128, 64, 4, 3),
                (128, 64, 64, 4, 3), (128, 32, 64, 4, 4), (128, 64, 64, 8, 4), (128, 64, 128, 8, 3),
                (128, 128, 64, 8, 3),
            ],
        },
        "fp8": {
            "codes": [
                (8, 32, 128, 2, 4), (8, 16, 128, 1, 4), (8, 16, 256, 2, 4), (8, 64, 128, 4, 4), (16, 32, 128, 2, 4),
                (16, 64, 128, 4, 3), (32, 32, 128, 2, 4), (32, 64, 128, 4, 3), (64, 64, 64, 4, 4), (64, 64, 128, 4, 3),
                (128, 64, 64, 4, 3), (128, 64, 64, 8, 3),
            ],
            "rounded": [
                (16, 64, 128, 4, 4), (32, 64, 128, 4, 4), (64, 64, 128, 4, 4), (64, 128, 128, 8, 3),
                (128, 64, 128, 4, 3), (128, 128, 128, 8, 3), (128, 128, 64, 8, 4), (128, 64, 128, 8, 3),
            ],
        },
    }.items()
}  # fmt: skip
"""Tiles to choose from."""


def packed_tiles(form: str, num_experts: int, width: int, depth: int) -> ExpertTiles:
    """Tiles that take the memory of one expert."""
    kind, group = PACKED_FORMS[form]
    bits, group = (4 if kind == torch.uint8 else 8), group or depth
    codes = torch.empty(1, width // 2 if bits == 4 else width, depth, dtype=kind).expand(num_experts, -1, -1)
    table = ints(1, depth // group, 2, width // 2) if bits == 4 else empty(1, depth // group, width).float()
    factors = empty(num_experts, dtype=torch.float32)
    return ExpertTiles(bits, codes, table.expand(num_experts, *table.shape[1:]), factors, None, width, group)


def _packed(
    name: str, form: str, tile: float | PackedConfig, dtype: torch.dtype = torch.bfloat16
) -> Callable[[], None]:
    """Both products of a layer, with a tile or with the one for some pairs an expert."""

    def launch() -> None:
        num_experts, top_k, hidden, intermediate = MOE_SHAPES[name]
        gate_up = packed_tiles(form, num_experts, 2 * intermediate, hidden)
        down = packed_tiles(form, num_experts, hidden, intermediate)
        pair = (tile, tile) if isinstance(tile, PackedConfig) else packed_configs(tile, gate_up, down, dtype)
        tokens = 1 if pair[0].block_m <= 16 else 600
        blocks = assign_blocks(ints(tokens, top_k), num_experts, pair[0].block_m)
        inner = gated_product(empty(tokens, hidden, dtype=dtype), gate_up, blocks, pair[0], top_k)
        down_product(inner, down, blocks, pair[1])

    return launch


def packed_label(config: PackedConfig) -> str:
    return (
        f"m{config.block_m} p{config.block_p} k{config.block_k} w{config.num_warps} s{config.num_stages} "
        f"{config.operands}"
    )


for _name in MOE_SHAPES:
    for _form, _configs in PACKED_CANDIDATES.items():
        for _packed_config in _configs:
            CASES[f"candidate packed experts {_form} {_name} {packed_label(_packed_config)}"] = _packed(
                _name, _form, _packed_config
            )
    for _form in PACKED_FORMS:
        for _load in (1, 8, 32, 64, 256):
            CASES[f"packed experts {_form} {_name} load {_load}"] = _packed(_name, _form, _load)
CASES["packed experts 4-bit fp16"] = _packed("Qwen3-30B-A3B", "4-bit", 1, dtype=torch.float16)
CASES["packed experts 4-bit fp32"] = _packed("Qwen3-30B-A3B", "4-bit", 1, dtype=torch.float32)


LLAMA_8B_PRODUCTS = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
"""Outputs and inputs of a layer's products."""
_WIDE_TILES: dict[int, list[tuple[int, int, int, int, int, int]]] = {
    32: [(32, 64, 128, 4, 3, 1), (32, 64, 128, 4, 3, 4), (32, 64, 128, 4, 4, 4), (32, 64, 64, 4, 5, 4),
         (32, 128, 128, 8, 3, 4)],
    64: [(64, 64, 128, 4, 3, 1), (64, 64, 128, 4, 3, 4), (64, 64, 128, 4, 3, 8), (64, 64, 128, 4, 4, 4),
         (64, 64, 64, 4, 4, 4), (64, 128, 128, 8, 3, 4)],
    128: [(64, 64, 128, 4, 3, 1), (64, 64, 128, 4, 3, 4), (128, 64, 64, 4, 4, 1), (128, 64, 64, 4, 4, 4),
          (128, 128, 64, 8, 4, 1), (128, 128, 64, 8, 4, 4)],
    256: [(128, 64, 64, 4, 4, 1), (128, 64, 64, 4, 4, 2), (128, 64, 64, 4, 4, 4), (128, 128, 64, 8, 4, 1),
          (128, 128, 64, 8, 4, 4)],
}  # fmt: skip
INT_CANDIDATES = {
    1: [
        IntConfig(*shape)
        for shape in (
            (8, 32, 128, 2, 4, 4), (8, 32, 128, 2, 6, 4), (8, 32, 128, 2, 4, 2), (8, 32, 128, 2, 4, 8),
            (8, 16, 128, 1, 4, 4), (8, 64, 128, 4, 4, 4), (8, 64, 128, 2, 4, 4), (16, 32, 128, 2, 4, 4),
            (8, 64, 128, 2, 4, 8), (8, 128, 128, 4, 4, 4),
        )
    ],
    **{tokens: [IntConfig(*shape, "hopper") for shape in shapes] for tokens, shapes in _WIDE_TILES.items()},
}  # fmt: skip
"""Tiles to choose from, by tokens."""


def int_case(
    config: IntConfig | None = None,
    tokens: int = 1,
    bits: int = 4,
    group: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    kind: torch.dtype = torch.int8,
    gated: bool = False,
) -> Callable[[], None]:
    """One product."""

    def launch() -> None:
        rows, depth = 14336, 4096
        codes = torch.empty(rows, depth, dtype=kind if bits == 8 else torch.uint8)
        table = ints(depth // group, 2, rows) if bits == 4 else empty(depth // group, rows, dtype=torch.float32)
        tiles = IntTiles(bits, codes, table, 1.0, rows * (2 if bits == 4 else 1), group, gated)
        int_product(empty(tokens, depth, dtype=dtype), tiles, None, arrival_counters(CPU), config)
        expand(tiles, dtype)

    return launch


def tile_label(config: IntConfig | Fp8Config) -> str:
    return (
        f"m{config.block_m} p{config.block_p} k{config.block_k} w{config.num_warps} s{config.num_stages} "
        f"split{config.splits}"
    )


for _tokens, _shapes in INT_CANDIDATES.items():
    for _int in _shapes:
        CASES[f"candidate int4 T{_tokens} {tile_label(_int)}"] = int_case(_int, _tokens)
for _tokens in (1, 16, 32, 64, 128, 1024):
    CASES[f"int4 g128 T{_tokens}"] = int_case(None, _tokens)
for _tokens in (32, 64, 256):  # weights that do not fit Hopper's own kernel, and other cards
    _tiles = IntTiles(4, torch.empty(14336, 4096), torch.empty(0), 1.0, 28672, 128)
    _int = int_config(_tokens, _tiles, 132, hopper=False)
    CASES[f"int4 g128 T{_tokens} staged or direct"] = int_case(_int, _tokens)
for _tokens in (1, 16, 32, 64, 128):
    CASES[f"int4 g128 T{_tokens} gated"] = int_case(None, _tokens, gated=True)
CASES["int4 g32 T1"] = int_case(None, 1, group=32)
CASES["int4 g16 T64"] = int_case(None, 64, group=16)
CASES["int4 g32 T256"] = int_case(None, 256, group=32)
CASES["int4 g128 T1 fp16"] = int_case(None, 1, dtype=torch.float16)
CASES["int4 g128 T256 fp16"] = int_case(None, 256, dtype=torch.float16)
CASES["int4 g128 T1 fp32"] = int_case(None, 1, dtype=torch.float32)
for _tokens in (1, 64):
    CASES[f"fp8 g128 T{_tokens} int product"] = int_case(None, _tokens, bits=8, kind=torch.float8_e4m3fn)
CASES["int8 g4096 T1"] = int_case(None, 1, bits=8, group=4096)
CASES["int8 g4096 T64"] = int_case(None, 64, bits=8, group=4096)

FP8_CANDIDATES = {
    tokens: [Fp8Config(*shape) for shape in shapes]
    for tokens, shapes in {
        32: [
            (32, 64, 256, 4, 4, 1), (32, 64, 256, 4, 4, 4), (32, 64, 128, 4, 5, 1), (32, 64, 128, 4, 5, 2),
            (32, 128, 128, 4, 4, 1), (32, 32, 256, 4, 4, 1),
        ],
        64: [
            (64, 64, 128, 4, 5, 1), (64, 64, 128, 4, 5, 4), (64, 64, 256, 4, 3, 1), (64, 64, 256, 4, 3, 4),
            (64, 128, 128, 4, 4, 1), (64, 128, 256, 8, 2, 1),
        ],
        128: [
            (64, 64, 128, 4, 5, 1), (64, 64, 128, 4, 5, 2), (128, 64, 128, 4, 4, 1), (128, 64, 128, 4, 4, 4),
            (64, 128, 128, 4, 4, 1), (128, 128, 128, 8, 3, 1),
        ],
    }.items()
}  # fmt: skip
"""Tiles to choose from, by tokens."""


def fp8_case(tokens: int, config: Fp8Config | None = None) -> Callable[[], None]:
    """Every product of a layer, or one of them with a tile."""

    def launch() -> None:
        products = LLAMA_8B_PRODUCTS.values() if config is None else [LLAMA_8B_PRODUCTS["gate_up"]]
        for width, depth in products:
            fp8_product(
                empty(tokens, depth, dtype=FP8), empty(tokens, 1, dtype=torch.float32), empty(width, depth, dtype=FP8),
                empty(1, width, dtype=torch.float32), None, arrival_counters(CPU), torch.bfloat16,
                config or fp8_config(tokens, width, depth, 132),
            )  # fmt: skip

    return launch


for _tokens, _fp8s in FP8_CANDIDATES.items():
    for _fp8 in _fp8s:
        CASES[f"candidate fp8 product T{_tokens} {tile_label(_fp8)}"] = fp8_case(_tokens, _fp8)
for _tokens in (17, 32, 64, 128):
    CASES[f"fp8 product T{_tokens}"] = fp8_case(_tokens)


def _fp8_rows() -> None:
    for width in (4096, 14336):
        fp8_rows(empty(2, width))


CASES["fp8 rows"] = _fp8_rows


def rounding_case(dtype: torch.dtype) -> Callable[[], None]:
    """What computes activations and rounds them at once."""

    def launch() -> None:
        x, residual, weight = (empty(*shape, dtype=dtype) for shape in ((2, 4096), (2, 4096), (4096,)))
        rms_norm(x, weight, 1e-6, unfilled_rows(x, 4096))
        add_rms_norm(x, residual, weight, 1e-6, unfilled_rows(x, 4096))
        gate_up = empty(2, 2 * 14336, dtype=dtype)
        silu_and_mul(gate_up, unfilled_rows(gate_up, 14336))

    return launch


for _dtype in (torch.float16, torch.bfloat16):
    CASES[f"fp8 rows made from {str(_dtype).removeprefix('torch.')}"] = rounding_case(_dtype)
