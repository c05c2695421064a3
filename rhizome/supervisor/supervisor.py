"""All units of a deployment on this machine: who is ready, who died, in which order to stop.

Readiness is what a process says of itself: the first `ready` heartbeat with its process id. A process that dies
is announced with a `Goodbye` in its name, so that nobody waits for the liveness timeout.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable

from rhizome.supervisor.child import LineSink
from rhizome.supervisor.restarts import RestartPolicy, Restarts
from rhizome.supervisor.unit import Ending, StartFailed, Unit, UnitSpec
from shared import messages as m
from shared import wire
from shared.bus import Bus
from shared.errors import Unavailable, WireError
from shared.subjects import Subjects

_PATIENCE_LINE_S = 10.0


class Supervisor:
    """Lives in the launcher's event loop. `start`, then `wait_ready` and `wait_failed`, then `stop`."""

    def __init__(
        self,
        units: Iterable[UnitSpec],
        bus: Bus,
        subjects: Subjects,
        say: Callable[[str], None],
        sink: LineSink,
        policy: RestartPolicy | None = None,
        stop_timeout_s: float = 15.0,
    ) -> None:
        self._bus, self._subjects, self._say = bus, subjects, say
        self._host = socket.gethostname()
        self._stop_timeout_s = stop_timeout_s
        self._units = [
            Unit(spec, Restarts(policy or RestartPolicy()), sink, say, self._announce_ending) for spec in units
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen to heartbeats and start every unit; returns before they are ready."""
        await self._bus.subscribe(self._subjects.heartbeat, self._heard)
        await self._bus.flush()
        self._tasks = [asyncio.get_running_loop().create_task(unit.run()) for unit in self._units]

    async def wait_ready(self) -> None:
        """Return when every unit is ready; says from time to time who is not."""
        began_s = time.monotonic()
        while waiting := [unit for unit in self._units if not unit.ready.is_set()]:
            try:
                await asyncio.wait_for(waiting[0].ready.wait(), _PATIENCE_LINE_S)
            except TimeoutError:
                names = ", ".join(unit.spec.name for unit in waiting)
                self._say(f"… still starting after {time.monotonic() - began_s:.0f} s: {names}")

    async def wait_failed(self) -> StartFailed:
        """Return the reason as soon as a unit has given up; never returns while none has."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            fault = task.exception()
            if isinstance(fault, StartFailed):
                return fault
            if fault is not None:
                raise fault
        await asyncio.Event().wait()  # all were stopped in order
        raise AssertionError("unreachable")

    async def stop(self) -> None:
        """Stop stage after stage, each within its bound."""
        for stage in sorted({unit.spec.stage for unit in self._units}):
            group = [unit for unit in self._units if unit.spec.stage == stage]
            await asyncio.gather(*(unit.stop(self._stop_timeout_s) for unit in group))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self) -> None:
        """End everything now."""
        for unit in self._units:
            unit.kill()

    async def _heard(self, data: bytes, _: str) -> None:
        try:
            beat = wire.decode(m.Heartbeat, data)
        except WireError:
            return  # of another version; not our business
        if beat.state != "ready" or beat.host != self._host:
            return
        for unit in self._units:
            if beat.pid in unit.pids:
                unit.process_ready(beat.pid)

    async def _announce_ending(self, ending: Ending) -> None:
        for spec in ending.members:
            reason = ending.reason if spec == ending.first else f"ended with {ending.first.name}"
            bye = m.Goodbye(service=spec.service, name=spec.name, id="", at_s=ending.at_s, reason=reason)
            try:
                await self._bus.publish(self._subjects.goodbye, wire.encode(bye))
            except Unavailable:
                self._say(f"! {spec.name}: its end could not be announced, the bus is down")
