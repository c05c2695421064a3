"""`python -m rhizome.launch_server`: the whole system with one command.

Checks the flags, gets the model, starts NATS and every service under supervision, shows the URL when all are ready,
and stops everything in order on Ctrl-C or SIGTERM (at once on the second one). Exit status: 0 after an orderly
stop, 1 when a service cannot start, 2 when a flag is wrong, 130 when interrupted before anything ran.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from rhizome import console
from rhizome.launch_config import Launch, parse

READY_POLL_S = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; returns the exit status."""
    launch = parse(argv)
    # Imported after the flags were parsed: --help and a wrong flag answer at once.
    from rhizome.preflight import check_machine, check_model
    from shared.errors import ConfigError

    try:
        check_machine(launch)
        launch = with_model(with_port(launch))
        check_model(launch, Path(launch.tokenizer.model_path))
        return asyncio.run(serve(launch))
    except ConfigError as fault:
        print(f"launch_server: {fault.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def with_port(launch: Launch) -> Launch:
    """`--port 0`: choose the gateway's port here, so that it can be shown."""
    from rhizome.topology import free_port

    if launch.gateway.port:
        return launch
    return dataclasses.replace(launch, gateway=dataclasses.replace(launch.gateway, port=free_port()))


def with_model(launch: Launch) -> Launch:
    """Find or fetch the model and tell every service its directory and its name.

    Raises:
        ConfigError: it cannot be had.
    """
    from rhizome.models import resolve_model
    from shared.media_config import load_media_config

    asked = launch.own.model_path
    folder = resolve_model(asked, console.say)
    name = launch.tokenizer.served_model_name or (folder.name if Path(asked).expanduser().is_dir() else asked)
    takes_media = load_media_config(folder) is not None
    dtype = launch.worker.dtype if launch.vision.vision_dtype == "auto" else launch.vision.vision_dtype
    return dataclasses.replace(
        launch,
        own=dataclasses.replace(launch.own, num_vision=launch.own.num_vision if takes_media else 0),
        vision=dataclasses.replace(launch.vision, model_path=str(folder), vision_dtype=dtype),
        tokenizer=dataclasses.replace(launch.tokenizer, model_path=str(folder), served_model_name=name),
        scheduler=dataclasses.replace(launch.scheduler, tokenizer_path=str(folder)),
        worker=dataclasses.replace(launch.worker, model_path=str(folder), served_model_name=name),
    )


async def serve(launch: Launch) -> int:
    """Start everything, wait, stop everything; returns the exit status."""
    from rhizome.supervisor import Supervisor
    from rhizome.topology import units_of
    from shared.bus import NatsBus
    from shared.subjects import Subjects

    async with AsyncExitStack() as stack:
        nats_url = launch.own.nats_url or await _start_nats(stack, launch.own.nats_port)
        bus = await NatsBus.connect(nats_url, "launcher")
        stack.push_async_callback(bus.close)
        sink = console.to_stderr
        if launch.own.log_dir:
            files = console.LogFiles(Path(launch.own.log_dir))
            stack.callback(files.close)
            sink = files.write
        common = launch.gateway.common
        supervisor = Supervisor(
            units_of(launch, nats_url), bus, Subjects(common.deployment), console.say, sink,
            stop_timeout_s=common.drain_timeout_s + 5.0,
        )  # fmt: skip
        asked_to_stop = _stop_on_signals(supervisor.kill)
        if launch.own.num_vision:
            _share_memory(stack, launch, nats_url)
        await supervisor.start()
        welcome = asyncio.create_task(_welcome(launch, nats_url, supervisor.wait_ready))
        failed = asyncio.create_task(supervisor.wait_failed())
        stopping = asyncio.create_task(asked_to_stop.wait())
        try:
            await asyncio.wait({failed, stopping}, return_when=asyncio.FIRST_COMPLETED)
            fault = failed.result() if failed.done() else None
            console.say("\nstopping" if fault is None else f"\n{fault.message}")
        finally:
            for task in (welcome, failed, stopping):
                task.cancel()
            await supervisor.stop()
        with suppress(asyncio.CancelledError):
            await welcome
        return 0 if fault is None else 1


async def _start_nats(stack: AsyncExitStack, port: int) -> str:
    from rhizome.nats_server import EmbeddedNats

    server = EmbeddedNats(port or -1)
    stack.callback(server.close)
    url = await server.start_async()
    console.say(f"✓ nats-server    ready at {url}   pid {server.pid}")
    watch = asyncio.create_task(server.keep_running(console.say))
    stack.callback(watch.cancel)
    return url


def _share_memory(stack: AsyncExitStack, launch: Launch, nats_url: str) -> None:
    """Hold the deployment's folder in shared memory, so that at the end what killed processes left is removed."""
    from shared.held_folder import HeldFolder, deployment_folder, memory_root, remove_abandoned, remove_all_abandoned

    deployment = launch.gateway.common.deployment
    root = memory_root(launch.vision.shared_memory_dir)
    remove_all_abandoned(root, deployment)
    memory = HeldFolder(deployment_folder(root, deployment, nats_url), alone=False)

    def clean() -> None:
        for i in range(launch.own.num_vision):
            remove_abandoned(memory.path / f"vision-{i}", after_s=0.0)
        memory.remove()

    stack.callback(clean)


async def _welcome(launch: Launch, nats_url: str, wait_ready: Callable[[], Awaitable[None]]) -> None:
    """Show the URLs once a request would succeed."""
    await wait_ready()
    gateway = launch.gateway
    host = "127.0.0.1" if gateway.host in ("0.0.0.0", "::", "") else gateway.host
    ports = [gateway.port + i for i in range(launch.own.num_gateways)]
    for port in ports:
        await _until_ready(host, port)
    urls = [f"http://{host}:{port}" for port in ports]
    needs_key = bool(gateway.api_key or gateway.api_key_file)
    console.say(console.welcome(urls, nats_url, launch.tokenizer.served_model_name, needs_key=needs_key))


async def _until_ready(host: str, port: int) -> None:
    while True:
        if await _answers_ready(host, port):
            return
        await asyncio.sleep(READY_POLL_S)


async def _answers_ready(host: str, port: int) -> bool:
    """True unless GET /ready says 503 or nobody listens."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET /ready HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        status = await reader.readline()
        writer.close()
    except OSError:
        return False
    return status.split()[1:2] not in ([], [b"503"])


def _stop_on_signals(kill: Callable[[], None]) -> asyncio.Event:
    """An event that the first SIGINT or SIGTERM sets; the second calls `kill`."""
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            kill()
        asked.set()

    for sig in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sig, on_signal)
    return asked


if __name__ == "__main__":
    sys.exit(main())
