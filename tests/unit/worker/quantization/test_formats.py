"""Every format is read as the weights that its definition says, whole and a rank's share of it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from services.worker.quantization.scheme import choose_scheme
from services.worker.quantization.stored import Part, Scheme
from services.worker.quantization.weights import Fp8Weight, IntWeight, Weight, beside, expanded, fp8_of
from shared.checkpoint.loader import load_dummy
from shared.checkpoint.weight_copies import WeightCopies
from shared.errors import ConfigError
from shared.log import Log
from tests.unit.worker.quantization.writers import CASES, Case, Tensors

WIDTH, DEPTH = 64, 256
NAME = "layers.0.mlp.up_proj"
CPU = torch.device("cpu")


def scheme_of(config: dict[str, Any]) -> Scheme:
    config = dict(config)
    if isinstance(config.get("types"), str):
        config["types"] = {NAME: config["types"]}
    scheme = choose_scheme(config, "auto")
    assert scheme is not None
    return scheme


def read(config: dict[str, Any], tensors: Tensors, rows: slice, columns: slice) -> Weight:
    """As the loader does it: of every tensor the part that the target takes, if it has the shape that it wants."""
    shapes = {f"{NAME}.{name}": tuple(tensor.shape) for name, tensor in tensors.items()}
    part = Part(NAME, rows, WIDTH, columns, DEPTH)
    stored = scheme_of(config).stored(part, shapes, CPU)
    assert stored is not None
    assert stored.targets.keys() == tensors.keys()
    for name, target in stored.targets.items():
        assert target.shape == tuple(tensors[name].shape), name
        target.into.copy_(tensors[name][target.take])
    return stored.read()


def random_weight(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (WIDTH, DEPTH))


def assert_is(weight: Weight, want: np.ndarray) -> None:
    got = expanded(weight, torch.float32).double().numpy()
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_whole_weight_is_what_the_format_says(case: Case) -> None:
    tensors, want = case.write(random_weight())
    assert_is(read(case.config, tensors, slice(0, WIDTH), slice(0, DEPTH)), want)


@pytest.mark.parametrize("rows", [slice(0, 21), slice(21, 64), slice(9, 10)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_rank_has_any_of_the_outputs(case: Case, rows: slice) -> None:
    tensors, want = case.write(random_weight())
    assert_is(read(case.config, tensors, rows, slice(0, DEPTH)), want[rows])


@pytest.mark.parametrize("columns", [slice(0, 128), slice(128, 256), slice(64, 96), slice(0, 160), slice(16, 48)])
@pytest.mark.parametrize("name", [name for name in CASES if "act-order" not in name])
def test_a_rank_has_some_of_the_inputs_even_where_a_group_is_cut(name: str, columns: slice) -> None:
    tensors, want = CASES[name].write(random_weight())
    assert_is(read(CASES[name].config, tensors, slice(8, 40), columns), want[8:40, columns])


@pytest.mark.parametrize(
    ("name", "setting"), [("gptq act-order 64", "desc_act"), ("compressed-tensors int4 act-order", "actorder")]
)
@pytest.mark.parametrize("columns", [slice(0, 128), slice(0, 72)])
def test_ranks_cannot_share_the_inputs_of_a_product_in_another_order(name: str, setting: str, columns: slice) -> None:
    case = CASES[name]
    tensors, _ = case.write(random_weight())
    with pytest.raises(ConfigError, match=rf"up_proj: inputs in another order \({setting}\) .* --tp-size 1"):
        read(case.config, tensors, slice(0, WIDTH), columns)


@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("columns", [slice(0, DEPTH), slice(64, 96)])
def test_inputs_that_a_file_puts_in_order_can_be_shared(columns: slice, filled: bool) -> None:
    case = CASES["compressed-tensors int4 zero points 64"]
    tensors, want = case.write(random_weight())
    tensors["weight_g_idx"] = torch.arange(DEPTH, dtype=torch.int32) // 64 if filled else torch.full((DEPTH,), -1).int()
    assert_is(read(case.config, tensors, slice(0, WIDTH), columns), want[:, columns])


@pytest.mark.parametrize("name", ["awq 64", "gptq v1 64", "compressed-tensors int8 packed"])
def test_a_cut_that_leaves_too_little_of_a_group_is_refused(name: str) -> None:
    tensors, _ = CASES[name].write(random_weight())
    with pytest.raises(ConfigError, match=r"up_proj: inputs 0 to 72 .* pieces of 8, .*--tp-size"):
        read(CASES[name].config, tensors, slice(0, WIDTH), slice(0, 72))


def test_groups_of_unequal_size_are_refused() -> None:
    case = CASES["gptq act-order 64"]
    tensors, _ = case.write(random_weight())
    tensors["g_idx"][:3] = 1
    with pytest.raises(ConfigError, match="up_proj: desc_act puts"):
        read(case.config, tensors, slice(0, WIDTH), slice(0, DEPTH))


@pytest.mark.parametrize("name", [name for name in CASES if "int8" in name])
def test_eight_bits_have_offsets_only_where_zero_points_ask_for_them(name: str) -> None:
    tensors, _ = CASES[name].write(random_weight())
    weight = read(CASES[name].config, tensors, slice(0, WIDTH), slice(0, DEPTH))
    assert isinstance(weight, IntWeight)
    assert weight.bits == 8
    assert (weight.offsets is not None) == ("zero points" in name)


def test_zero_points_that_a_file_leaves_out_are_zero() -> None:
    tensors, want = CASES["compressed-tensors int4 symmetric 64"].write(random_weight())
    config = CASES["compressed-tensors int4 zero points 64"].config
    assert_is(read(config, tensors, slice(0, WIDTH), slice(0, DEPTH)), want)


def test_weights_of_one_kind_are_put_beside_each_other_and_others_stay_apart() -> None:
    plain, whole = torch.randn(3, DEPTH), (slice(0, WIDTH), slice(0, DEPTH))
    made = [(name, *CASES[name].write(random_weight(i))) for i, name in enumerate(
        ["awq 64", "gptq v2 64", "gptq int8", "compressed-tensors fp8 channel", "fp8 tensor"])]  # fmt: skip
    weights = [read(CASES[name].config, tensors, *whole) for name, tensors, _ in made]
    joined = beside([*weights, plain, plain])
    assert [len(w.shape) and w.shape[0] for w in joined] == [2 * WIDTH, WIDTH, 2 * WIDTH, 6]
    want = np.concatenate([want for *_, want in made])
    assert_is(torch.cat([expanded(w, torch.float32) for w in joined[:3]]), want)


def test_weights_whose_inputs_are_in_different_orders_stay_apart() -> None:
    case, other = CASES["gptq act-order 64"], random_weight(3)
    tensors, _ = case.write(random_weight())
    shuffled, _ = case.write(other)
    shuffled["g_idx"] = shuffled["g_idx"].flip(0)
    whole = (slice(0, WIDTH), slice(0, DEPTH))
    first, second = read(case.config, tensors, *whole), read(case.config, shuffled, *whole)
    assert len(beside([first, first])) == 1
    assert len(beside([first, second])) == 2


CT = CASES["compressed-tensors int4 symmetric 64"].config
ONLINE = {
    "config_groups": {
        "u": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "weight_input"}]},
        "v": {"type": "hadamard", "apply": [{"targets": ["re:.*down_proj"], "location": "input"}]},
    }
}


def ct(**weights: Any) -> dict[str, Any]:
    group = CT["config_groups"]["group_0"]
    return CT | {"config_groups": {"group_0": group | {"weights": group["weights"] | weights}}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' .* use one of awq, gptq"),
        ({"quant_method": "awq", "bits": 3}, "AWQ with 3 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "layout 'gemv'"),
        ({"quant_method": "gptq", "bits": 2}, "GPTQ with 2 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "layout 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "layout 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "format": "bitblas"}, "layout 'bitblas'"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down": {"bits": 3}}}, r"3 bits, which '\+:\.\*down' has"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {".*(down": {}}}, r"'\.\*\(down' is no regular expression"),
        ({"quant_method": "gptq", "bits": 4, "group_size": "many"}, "wrong value"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "kind 'e5m2'"),
        ({"quant_method": "gguf", "types": {"layers.0.mlp.up_proj": "IQ2_XS"}}, "up_proj: GGUF type IQ2_XS"),
        ({"quant_method": "compressed-tensors"}, "no config_groups"),
        (CT | {"sparsity_config": {"format": "sparse-24-bitmask"}}, r"sparse weights \(sparse-24-bitmask\)"),
        (CT | {"transform_config": ONLINE}, r"a transform of input \(transform_config\)"),
    ],
)
def test_a_format_that_is_not_supported_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scheme_of(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ct(num_bits=3), f"{NAME}: compressed-tensors int3"),
        (ct(type="float", num_bits=4), "float4 by group"),
        (ct(strategy="tensor"), f"{NAME}: compressed-tensors int4 by tensor as 'pack-quantized' is not supported"),
        (ct(type="float", num_bits=8, strategy="channel"), "float8 by channel as 'pack-quantized'"),
        (CT | {"format": "marlin-24"}, f"{NAME}: .*'marlin-24' is not supported"),
        (
            ct(type="float", num_bits=4, strategy="tensor_group") | {"format": "nvfp4-pack-quantized"},
            f"{NAME}: compressed-tensors float4 by tensor_group as 'nvfp4-pack-quantized' is not supported: use INT4",
        ),
        (ct(type="float", num_bits=4, group_size=32) | {"format": "mxfp4-pack-quantized"}, "'mxfp4-pack-quantized'"),
        (ct(type="float", num_bits=8, group_size=32) | {"format": "mxfp8-quantized"}, "'mxfp8-quantized'"),
        (CT | {"config_groups": {"g": {"targets": ["re:.*down_proj"], "weights": {}}}}, "no target"),
    ],
)
def test_a_product_that_is_not_supported_is_named(config: dict[str, Any], message: str) -> None:
    tensors, _ = CASES["compressed-tensors int4 symmetric 64"].write(random_weight())
    with pytest.raises(ConfigError, match=message):
        read(config, tensors, slice(0, WIDTH), slice(0, DEPTH))


def test_rounding_while_loading_leaves_heads_and_routers_plain() -> None:
    scheme = choose_scheme(None, "fp8")
    assert scheme is not None
    whole = (slice(0, WIDTH), WIDTH, slice(0, DEPTH), DEPTH)
    for name in ("lm_head", "embed_tokens", "layers.0.mlp.gate"):
        assert scheme.stored(Part(name, *whole), {}, CPU) is None
    for name in (NAME, "layers.0.mlp.experts.1.up_proj"):
        assert scheme.stored(Part(name, *whole), {}, CPU) is not None


def test_rows_are_rounded_as_they_are_read_and_no_plain_weight_is_held() -> None:
    """A rank's share has scales of its own, whatever pieces it comes in."""
    scheme = choose_scheme(None, "fp8")
    assert scheme is not None
    rows, columns = slice(8, 40), slice(64, 256)
    stored = scheme.stored(Part("layers.0.mlp.experts.1.up_proj", rows, WIDTH, columns, DEPTH), {}, CPU)
    assert stored is not None
    weight = torch.from_numpy(random_weight()).float()
    target = stored.targets["weight"]
    with WeightCopies(CPU, target.into.nbytes, Log(logging.getLogger("rhizome"), {}), 2, 4 * 1000) as copies:
        copies.add(weight, target.take, target.into, target.write)
        copies.wait()
    rounded, share = stored.read(), weight[rows, columns]
    assert isinstance(rounded, Fp8Weight)
    assert target.into.nbytes == share.numel()
    assert torch.equal(rounded.expand(), fp8_of(share).expand())
    error = rounded.expand() - share
    assert 0 < error.norm() / share.norm() < 0.04


def test_made_up_weights_are_rounded_too() -> None:
    scheme = choose_scheme(None, "fp8")
    assert scheme is not None
    stored = scheme.stored(Part(NAME, slice(0, WIDTH), WIDTH, slice(0, DEPTH), DEPTH), None, CPU)
    assert stored is not None
    load_dummy({f"{NAME}.weight": stored.targets["weight"]})
    assert 0.015 < expanded(stored.read(), torch.float32).std() < 0.025
