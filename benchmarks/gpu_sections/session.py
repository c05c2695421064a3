"""Plans for a single engine, as a scheduler would send them, without one."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import numpy as np
import torch

from services.worker.download import Mark, mark, wait
from services.worker.engine import Engine
from services.worker.launched import Launched
from shared.messages.step import RowInit, StepPlan

_numbers = itertools.count()


def i32(values: object) -> np.ndarray:
    return np.asarray(values, np.int32)


class Session:
    """A batch of greedy rows of equal length. Each row's own pages lie one after the other, rows in random order."""

    def __init__(self, engine: Engine, rows: int, context: int, spare: int, *, shared: int = 0, each: int = 1) -> None:
        """
        Args:
            context: prompt tokens of a row.
            spare: steps it may then decode.
            shared: of these, tokens that `each` neighbouring rows have in common.
        """
        self._engine, self._rows, self._context = engine, rows, context
        self._name, self._seq = f"bench-{next(_numbers)}", 0
        self._shared, self._each = shared, each
        self._prefix_pages = shared // engine.spec.page_size
        self._pages = -(-(context + spare) // engine.spec.page_size) - self._prefix_pages
        self._own_from = 1 + -(-rows // each) * self._prefix_pages
        assert self._own_from + rows * self._pages <= engine.spec.num_pages + 1
        self._rng = np.random.default_rng(rows)
        self._places = self._rng.permutation(rows)

    def prefill(self, most_tokens: int) -> None:
        """Compute all prompts, whole rows together, up to `most_tokens` tokens a step; shared ones once."""
        everybody = np.arange(self._rows)
        if self._shared:
            self._prefill(everybody[:: self._each], 0, self._shared, most_tokens)
        self._prefill(everybody, self._shared, self._context, most_tokens)

    def _prefill(self, rows: np.ndarray, begin: int, end: int, most_tokens: int) -> None:
        together = max(1, most_tokens // (end - begin))
        for start in range(0, len(rows), together):
            for at in range(begin, end, most_tokens):
                self.extend(rows[start : start + together], at, min(most_tokens, end - at))

    def extend(self, rows: np.ndarray, at: int, count: int, decode: np.ndarray | None = None) -> None:
        """One step: `count` tokens of each of `rows`, where the last chunk samples, beside the rows `decode`."""
        first, last = at in (0, self._shared), at + count == self._context
        starts = np.stack(
            (1 + rows // self._each * self._prefix_pages, self._own_from + self._places[rows] * self._pages)
        )
        lens = np.stack((np.full(len(rows), self._prefix_pages), np.full(len(rows), self._pages)))
        runs = np.flatnonzero(lens.T.ravel())
        self._launch(StepPlan(
            self._engine.spec.engine_id, self._name, self._seq,
            new_rows=[RowInit(int(row), temperature=0.0) for row in rows] if first else [],
            page_rows=i32(np.repeat(rows, 2)[runs]) if first else None,
            page_starts=i32(starts.T.ravel()[runs]) if first else None,
            page_lens=i32(lens.T.ravel()[runs]) if first else None,
            ext_rows=i32(rows), ext_starts=i32(np.full(len(rows), at)), ext_lens=i32(np.full(len(rows), count)),
            ext_tokens=i32(self._rng.integers(0, self._engine.spec.vocab_size, len(rows) * count)),
            ext_sample=np.full(len(rows), last, np.uint8), decode_rows=i32([] if decode is None else decode),
        )).finish()  # fmt: skip

    def decode(self, steps: int = 1) -> list[float]:
        """Steps of all rows, each launched before the one before is finished; when each was finished, in seconds."""
        finished_s, before = [], None
        for _ in range(steps):
            launched = self._launch(
                StepPlan(self._engine.spec.engine_id, self._name, self._seq, decode_rows=i32(np.arange(self._rows)))
            )
            if before is not None:
                before.finish()
                finished_s.append(time.perf_counter())
            before = launched
        if before is not None:
            before.finish()
        return [*finished_s, time.perf_counter()]

    def _launch(self, plan: StepPlan) -> Launched | _Followed:
        launched = self._engine.launch(plan)
        self._seq += 1
        if not self._engine.is_first:
            assert launched is None, launched
            return _Followed(mark(torch.device("cuda", torch.cuda.current_device())))
        assert isinstance(launched, Launched), launched
        return launched


@dataclass(frozen=True, slots=True)
class _Followed:
    """A step on a rank that answers nobody."""

    done: Mark

    def finish(self) -> None:
        """Wait for the device, as the first rank does."""
        wait(self.done)
