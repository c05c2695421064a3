"""A minimal scheduler for engine tests: builds plans, allocates pages, keeps what each row generated."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from services.worker.build import build_engine
from services.worker.config import WorkerConfig
from services.worker.engine import Engine
from shared.log import Log
from shared.messages.step import EngineFault, RowInit, StepPlan, StepResult

_sessions = itertools.count(1)


def i32(values: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.array(values, np.int32)


def make_engine(path: Path, **flags: Any) -> Engine:
    """An engine on one thread with a small pool."""
    defaults: dict[str, Any] = {"num_threads": 1, "max_total_tokens": 2048, "max_running_requests": 16}
    log = Log(logging.getLogger("rhizome"), {})
    return build_engine(WorkerConfig(model_path=str(path), **{**defaults, **flags}), "worker-0-test", log)


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A copy of a checkpoint whose tensors went through `change`."""
    shutil.copytree(source, target)
    weights = change(load_file(target / "model.safetensors"))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@dataclass
class Extend:
    """One extend row of a plan."""

    row: int
    tokens: Sequence[int]
    start: int = 0
    sample: bool = True
    lp_start: int | None = None
    next: int = -1


@dataclass
class Driver:
    """One session on an engine."""

    engine: Engine
    session: str = ""
    seq: int = 0
    sent: list[StepPlan] = field(default_factory=list)
    pages_of: dict[int, list[int]] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        self.session = self.session or f"session-{next(_sessions)}"
        # Pages in random order: nothing may depend on a row's pages being neighbours.
        self.free = (self.rng.permutation(self.engine.spec.num_pages) + 1).tolist()

    def plan(
        self,
        extends: Sequence[Extend] = (),
        decode: Sequence[int] | None = (),
        new: Sequence[RowInit] = (),
        shared_pages: dict[int, list[int]] | None = None,
    ) -> StepPlan:
        """A plan with the pages it needs. `shared_pages` are given to new rows first (a cached prefix)."""
        runs: list[tuple[int, int]] = []
        for init in new:
            self.pages_of[init.row] = []
            for page in (shared_pages or {}).get(init.row, []):
                self.pages_of[init.row].append(page)
                runs.append((init.row, page))
        for extend in extends:
            runs += self._grow(extend.row, extend.start + len(extend.tokens))
        return self._message(extends, decode, new, runs)

    def _grow(self, row: int, tokens: int, slack: int = 40) -> list[tuple[int, int]]:
        """Pages for `tokens` and some to come (never more than the context)."""
        spec, runs = self.engine.spec, []
        most = min(tokens + slack, spec.context_length)
        while len(self.pages_of[row]) * spec.page_size < most:
            page = self.free.pop()
            self.pages_of[row].append(page)
            runs.append((row, page))
        return runs

    def _message(
        self,
        extends: Sequence[Extend],
        decode: Sequence[int] | None,
        new: Sequence[RowInit],
        runs: list[tuple[int, int]],
    ) -> StepPlan:
        lp = any(e.lp_start is not None for e in extends)
        out = StepPlan(
            engine_id=self.engine.spec.engine_id, session=self.session, seq=self.seq, new_rows=list(new),
            page_rows=i32([r for r, _ in runs]) if runs else None,
            page_starts=i32([p for _, p in runs]) if runs else None,
            page_lens=i32([1] * len(runs)) if runs else None,
            ext_rows=i32([e.row for e in extends]) if extends else None,
            ext_starts=i32([e.start for e in extends]) if extends else None,
            ext_lens=i32([len(e.tokens) for e in extends]) if extends else None,
            ext_tokens=i32([t for e in extends for t in e.tokens]) if extends else None,
            ext_sample=np.array([e.sample for e in extends], np.uint8) if extends else None,
            ext_lp_starts=i32([-1 if e.lp_start is None else e.lp_start for e in extends]) if lp else None,
            ext_next=i32([e.next for e in extends]) if lp else None,
            decode_rows=None if decode is None else i32(list(decode)),
        )  # fmt: skip
        self.seq += 1
        self.sent.append(out)
        return out

    def run(self, *args: Any, **kwargs: Any) -> StepResult:
        """Build a plan, execute it, insist on a result."""
        result = self.engine.execute(self.plan(*args, **kwargs))
        assert isinstance(result, StepResult), result
        return result

    def fault(self, plan: StepPlan) -> EngineFault:
        """Execute a plan, insist on a fault."""
        result = self.engine.execute(plan)
        assert isinstance(result, EngineFault), result
        return result

    def generate(
        self, prompts: Sequence[Sequence[int]], count: int, chunk: int = 10**9, inits: Sequence[RowInit] | None = None
    ) -> list[list[int]]:
        """Prefill row i with prompts[i] in chunks, one row after the other while earlier ones decode already."""
        inits = inits or [RowInit(i, temperature=0.0) for i in range(len(prompts))]
        out: list[list[int]] = [[] for _ in prompts]
        for i, prompt in enumerate(prompts):
            for at in range(0, len(prompt), chunk):
                piece = prompt[at : at + chunk]
                last = at + chunk >= len(prompt)
                busy = [r for r in range(i) if len(out[r]) < count]
                new = [inits[i]] if at == 0 else []
                result = self.run([Extend(i, piece, at, last)], busy, new)
                if last:
                    out[i].append(int(result.tokens[0]))
                for r, token in zip(busy, result.tokens[int(last) :].tolist(), strict=True):
                    out[r].append(token)
        while busy := [r for r in range(len(prompts)) if len(out[r]) < count]:
            for r, token in zip(busy, self.run(decode=busy).tokens.tolist(), strict=True):
                out[r].append(token)
        return out
