"""A small program that heartbeats like a service. Run by the supervisor's tests as a child process.

Arguments: NATS url, deployment, name, behaviour. Behaviours: `serve` (ready, ends on SIGTERM), `deaf` (ready,
ignores SIGTERM), `crash` (prints a line, exits 3), `usage` (exits 2), `parent` (like serve, with a child of its own).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time

from shared import messages as m
from shared import wire
from shared.bus import NatsBus
from shared.subjects import Subjects


async def serve(url: str, deployment: str, name: str, behaviour: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if behaviour == "deaf" else stop.set)
    if behaviour == "parent":
        grandchild = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")
        print(f"grandchild {grandchild.pid}", flush=True)
    bus = await NatsBus.connect(url, name)
    beat = m.Heartbeat(
        service=name.split("-")[0], name=name, id=f"{name}-{os.getpid()}", state="ready", pid=os.getpid(),
        host=socket.gethostname(), started_s=time.time(),
    )  # fmt: skip
    while not stop.is_set():
        await bus.publish(Subjects(deployment).heartbeat, wire.encode(beat))
        try:
            await asyncio.wait_for(stop.wait(), 0.05)
        except TimeoutError:
            continue
    print(f"{name} stopped", flush=True)
    await bus.close()


if __name__ == "__main__":
    if sys.argv[4] == "crash":
        sys.exit((print("the disk is on fire", flush=True), 3)[1])
    if sys.argv[4] == "usage":
        print("no such flag", flush=True)
        sys.exit(2)
    asyncio.run(serve(*sys.argv[1:5]))
