"""Programs of fixed size: what they read when they are captured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from services.worker.attention.device_plans import MixedPlan
from services.worker.mixed_program import MixedProgram
from services.worker.plan_check import Work
from services.worker.rows import Rows

NONE = np.zeros(0, np.int64)


class Noting:
    """A model without layers, and an attention that notes the bounds of the queries it would read."""

    def __init__(self) -> None:
        self.queries: list[tuple[int, int]] = []
        """Tokens of the program, and of the plan's rows."""

    def attend_mixed(self, plan: MixedPlan, slots: torch.Tensor) -> Any:
        self.queries.append((len(slots), max(int(plan.ext_cu_q.max()), int(plan.decode_cu_q.max()))))

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, attend: Any) -> torch.Tensor:
        return ids


def test_no_program_is_captured_over_the_rows_of_a_larger_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, noting = Rows(4, 40, 16, torch.device("cpu")), Noting()
    rows.append_pages(np.array([1]), np.array([1]), np.array([30]))
    program = MixedProgram(noting, noting, rows, 1000)  # type: ignore[arg-type]
    work = Work(
        new_rows=[], page_rows=NONE, page_starts=NONE, page_lens=NONE, ext_rows=np.array([1]), ext_starts=np.array([0]),
        ext_lens=np.array([450]), ext_tokens=np.zeros(450, np.int64), ext_sample=np.array([1]), ext_lp_starts=NONE,
        ext_next=NONE, ext_forced=np.array([0]), decode_rows=NONE, masked_rows=NONE,
    )  # fmt: skip
    program.run(program.load(work))
    assert noting.queries == [(512, 450)]
    noting.queries.clear()
    monkeypatch.setattr(program._graphs, "capture", lambda sizes: [program._graphs.run(size) for size in sizes])
    program.capture()
    assert [size for size, _ in noting.queries][:2] == [64, 128]
    assert all(queries <= size for size, queries in noting.queries)
