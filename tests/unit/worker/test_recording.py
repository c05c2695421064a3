"""Recordings: a call done again, on what is in its inputs' memory by then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from services.worker.cpu_kernels.jit import notes
from services.worker.cpu_kernels.silu_and_mul import silu_and_mul
from services.worker.recording import NotRecordable, Recording


def gated(x: Tensor) -> Tensor:
    """With a kernel of ours, whose result is memory that torch gave."""
    out = x.new_empty((x.shape[0], x.shape[1] // 2))
    silu_and_mul(x.numpy(), out.numpy())
    return out


WEIGHT, BIAS, ORDER = torch.randn(8, 8), torch.randn(8), torch.randperm(8)
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "a kernel": gated,
    "an operator": lambda x: x @ WEIGHT,
    "in place": lambda x: x.clone().add_(BIAS).mul_(2.0),
    "views": lambda x: x.view(2, 2, 8)[:, 1].T.contiguous()[2:5],
    "parts": lambda x: torch.cat([part * i for i, part in enumerate(x.chunk(2, dim=1))]),
    "all together": lambda x: gated(torch.nn.functional.linear(x.index_select(1, ORDER), WEIGHT, BIAS)).cumsum(1),
    "the input": lambda x: x.mul_(0.5),
}


@pytest.mark.parametrize("name", CALLS)
@torch.inference_mode()
def test_a_replay_computes_anew(name: str) -> None:
    x = torch.randn(4, 8)
    recording = Recording(lambda: CALLS[name](x))
    for _ in range(3):
        x.normal_()
        expected = CALLS[name](x.clone())
        assert torch.equal(recording.replay(), expected)


@torch.inference_mode()
def test_what_it_gives_is_not_written_by_what_comes_between() -> None:
    x = torch.randn(4, 8)
    recording, other = Recording(lambda: gated(x @ WEIGHT)), Recording(lambda: gated(x * 3.0))
    given = recording.replay()
    expected = given.clone()
    other.replay()
    assert torch.equal(given, expected)


@torch.inference_mode()
def test_memory_that_is_given_back_is_used_again() -> None:
    x = torch.randn(16, 1024)

    def chain() -> Tensor:
        y = x
        for _ in range(50):
            y = gated(torch.cat((y + 1.0, y), dim=1))
        return y

    recording = Recording(chain)
    assert recording.nbytes < 8 * x.nbytes
    x.normal_()
    assert torch.equal(recording.replay(), chain())


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x[x > 0],
        lambda x: x * x.sum().item(),
        lambda x: x if bool(x[0, 0] > 0) else -x,
        lambda x: x.sort()[0],
        lambda x: torch.zeros(8).scatter_add_(0, x[0].long().bincount(minlength=8), x[0]),
    ],
)
@torch.inference_mode()
def test_a_call_that_depends_on_values_is_refused(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotRecordable):
        Recording(lambda: call(torch.rand(4, 8)))
    assert notes.take is None


@torch.inference_mode()
def test_after_a_failure_nothing_is_noted_any_more() -> None:
    def fail() -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Recording(fail)
    assert notes.take is None
    out = np.zeros((1, 2), np.float32)
    silu_and_mul(np.ones((1, 4), np.float32), out)
    assert out.all()
