"""Matrix products on CPUs where weights can be reordered, and where they cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from services.worker.models import dense_product
from services.worker.models.dense_product import DenseProduct


def test_a_packed_product_is_the_plain_one() -> None:
    x, weight, bias = torch.randn(5, 48), torch.randn(33, 48), torch.randn(33)
    torch.testing.assert_close(DenseProduct(weight)(x, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("fault", [AttributeError, RuntimeError, NotImplementedError])
def test_a_torch_that_cannot_reorder_weights_computes_plainly(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise fault("not in this build")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    monkeypatch.setattr(dense_product, "can_pack", dense_product.can_pack.__wrapped__)
    assert not dense_product.can_pack(torch.float32)
    assert dense_product.min_rows(torch.device("cpu"), torch.float32) == 1
    x, weight = torch.randn(5, 48), torch.randn(33, 48)
    assert torch.equal(DenseProduct(weight)(x, None), F.linear(x, weight))


def test_a_torch_that_reorders_weights_wrongly_computes_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, w, *_: torch.zeros(len(x), 32))
    assert not dense_product.can_pack.__wrapped__(torch.float32)
