"""Variables of a program: written once on the program's loop, read from anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from rhizome.lang.errors import ProgramError
from rhizome.lang.loops import Signal, await_on, wait_on
from rhizome.lang.source import Line


class Slot:
    """One assignment of one variable: pending, then a value or an error, for good.

    `demand` is called when somebody waits, so that work that was held back is done. Mutated on the loop only.
    """

    __slots__ = ("_loop", "changed", "demand", "done", "error", "line", "meta", "name", "partial", "value", "wanted")

    def __init__(self, name: str, line: Line | None, loop: asyncio.AbstractEventLoop) -> None:
        self.name, self.line, self._loop = name, line, loop
        self.value: Any = None
        self.meta: dict[str, Any] | None = None
        self.partial = ""
        self.error: ProgramError | None = None
        self.done = False
        self.changed = Signal()
        self.demand: Callable[[], None] | None = None
        self.wanted = False
        """Somebody waits."""

    def grow(self, text: str, meta: dict[str, Any] | None = None) -> None:
        """More of the text of a streamed variable."""
        self.partial += text
        if meta is not None:
            self.meta = meta
        self.changed.fire()

    def resolve(self, value: Any, meta: dict[str, Any] | None = None) -> None:
        self.value = value
        if meta is not None:
            self.meta = meta
        if isinstance(value, str):
            self.partial = value
        self._finish()

    def fail(self, error: ProgramError) -> None:
        self.error = error
        self._finish()

    def _finish(self) -> None:
        assert not self.done, f"variable {self.name!r} is decided twice"
        self.done = True
        self.demand = None
        self.changed.fire()

    async def wait(self) -> Any:
        """The value, on the loop.

        Raises:
            ProgramError: it could not be computed.
        """
        self.wanted = True
        if self.demand is not None:
            self.demand()
        while not self.done:
            await self.changed.wait()
        return self.result()

    def result(self) -> Any:
        """The value of a finished slot."""
        if self.error is not None:
            raise self.error
        return self.value

    def read(self) -> Any:
        """The value, for a thread; blocks."""
        return self.result() if self.done else wait_on(self._loop, self.wait())

    async def read_async(self) -> Any:
        """The value, for a coroutine on any loop."""
        return self.result() if self.done else await await_on(self._loop, self.wait())


class LateSlot(Slot):
    """Stands for a variable that its program has not appended yet: who waits for it waits for that, too."""

    __slots__ = ("_declared",)

    def __init__(
        self,
        name: str,
        line: Line | None,
        loop: asyncio.AbstractEventLoop,
        declared: Callable[[], Awaitable[Slot]],
    ) -> None:
        super().__init__(name, line, loop)
        self._declared = declared

    async def wait(self) -> Any:
        """The value, on the loop.

        Raises:
            ProgramError: it could not be computed.
            UnknownVariable: the program ended without it.
        """
        return await (await self._declared()).wait()
