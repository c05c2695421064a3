"""Products with 4 and 8 bit weights against fp64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from services.worker.kernels.arrivals import arrival_counters
from services.worker.kernels.int_config import IntConfig, Way, fits_hopper, int_config, most_tokens
from services.worker.kernels.int_product import int_product
from services.worker.kernels.int_tiles import IntTiles, expand, make_tiles
from tests.unit.worker.kernels.closeness import MATMUL_DTYPES, assert_close

SMALL = IntConfig(block_m=16, block_p=16, block_k=16, num_warps=4, num_stages=2, splits=1)


def random_weight(
    bits: int, width: int, depth: int, group: int, device: torch.device, *, gated: bool = False
) -> tuple[IntTiles, torch.Tensor]:
    """Tiles, and the weight that they are, in fp64."""
    groups = depth // group
    low, high, kind = (0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
    codes = torch.randint(low, high, (width, depth), device=device).to(kind)
    scales = (torch.rand(width, groups, device=device) + 0.1) * depth**-0.5 / high
    scales = scales.half().float()
    offsets = (-8 * scales).half().float() if bits == 4 else None
    weight = codes.double() * scales.double().repeat_interleave(group, 1)
    if offsets is not None:
        weight += offsets.double().repeat_interleave(group, 1)
    return make_tiles(bits, codes, scales, offsets, gated=gated), weight


@pytest.mark.parametrize("dtype", MATMUL_DTYPES)
@pytest.mark.parametrize("way", ["direct", "staged"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    ("bits", "tokens", "width", "depth", "group"),
    [
        (4, 1, 6, 64, 32),
        (4, 3, 38, 96, 48),
        (4, 19, 34, 128, 64),
        (4, 2, 10, 40, 40),
        (8, 3, 21, 64, 32),
        (8, 2, 9, 40, 40),
    ],
)
def test_a_product_is_that_of_the_weight_it_stands_for(
    bits: int, tokens: int, width: int, depth: int, group: int, splits: int, way: Way, dtype: torch.dtype,
    device: torch.device,
) -> None:  # fmt: skip
    tiles, weight = random_weight(bits, width, depth, group, device)
    x, bias = (torch.randn(shape, device=device).to(dtype) for shape in ((tokens, depth), (width,)))
    counters = arrival_counters(device)
    for some_bias in (bias, None):
        out = int_product(x, tiles, some_bias, counters, dataclasses.replace(SMALL, splits=splits, way=way))
        want = x.double() @ weight.T + (0 if some_bias is None else bias.double())
        assert_close(out, want)
        assert not counters.any()


@pytest.mark.parametrize("dtype", MATMUL_DTYPES)
@pytest.mark.parametrize("way", ["direct", "staged"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("tokens", "width", "depth", "group"), [(1, 6, 64, 32), (3, 38, 96, 48), (19, 34, 128, 64)])
def test_a_gated_product_is_that_of_its_two_halves(
    tokens: int, width: int, depth: int, group: int, splits: int, way: Way, dtype: torch.dtype, device: torch.device
) -> None:
    tiles, weight = random_weight(4, width, depth, group, device, gated=True)
    x, bias = (torch.randn(shape, device=device).to(dtype) for shape in ((tokens, depth), (width,)))
    counters = arrival_counters(device)
    for some_bias in (bias, None):
        out = int_product(x, tiles, some_bias, counters, dataclasses.replace(SMALL, splits=splits, way=way))
        gate, up = (x.double() @ weight.T + (0 if some_bias is None else bias.double())).chunk(2, dim=1)
        assert_close(out, torch.nn.functional.silu(gate) * up)
        assert not counters.any()


def test_the_table_gives_steps_within_a_group(device: torch.device) -> None:
    for group, depth in ((32, 96), (48, 96), (64, 128), (128, 256), (4096, 4096), (40, 40)):
        tiles = IntTiles(4, torch.empty(8, depth), torch.empty(0), 1.0, 16, group)
        for tokens in (1, 16, 17, 33, 64, most_tokens(hopper=False)):
            config = int_config(tokens, tiles, 132, hopper=False)
            assert group == depth or group % config.block_k == 0
            assert config.block_m >= min(tokens, 64)


def test_hopper_s_own_kernel_gets_weights_whose_steps_and_groups_fit() -> None:
    fit = {(16, 128): True, (32, 256): True, (64, 896): True, (128, 4096): True, (4096, 4096): True, (256, 512): True,
           (32, 96): False, (48, 384): False, (64, 320): False, (192, 384): False, (40, 40): False}  # fmt: skip
    for (group, depth), fits in fit.items():
        tiles = IntTiles(4, torch.empty(8, depth), torch.empty(0), 1.0, 16, group)
        assert fits_hopper(tiles, torch.bfloat16) == fits
        assert not fits_hopper(tiles, torch.float32)
        assert not fits_hopper(dataclasses.replace(tiles, bits=8), torch.bfloat16)


def test_a_product_on_hopper_is_split_into_no_more_programs_than_run_at_once() -> None:
    for rows in (32, 2048, 5120, 14336):
        for depth in (128, 896, 4096, 14336):
            tiles = IntTiles(4, torch.empty(rows, depth), torch.empty(0), 1.0, 2 * rows, 128)
            for tokens in (17, 32, 33, 64, 65, 128, 129, most_tokens(hopper=True)):
                config = int_config(tokens, tiles, 132, hopper=True)
                assert config.way == "hopper"
                assert depth % config.block_k == 0
                programs = -(-rows // config.block_p) * -(-tokens // config.block_m)
                assert config.splits == 1 or programs * config.splits <= 3 * 132
                assert config.splits <= depth // config.block_k
            assert int_config(16, tiles, 132, hopper=True).way == "direct"


@pytest.mark.parametrize(("bits", "gated"), [(4, False), (4, True), (8, False)])
def test_an_expanded_weight_is_exact_before_rounding(bits: int, gated: bool, device: torch.device) -> None:
    tiles, weight = random_weight(bits, 70, 96, 32, device, gated=gated)
    assert_close(expand(tiles, torch.float32), weight)


@pytest.mark.parametrize("size", [1e-12, 1e9])
def test_scales_that_16_bits_cannot_hold_are_kept_beside_a_factor(size: float, device: torch.device) -> None:
    codes = torch.randint(0, 16, (4, 32), device=device, dtype=torch.uint8)
    scales = torch.rand(4, 1, device=device) * size
    weight = codes.double() * scales.double() - 8 * scales.double()
    out = expand(make_tiles(4, codes, scales, -8 * scales), torch.float32)
    assert_close(out / size, weight / size, 2e-3)
