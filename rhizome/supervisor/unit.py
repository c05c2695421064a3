"""The unit of restart: processes that live and die together.

Most units are one process. The ranks of a tensor-parallel engine are one unit: when one rank dies the others are
ended too (they would wait in a collective for ever) and all start again, with fresh arguments.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rhizome.supervisor.child import Child, LineSink, ProcessSpec, exit_reason
from rhizome.supervisor.restarts import Restarts
from shared.errors import ConfigError


class StartFailed(ConfigError):
    """A unit ended again and again without ever being ready. The message has its last lines of output."""


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """`members()` is asked at every start, so that arguments such as a rendezvous port can be new each time."""

    name: str
    stage: int
    """Units of a lower stage are stopped first."""
    members: Callable[[], Sequence[ProcessSpec]]


@dataclass(frozen=True, slots=True)
class Ending:
    """Processes that ended unasked: the one that went first, why, and all that went with it."""

    first: ProcessSpec
    reason: str
    members: tuple[ProcessSpec, ...]
    at_s: float
    """Unix time."""


class Unit:
    """Runs one `UnitSpec` until it is stopped. Owned by the supervisor's event loop."""

    def __init__(
        self,
        spec: UnitSpec,
        restarts: Restarts,
        sink: LineSink,
        say: Callable[[str], None],
        on_ending: Callable[[Ending], Awaitable[None]],
    ) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self._restarts, self._sink, self._say, self._on_ending = restarts, sink, say, on_ending
        self._children: list[Child] = []
        self._ready_pids: set[int] = set()
        self._ready_since_s: float | None = None
        self._started_s = 0.0
        self._stopping = asyncio.Event()

    @property
    def pids(self) -> set[int]:
        return {child.pid for child in self._children if child.running}

    async def run(self) -> None:
        """Start the processes, and again whenever one ends, until `stop`.

        Raises:
            StartFailed: they cannot be started.
        """
        while not self._stopping.is_set():
            await self._start()
            dead, status = await self._until_one_ends()
            if self._stopping.is_set():
                return
            ready_for_s = None if self._ready_since_s is None else time.monotonic() - self._ready_since_s
            delay_s = self._restarts.delay_after(status, ready_for_s)
            if delay_s is None:
                raise StartFailed(_epitaph(dead, status))
            self._say(f"↻ {self.spec.name}: starting again in {delay_s:g} s")
            await self._sleep_unless_stopped(delay_s)

    async def stop(self, timeout_s: float) -> None:
        """End the processes and start none again; those still there after `timeout_s` are killed."""
        self._stopping.set()
        children = [child for child in self._children if child.running]
        for child, by_itself in zip(
            children, await asyncio.gather(*(child.stop(timeout_s) for child in children)), strict=True
        ):
            if not by_itself:
                self._say(f"! {child.spec.name}: did not stop within {timeout_s:g} s, killed")

    def kill(self) -> None:
        """End the processes now and start none again."""
        self._stopping.set()
        for child in self._children:
            if child.running:
                child.kill()

    def process_ready(self, pid: int) -> None:
        """A heartbeat says that this process is ready."""
        if pid in self._ready_pids:
            return
        child = next(child for child in self._children if child.pid == pid)
        self._ready_pids.add(pid)
        took_s = time.monotonic() - self._started_s
        self._say(f"✓ {child.spec.name:<14} ready in {took_s:.1f} s   pid {pid}")
        if self._ready_pids >= {child.pid for child in self._children}:
            self._ready_since_s = time.monotonic()
            self.ready.set()

    async def _start(self) -> None:
        self.ready.clear()
        self._ready_pids.clear()
        self._ready_since_s = None
        self._started_s = time.monotonic()
        self._children = []
        for spec in self.spec.members():
            self._children.append(await Child.start(spec, self._sink))
        if self._stopping.is_set():  # asked while the processes were being created
            self.kill()

    async def _until_one_ends(self) -> tuple[Child, int]:
        """Wait for the first end, end the others, tell; returns the first one and its exit status."""
        waits = {asyncio.ensure_future(child.wait()): child for child in self._children}
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        first = next(iter(done))
        dead, status, at_s = waits[first], first.result(), time.time()
        if not self._stopping.is_set():
            self.ready.clear()
            for child in self._children:
                child.kill()
            self._say(f"✗ {dead.spec.name}: ended ({exit_reason(status)})")
            members = tuple(child.spec for child in self._children)
            await self._on_ending(Ending(dead.spec, exit_reason(status), members, at_s))
        await asyncio.wait(waits)
        for child in self._children:
            await child.drain_output()
        return dead, status

    async def _sleep_unless_stopped(self, delay_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), delay_s)


def _epitaph(dead: Child, status: int) -> str:
    lines = "\n".join(f"    {line}" for line in dead.tail)
    said = f" Its last lines:\n{lines}" if lines else " It printed nothing."
    return f"{dead.spec.name} cannot start ({exit_reason(status)}).{said}"
