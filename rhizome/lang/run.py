"""One run of a program: what its states share, its tasks, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from rhizome.lang.backends.base import Backend
from rhizome.lang.chat_template import ChatTemplate
from rhizome.lang.errors import ProgramCancelled, ProgramError
from rhizome.lang.loops import Signal
from rhizome.lang.recording import RunRecord
from rhizome.lang.report import Report
from rhizome.lang.sampling import SamplingParams

if TYPE_CHECKING:
    from rhizome.lang.executor import Executor

_inside: ContextVar[tuple[object, ...]] = ContextVar("rhizome_inside", default=())
"""Keys of the runs whose functions run in this thread or task. What is sent to another loop takes them along."""


class ProgramRun:
    """Lives from the start of a program to the end of its last operation. Mutated on `loop` only."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        backend: Backend,
        template: ChatTemplate,
        defaults: SamplingParams,
        *,
        stream: bool,
        spec_tokens: int | None,
        record: RunRecord,
    ) -> None:
        self.loop, self.backend, self.template, self.defaults = loop, backend, template, defaults
        self.stream, self.spec_tokens, self.record = stream, spec_tokens, record
        self.report = Report()
        self.executors: list[Executor] = []
        self.done = False
        """The function has returned or raised, and every operation has ended."""
        self.fault: ProgramError | None = None
        """What readers see of an exception of the function."""
        self.ended = Signal()
        self._background: asyncio.Task[None] | None = None
        self._key = object()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cancelled = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The function runs here: in this thread or task, and in tasks that it starts."""
        outer = _inside.get()
        _inside.set((*outer, self._key))
        try:
            yield
        finally:
            _inside.set(outer)

    @property
    def may_grow(self) -> bool:
        """Whether the function may still append while the one who asks waits: never when it asks itself."""
        return self.stream and not self.done and self._key not in _inside.get()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that ends with the run at the latest."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self, fault: BaseException | None = None) -> None:
        """Stop everything that runs or waits, a streamed coroutine too; its variables raise. On the loop.

        Args:
            fault: what the function raised, where that is the reason.
        """
        if self.done or self._cancelled:
            return
        self._cancelled = True
        for task in list(self._tasks):
            task.cancel()
        for executor in list(self.executors):
            executor.abort(ProgramCancelled() if fault is None else _of_function(fault))
        if self._background is not None and self._background is not asyncio.current_task():
            self._background.cancel()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a streamed program's coroutine; what it raises is told to the readers of the state. On the loop."""
        self._background = self.loop.create_task(work)
        self._background.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # told already
        if not self.done:  # cancelled before it started
            self.finish(ProgramCancelled())

    async def settle(self) -> None:
        """Return when every operation has ended. The function appends nothing any more."""
        for executor in self.executors:
            executor.flush()
        for executor in self.executors:
            await executor.drained()
            if executor.guessing is not None:
                executor.guessing.drop()
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    def finish(self, fault: BaseException | None) -> None:
        """The run is over; readers that wait for more learn it."""
        self.fault = None if fault is None else _of_function(fault)
        self.done = True
        self.record.event("end", error=str(fault) if fault else None, report=self.report.as_dict())
        self.ended.fire()
        for executor in self.executors:
            executor.changed.fire()


def _of_function(fault: BaseException) -> ProgramError:
    """What readers see of an exception that the function raised."""
    if isinstance(fault, ProgramError):
        return fault
    cause = ProgramCancelled() if isinstance(fault, asyncio.CancelledError) else fault
    return ProgramError("the program's function", None, (), cause)
