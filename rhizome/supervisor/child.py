"""One running process: started tied to the supervisor, in a session of its own, its output read line by line.

A session of its own keeps the terminal's Ctrl-C away from it, so that the supervisor decides the order of the end,
and makes it a process group that can be killed with everything it started.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rhizome.supervisor import tether

TAIL_LINES = 40
_CHUNK_BYTES = 64 * 1024
_MAX_LINE_CHARS = 16 * 1024

LineSink = Callable[[str, str], None]
"""Takes (process name, one line of its output)."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run. `name` is unique in the deployment; `service` is what it reports itself as."""

    name: str
    service: str
    argv: tuple[str, ...]
    env: dict[str, str]
    """The whole environment of the process."""


class Child:
    """A process from its start to its end; owned by one unit."""

    def __init__(self, spec: ProcessSpec, process: Process, output: asyncio.StreamReader, sink: LineSink) -> None:
        self.spec = spec
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._process = process
        self._sink = sink
        self._reading = asyncio.get_running_loop().create_task(self._read(output))

    @classmethod
    async def start(cls, spec: ProcessSpec, sink: LineSink) -> Child:
        """Start the process. Call from the main thread (see `tether`)."""
        # A pipe of our own: with asyncio's, `Process.wait` returns only when grandchildren have closed it too.
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *tether.command(list(spec.argv)), env=spec.env, stdin=DEVNULL, stdout=write_end, stderr=STDOUT,
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(write_end)
        output = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read_end, "rb")
        )
        return cls(spec, process, output, sink)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Exit status, negative for a signal."""
        return await self._process.wait()

    async def stop(self, timeout_s: float) -> bool:
        """Ask it to end and wait; kill it after `timeout_s`. True if it ended by itself."""
        if self.running:
            with suppress(ProcessLookupError):
                self._process.terminate()
        try:
            await asyncio.wait_for(self.wait(), timeout_s)
        except TimeoutError:
            self.kill()
            await self.wait()
            return False
        self.kill()  # whatever it started and left behind
        return True

    def kill(self) -> None:
        """SIGKILL to the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def drain_output(self) -> None:
        """Return when everything it wrote before its end was passed on."""
        with suppress(TimeoutError):  # a grandchild may hold the pipe open
            await asyncio.wait_for(asyncio.shield(self._reading), 1.0)

    async def _read(self, output: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await output.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _MAX_LINE_CHARS:  # no newline in sight: pass it on as it is
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._pass_on(line)
        if rest:
            self._pass_on(rest)

    def _pass_on(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        self.tail.append(text)
        self._sink(self.spec.name, text)


def exit_reason(status: int) -> str:
    """`killed by SIGKILL`, `exit status 3`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
