"""Grammars by their spec: cached, compiled once however many requests ask, never on the event loop.

Text that a user wrote is first tried in a process of its own (`sandbox`), under limits on time and memory; what passed
is built here in a thread. Two lanes keep a slow grammar from delaying quick ones: the first process takes quick work
only.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from services.scheduler.grammar import llguidance_backend, xgrammar_backend
from services.scheduler.grammar.automaton import automaton_of
from services.scheduler.grammar.sandbox import CompileTimeout, Sandbox
from services.scheduler.grammar.state import Grammar
from services.scheduler.grammar.vocabulary import Vocabulary
from shared.errors import ConfigError, InvalidRequest, Overloaded, RhizomeError
from shared.grammar import GrammarSpec

Backend = Literal["auto", "xgrammar", "llguidance"]
QUICK_SOURCE_CHARS = 16_384
QUICK_TIMEOUT_S = 1.0
"""A quick grammar that is not done by then moves to the slow lane, and its process starts again."""
REMEMBERED_FAULTS = 1024
_Key = tuple[str, str, int]


class CompileLane(Protocol):
    """Compiles one grammar at a time, see `sandbox.Sandbox`."""

    async def compile(self, spec: GrammarSpec, backend: str, timeout_s: float) -> bytes: ...
    async def close(self) -> None: ...


@dataclass(eq=False)
class _Job:
    """One compile, awaited by every request with its spec."""

    spec: GrammarSpec
    done: asyncio.Future[Grammar] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Compiler:
    """Lives as long as the scheduler; used from its event loop only."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        backend: Backend = "auto",
        timeout_s: float = 10.0,
        memory_bytes: int = 1 << 30,
        cache_bytes: int = 256 << 20,
        workers: int = 2,
        max_waiting: int = 256,
        new_sandbox: Callable[[Vocabulary, int], CompileLane] = Sandbox,
    ) -> None:
        """Args:
            backend: auto is llguidance, whose masks are bounded work.
            timeout_s: longest time to compile one grammar.
            memory_bytes: most memory that compiling may take in its process, on top of the vocabulary.
            cache_bytes: compiled grammars kept for the next request (estimated).
            workers: processes; started at the first grammar.
            max_waiting: most different grammars that wait or compile.
            new_sandbox: makes what compiles, given the vocabulary and `memory_bytes`.

        Raises:
            ConfigError: the backend's package is not installed.
        """
        self.backend = "llguidance" if backend == "auto" else backend
        if importlib.util.find_spec(self.backend) is None:
            raise ConfigError(
                f"--grammar-backend {backend} needs the package {self.backend}: pip install {self.backend}"
            )
        self._vocabulary = vocabulary
        self._timeout_s = timeout_s
        self._cache = _Cache(cache_bytes)
        self._faults: OrderedDict[_Key, InvalidRequest] = OrderedDict()
        self._jobs: dict[_Key, _Job] = {}
        self._max_waiting = max_waiting
        self._quick: deque[_Job] = deque()
        self._slow: deque[_Job] = deque()
        self._work = asyncio.Condition()
        self._sandboxes = [new_sandbox(vocabulary, memory_bytes) for _ in range(max(1, workers))]
        self._busy = [False] * len(self._sandboxes)
        self._tasks: list[asyncio.Task[None]] = []
        self._engine: asyncio.Future[llguidance_backend.Engine | xgrammar_backend.Engine] | None = None

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """The grammar of a spec; equal specs share one compile, and a cancelled caller leaves it to the others.

        Raises:
            InvalidRequest: it is wrong, cannot be enforced, or takes too long; `param` is the kind.
            Overloaded: too many grammars wait.
        """
        key = (spec.kind, spec.source, spec.max_whitespace)
        if (known := self._cache.get(key)) is not None:
            return known
        spec.check()
        if (fault := self._faults.get(key)) is not None:
            raise type(fault)(fault.message, param=fault.param)
        job = self._jobs.get(key)
        if job is None:
            if len(self._jobs) >= self._max_waiting:
                raise Overloaded(f"{len(self._jobs):,} grammars wait to be compiled: try again")
            job = self._jobs[key] = _Job(spec)
            job.done.add_done_callback(lambda done: self._finish(key, done))
            await self._enqueue(job)
        return await asyncio.shield(job.done)

    async def close(self) -> None:
        """End the processes; requests that still wait are cancelled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for job in list(self._jobs.values()):
            job.done.cancel()
        for sandbox in self._sandboxes:
            await sandbox.close()

    def _finish(self, key: _Key, done: asyncio.Future[Grammar]) -> None:
        del self._jobs[key]
        if done.cancelled():
            return
        fault = done.exception()
        if fault is None:
            self._cache.put(key, done.result())
        elif isinstance(fault, InvalidRequest) and not isinstance(fault, CompileTimeout):
            self._faults[key] = fault
            if len(self._faults) > REMEMBERED_FAULTS:
                self._faults.popitem(last=False)

    async def _enqueue(self, job: _Job) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._run(i)) for i in range(len(self._sandboxes))]
        quick = self.backend == "llguidance" and len(job.spec.source) <= QUICK_SOURCE_CHARS
        async with self._work:
            (self._quick if quick else self._slow).append(job)
            self._work.notify_all()

    async def _run(self, number: int) -> None:
        """One process's lane. The first one takes slow work only when it is alone."""
        while True:
            async with self._work:
                await self._work.wait_for(lambda: self._lane(number))
                lane = self._lane(number)
                assert lane
                job = lane.popleft()
                self._busy[number] = True
                self._work.notify_all()
            try:
                await self._do(job, self._sandboxes[number], quick=lane is self._quick)
            finally:
                self._busy[number] = False

    def _lane(self, number: int) -> deque[_Job] | None:
        """Where a process takes its next job from. Others help with quick work when the first one has some."""
        if number == 0 and len(self._sandboxes) > 1:
            return self._quick or None
        return self._slow or (self._quick if number == 0 or self._busy[0] else None) or None

    async def _do(self, job: _Job, sandbox: CompileLane, *, quick: bool) -> None:
        hurry = quick and len(self._sandboxes) > 1
        try:
            data = await sandbox.compile(
                job.spec, self.backend, min(self._timeout_s, QUICK_TIMEOUT_S) if hurry else self._timeout_s
            )
            grammar = await self._build(job.spec, data)
        except CompileTimeout as fault:
            if hurry and self._timeout_s > QUICK_TIMEOUT_S:
                async with self._work:
                    self._slow.append(job)
                    self._work.notify_all()
            elif not job.done.done():
                job.done.set_exception(fault)
        except RhizomeError as fault:
            if not job.done.done():
                job.done.set_exception(fault)
        else:
            if not job.done.done():
                job.done.set_result(grammar)

    async def _build(self, spec: GrammarSpec, data: bytes) -> Grammar:
        if self._engine is None:
            kind = xgrammar_backend.Engine if self.backend == "xgrammar" else llguidance_backend.Engine
            self._engine = asyncio.ensure_future(asyncio.to_thread(kind, self._vocabulary))
        engine = await asyncio.shield(self._engine)
        if isinstance(engine, xgrammar_backend.Engine):
            return await asyncio.to_thread(engine.load, data)
        return await asyncio.to_thread(lambda: engine.build(data.decode(), spec.kind, automaton_of(spec)))


class _Cache:
    """Grammars by their spec, the least recently used ones dropped when the sum of their sizes is over the limit."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._grammars: OrderedDict[_Key, Grammar] = OrderedDict()

    def get(self, key: _Key) -> Grammar | None:
        if key in self._grammars:
            self._grammars.move_to_end(key)
        return self._grammars.get(key)

    def put(self, key: _Key, grammar: Grammar) -> None:
        self._grammars[key] = grammar
        self._held += grammar.size_bytes
        while self._held > self._limit and len(self._grammars) > 1:
            _, dropped = self._grammars.popitem(last=False)
            self._held -= dropped.size_bytes
