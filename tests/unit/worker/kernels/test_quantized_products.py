"""Quantized weights as GPU kernels compute with them, few tokens and many, against the weights that they mean."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch

from services.worker.kernels import int_config
from services.worker.kernels.fp8_rows import fp8_rows
from services.worker.models import triton_product
from services.worker.models.linear import Linear, WeightBytes
from services.worker.models.ops import LayerOps, TorchOps
from services.worker.models.triton_ops import TritonOps
from services.worker.quantization.stored import Part, Stored
from services.worker.quantization.weights import FP8, Fp8Weight, IntWeight, Weight, fp8_of
from tests.unit.worker.kernels.closeness import assert_close


def int_weight(bits: int, width: int, depth: int, group: int, order: torch.Tensor | None = None) -> IntWeight:
    kind, low, high = (torch.uint8, 0, 16) if bits == 4 else (torch.int8, -128, 128)
    scales = ((torch.rand(width, depth // group) + 0.1) / high).half().float()
    offsets = (-8 * scales).half().float() if bits == 4 else None
    return IntWeight(bits, torch.randint(low, high, (width, depth)).to(kind), scales, offsets, order)


def with_offsets(weight: IntWeight) -> IntWeight:
    return dataclasses.replace(weight, offsets=torch.randn_like(weight.scales))


WEIGHTS: dict[str, Any] = {
    "int4": lambda: int_weight(4, 34, 96, 32),
    "int4, an odd number of outputs": lambda: int_weight(4, 33, 64, 32),
    "int4 in another order": lambda: int_weight(4, 16, 64, 16, torch.randperm(64)),
    "int8": lambda: int_weight(8, 17, 96, 32),
    "int8 with offsets": lambda: with_offsets(int_weight(8, 17, 96, 32)),
    "int8 with offsets, in another order": lambda: with_offsets(int_weight(8, 16, 64, 16, torch.randperm(64))),
    "fp8 by output": lambda: fp8_of(torch.randn(20, 64)),
    "fp8 by group": lambda: Fp8Weight(torch.randn(20, 64).to(FP8), torch.rand(20, 2) + 0.1),
    "fp8 of few inputs": lambda: fp8_of(torch.randn(20, 40)),
}


@pytest.mark.parametrize("tokens", [1, 5, 21])
@pytest.mark.parametrize("make", WEIGHTS.values(), ids=WEIGHTS)
def test_products_are_those_of_the_weights_that_are_meant(
    make: Any, tokens: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int_config, "_MOST_TOKENS", 16)
    weight: Weight = make()
    want = weight.expand().double()
    x, bias = torch.randn(tokens, want.shape[1]), torch.randn(want.shape[0])
    product = TritonOps().product(_on(weight, device), torch.float32)
    for some in (bias, None):
        out = product(x.to(device), None if some is None else some.to(device))
        assert_close(out, x.double() @ want.T + (0 if some is None else some.double()), 5e-4)
    assert product.nbytes < want.numel() * 4


@pytest.mark.parametrize("tokens", [1, 5, 21])
@pytest.mark.parametrize("order", [None, torch.randperm(64)])
def test_gate_and_up_of_4_bits_are_multiplied_and_gated_in_one(
    order: torch.Tensor | None, tokens: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int_config, "_MOST_TOKENS", 16)
    weight = int_weight(4, 36, 64, 32, order)
    want = weight.expand().double()
    x, bias = torch.randn(tokens, 64), torch.randn(36)
    product = TritonOps().gated_product(_on(weight, device), torch.float32)
    assert product is not None
    for some in (bias, None):
        out = product(x.to(device), None if some is None else some.to(device))
        gate, up = (x.double() @ want.T + (0 if some is None else some.double())).chunk(2, dim=1)
        assert_close(out, torch.nn.functional.silu(gate) * up, 5e-4)


@pytest.mark.parametrize("weight", [int_weight(8, 16, 64, 32), fp8_of(torch.randn(16, 64)), torch.randn(16, 64)])
def test_other_weights_have_no_gated_product(weight: Weight) -> None:
    assert TritonOps().gated_product(weight, torch.float32) is None


@pytest.mark.parametrize("tokens", [1, 16, 17, 40])
def test_a_product_with_8_bit_activations_is_within_their_precision(tokens: int, device: torch.device) -> None:
    weight = fp8_of(torch.randn(48, 64))
    x, bias = torch.randn(tokens, 64), torch.randn(48)
    product = triton_product.TritonFp8Product(_on(weight, device))
    for some in (bias, None):
        out = product(x.to(device), None if some is None else some.to(device))
        assert_close(out, x.double() @ weight.expand().double().T + (0 if some is None else some.double()), 6e-2)


@pytest.mark.usefixtures("scaled_products")
def test_a_product_takes_rows_that_are_rounded_already_from_17_tokens_on(device: torch.device) -> None:
    weight, bias = fp8_of(torch.randn(48, 64)), torch.randn(48, device=device)
    linear = _linear([_on(weight, device)], TritonOps(), bias)
    assert [linear.rounds(tokens) for tokens in (1, 16, 17, 40, 5000)] == [False, False, True, True, True]
    x = torch.randn(17, 64, device=device)
    assert torch.equal(linear(fp8_rows(x)), linear(x))


@pytest.mark.usefixtures("scaled_products")
@pytest.mark.parametrize("ops", [TritonOps(), TorchOps()], ids=["triton", "torch"])
@pytest.mark.parametrize(
    "makes",
    [["int4"], ["int8"], ["plain"], ["fp8 by output", "plain of as many inputs"]],
    ids=["int4", "int8", "plain", "partly fp8"],
)
def test_other_products_want_activations_as_they_are(makes: list[str], ops: LayerOps, device: torch.device) -> None:
    plain = {"plain": lambda: torch.randn(20, 96), "plain of as many inputs": lambda: torch.randn(20, 64)}
    weights = [(WEIGHTS | plain)[make]() for make in makes]
    linear = _linear([w.to(device) if isinstance(w, torch.Tensor) else _on(w, device) for w in weights], ops, None)
    assert not any(linear.rounds(tokens) for tokens in (1, 17, 5000))


def test_products_that_no_kernel_multiplies_in_8_bits_want_activations_as_they_are(device: torch.device) -> None:
    for make in ("fp8 by output", "fp8 by group"):
        assert not _linear([_on(WEIGHTS[make](), device)], TritonOps(), None).rounds(5000)


def _linear(weights: list[Weight], ops: LayerOps, bias: torch.Tensor | None) -> Linear:
    """Packed, and as wide as all of the weights."""
    parts = [Part(f"part{i}", slice(0, len_), len_, slice(0, depth), depth)
             for i, (len_, depth) in enumerate(weight.shape for weight in weights)]  # fmt: skip
    stored = [Stored({}, partial(_same, weight)) for weight in weights]
    linear = Linear(parts, stored, bias, ops.product, torch.float32, WeightBytes())
    linear.pack()
    return linear


def _same(weight: Weight) -> Weight:
    return weight


def _on(weight: Any, device: torch.device) -> Any:
    fields = {name: getattr(weight, name) for name in weight.__dataclass_fields__}
    return type(weight)(**{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in fields.items()})
