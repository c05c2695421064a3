"""Plans for a single engine, as a scheduler would send them, without one."""

from __future__ import annotations

import itertools

import numpy as np

from services.worker.engine import Engine
from shared.messages.step import RowInit, StepPlan, StepResult

_numbers = itertools.count()


def i32(values: object) -> np.ndarray:
    return np.asarray(values, np.int32)


class Session:
    """A batch of greedy rows of equal length. Each row's pages lie one after the other, rows in random order."""

    def __init__(self, engine: Engine, rows: int, context: int, spare: int) -> None:
        """
        Args:
            context: prompt tokens of a row.
            spare: steps it may then decode.
        """
        self._engine, self._rows, self._context = engine, rows, context
        self._name, self._seq = f"bench-{next(_numbers)}", 0
        self._pages = -(-(context + spare) // engine.spec.page_size)
        assert rows * self._pages <= engine.spec.num_pages
        self._rng = np.random.default_rng(rows)
        self._places = self._rng.permutation(rows)

    def prefill(self, most_tokens: int) -> None:
        """Compute all prompts, whole rows together, up to `most_tokens` tokens a step."""
        together = max(1, most_tokens // self._context)
        for start in range(0, self._rows, together):
            rows = np.arange(start, min(start + together, self._rows))
            for at in range(0, self._context, most_tokens):
                self.extend(rows, at, min(most_tokens, self._context - at))

    def extend(self, rows: np.ndarray, at: int, count: int) -> None:
        """One step: `count` tokens of each of `rows`; the last chunk samples."""
        first, last = at == 0, at + count == self._context
        self._execute(StepPlan(
            self._engine.spec.engine_id, self._name, self._seq,
            new_rows=[RowInit(int(row), temperature=0.0) for row in rows] if first else [],
            page_rows=i32(rows) if first else None,
            page_starts=i32(1 + self._places[rows] * self._pages) if first else None,
            page_lens=i32(np.full(len(rows), self._pages)) if first else None,
            ext_rows=i32(rows), ext_starts=i32(np.full(len(rows), at)), ext_lens=i32(np.full(len(rows), count)),
            ext_tokens=i32(self._rng.integers(0, self._engine.spec.vocab_size, len(rows) * count)),
            ext_sample=np.full(len(rows), last, np.uint8), decode_rows=i32([]),
        ))  # fmt: skip

    def decode(self) -> None:
        """One step of all rows."""
        self._execute(
            StepPlan(self._engine.spec.engine_id, self._name, self._seq, decode_rows=i32(np.arange(self._rows)))
        )

    def _execute(self, plan: StepPlan) -> None:
        result = self._engine.execute(plan)
        assert isinstance(result, StepResult), result
        self._seq += 1
