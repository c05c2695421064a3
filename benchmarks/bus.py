"""Time and CPU cost of messages through the bus, between two processes over a real NATS server.

One way: the message carries its time of sending; both processes read the same monotonic clock. Rate: as fast as the
publisher can while the receiver keeps up with all of it. On asyncio's own loop and on uvloop.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import struct
import subprocess
import sys
import time
from typing import Any

import orjson
import psutil
import uvloop

from benchmarks.load import spread
from benchmarks.processes import CpuMeter
from benchmarks.report import Report
from rhizome.nats_server import EmbeddedNats
from shared.bus import NatsBus
from shared.errors import Unavailable

ECHO, SINK, COLLECT = "bench.echo", "bench.sink", "bench.collect"
MOST_BYTES_IN_FLIGHT = 64 * 1024 * 1024
_STAMP = struct.Struct("<q")
RUNNERS = {"asyncio": asyncio.run, "uvloop": uvloop.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bus", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 4096, 65536], help="bytes per message")
    parser.add_argument("--round-trips", type=int, default=2000, help="round trips per size, one at a time")
    parser.add_argument("--messages", type=int, default=30_000, help="messages per size at full rate")
    parser.add_argument("--loops", nargs="+", choices=RUNNERS, default=list(RUNNERS), help="event loops")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--peer", help=argparse.SUPPRESS)  # run as the second process, on this NATS server
    args = parser.parse_args()
    if args.peer:
        RUNNERS[args.loops[0]](peer(args.peer))
        return
    del args.peer
    if args.quick:
        args.round_trips, args.messages = args.round_trips // 10, args.messages // 10
    report = Report("bus", args)
    rows: list[dict[str, Any]] = []
    with EmbeddedNats() as nats:
        for loop in args.loops:
            child = subprocess.Popen([sys.executable, "-m", "benchmarks.bus", "--peer", nats.url, "--loops", loop])
            try:
                processes = {"peer": psutil.Process(child.pid), "server": psutil.Process(nats.pid)}
                rows += RUNNERS[loop](measure(nats.url, loop, processes, args))
            finally:
                child.terminate()
                child.wait()
    show(report, rows)
    report.finish({"rows": rows})


async def peer(url: str) -> None:
    """The second process: answers on ECHO, takes in SINK, tells on COLLECT what arrived."""
    bus = await NatsBus.connect(url, "peer")
    delays_us: list[float] = []
    last_ns = 0

    async def echo(data: bytes, reply: str) -> None:
        await bus.publish(reply, data)

    async def sink(data: bytes, _: str) -> None:
        nonlocal last_ns
        last_ns = time.monotonic_ns()
        delays_us.append((last_ns - _STAMP.unpack_from(data)[0]) / 1e3)

    async def collect(_: bytes, reply: str) -> None:
        arrived = orjson.dumps({"delays_us": delays_us, "last_ns": last_ns})
        delays_us.clear()
        await bus.publish(reply, arrived)

    await bus.subscribe(ECHO, echo)
    await bus.subscribe(SINK, sink)
    await bus.subscribe(COLLECT, collect)
    await bus.flush()
    await asyncio.Event().wait()


async def measure(
    url: str, loop: str, processes: dict[str, psutil.Process], args: argparse.Namespace
) -> list[dict[str, Any]]:
    bus = await NatsBus.connect(url, "driver")
    await until_up(bus)
    rows = []
    meter = CpuMeter({"driver": psutil.Process(), **processes})
    for size in args.sizes:
        await round_trips(bus, size, args.round_trips // 10, meter)  # warm up
        there_and_back = await round_trips(bus, size, args.round_trips, meter)
        alone = await one_way(bus, size, args.round_trips)
        rate = await full_rate(bus, size, min(args.messages, MOST_BYTES_IN_FLIGHT // size), meter)
        rows.append({"loop": loop, "bytes": size, "round_trip": there_and_back, "one_way_us": alone, "full_rate": rate})
    await bus.close()
    return rows


async def until_up(bus: NatsBus) -> None:
    for _ in itertools.repeat(None, 200):
        try:
            await bus.request(COLLECT, b"", 5)
            return
        except Unavailable:
            await asyncio.sleep(0.05)
    raise Unavailable("the second process did not come up")


async def round_trips(bus: NatsBus, size: int, count: int, meter: CpuMeter) -> dict[str, Any]:
    """One request at a time; CPU microseconds per round trip and process."""
    payload, times_us = bytes(size), []
    meter.start()
    for _ in range(count):
        begin_ns = time.monotonic_ns()
        await bus.request(ECHO, payload, 10)
        times_us.append((time.monotonic_ns() - begin_ns) / 1e3)
    cpu = meter.read()
    return {"us": spread(times_us), "cpu_us": {name: round(s / count * 1e6, 1) for name, s in cpu.items()}}


async def one_way(bus: NatsBus, size: int, count: int) -> dict[str, float]:
    """Microseconds from publish to handler, one message at a time."""
    padding = bytes(size - _STAMP.size)
    for _ in range(count):
        await bus.publish(SINK, _STAMP.pack(time.monotonic_ns()) + padding)
        await bus.flush()
    return spread((await collect(bus))["delays_us"])


async def full_rate(bus: NatsBus, size: int, count: int, meter: CpuMeter) -> dict[str, Any]:
    """Messages a second and CPU microseconds per message when the publisher never waits."""
    padding = bytes(size - _STAMP.size)
    meter.start()
    begin_ns = time.monotonic_ns()
    for i in range(count):
        await bus.publish(SINK, _STAMP.pack(begin_ns) + padding)
        if i % 64 == 63:
            await asyncio.sleep(0)  # lets the client write what it holds
    await bus.flush()
    received, last_ns = 0, begin_ns
    while received < count:
        answer = await collect(bus)
        received += len(answer["delays_us"])
        last_ns = max(last_ns, answer["last_ns"])
    cpu = meter.read()
    per_s = count / (last_ns - begin_ns) * 1e9
    return {
        "messages": count,
        "messages_per_s": round(per_s),
        "mb_per_s": round(per_s * size / 1e6, 1),
        "cpu_us": {name: round(s / count * 1e6, 2) for name, s in cpu.items()},
    }


async def collect(bus: NatsBus) -> dict[str, Any]:
    """What the second process has received since the last call."""
    answer: dict[str, Any] = orjson.loads(await bus.request(COLLECT, b"", 60))
    return answer


def show(report: Report, rows: list[dict[str, Any]]) -> None:
    report.table(
        "one message at a time, microseconds",
        ["loop", "bytes", "one way p50", "p99", "round trip p50", "p99", "CPU driver", "CPU peer", "CPU server"],
        [
            [r["loop"], r["bytes"], r["one_way_us"]["p50"], r["one_way_us"]["p99"], r["round_trip"]["us"]["p50"],
             r["round_trip"]["us"]["p99"], *r["round_trip"]["cpu_us"].values()]
            for r in rows
        ],
    )  # fmt: skip
    report.table(
        "full rate, CPU in microseconds per message",
        ["loop", "bytes", "messages/s", "MB/s", "CPU publisher", "CPU subscriber", "CPU server"],
        [
            [r["loop"], r["bytes"], r["full_rate"]["messages_per_s"], r["full_rate"]["mb_per_s"],
             *r["full_rate"]["cpu_us"].values()]
            for r in rows
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
