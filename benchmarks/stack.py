"""What is measured: a whole deployment by the launcher, or real services with a scripted worker.

Both are context managers with a `url`, the processes by name, and nothing left behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
import psutil

from rhizome.models import DEFAULT_MODEL, resolve_model
from rhizome.nats_server import EmbeddedNats

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
_ROOT = Path(__file__).parents[1]


class StackFailed(Exception):
    """Something that was to be measured did not start; the message holds the end of its log."""


class Server:
    """An HTTP server of one or several child processes."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.closing = ExitStack()
        self._folder = Path(self.closing.enter_context(tempfile.TemporaryDirectory(prefix="rhizome-bench-")))
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def spawn(self, name: str, argv: Sequence[str], env: dict[str, str] | None = None) -> None:
        """Start a child; it is stopped, last started first, when the server is left."""
        with (self._folder / f"{name}.log").open("wb") as out:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=_ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )  # fmt: skip
        self._children[name] = child
        self.closing.callback(_end, child)

    def wait_ready(self, path: str) -> None:
        """Return when GET `path` answers 200.

        Raises:
            StackFailed: a child exited, or it took too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            for name, child in self._children.items():
                if child.poll() is not None:
                    raise StackFailed(f"{name} exited with {child.returncode}:\n{self._log_tail(name)}")
            try:
                with urllib.request.urlopen(self.url + path, timeout=5) as reply:
                    if reply.status == 200:
                        return
            except (urllib.error.HTTPError, OSError):
                time.sleep(0.05)
        logs = "\n".join(f"--- {name}\n{self._log_tail(name)}" for name in self._children)
        raise StackFailed(f"not ready after {START_TIMEOUT_S:g} s\n{logs}")

    def processes(self) -> dict[str, psutil.Process]:
        """The children by name."""
        return {name: psutil.Process(child.pid) for name, child in self._children.items()}

    def get(self, path: str) -> Any:
        """Decoded JSON of a GET."""
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            return orjson.loads(reply.read())

    def post(self, path: str, body: Any = None) -> Any:
        """Decoded JSON of a POST."""
        data = orjson.dumps(body if body is not None else {})
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as reply:
            return orjson.loads(reply.read())

    def flush_cache(self) -> None:
        """Empty the prefix cache. Requests that have just ended hold their pages for a step longer.

        Raises:
            TimeoutError: something is running.
        """
        for _ in range(200):
            if self.post("/flush_cache")["held_pages"] == 0:
                return
            time.sleep(0.02)
        raise TimeoutError("requests are running: the prefix cache cannot be emptied")

    def _log_tail(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, tb: TracebackType | None) -> None:
        self.closing.close()


class Deployment(Server):
    """`python -m rhizome.launch_server` with flags."""

    def __init__(self, *flags: str) -> None:
        super().__init__()
        self._flags = flags

    def __enter__(self) -> Deployment:
        try:
            self.spawn("launcher", [sys.executable, "-m", "rhizome.launch_server", f"--port={self.port}", *self._flags])
            self.wait_ready("/ready")
        except BaseException:
            self.closing.close()
            raise
        return self

    def processes(self) -> dict[str, psutil.Process]:
        """The launcher and everything it started, by name of the service."""
        out = super().processes()
        for child in out["launcher"].children(recursive=True):
            words = child.cmdline()
            module = next((w for w in words if w.startswith("services.")), "")
            name = module.removeprefix("services.") or Path(words[0]).name if words else "?"
            out[name if name not in out else f"{name}-{child.pid}"] = child
        return out

    def scheduler(self) -> dict[str, Any]:
        """The scheduler's own account of itself."""
        info: dict[str, Any] = self.get("/server_info")["schedulers"][0]
        return info


class ScriptedDeployment(Server):
    """Gateway, tokenizer, scheduler and NATS as they are, and a worker without a model."""

    def __init__(self, model_path: Path, *, worker: Sequence[str] = (), scheduler: Sequence[str] = ()) -> None:
        super().__init__()
        self._model_path, self._worker_flags, self._scheduler_flags = model_path, worker, scheduler

    def __enter__(self) -> ScriptedDeployment:
        try:
            self._start()
        except BaseException:
            self.closing.close()
            raise
        return self

    def _start(self) -> None:
        nats = self.closing.enter_context(EmbeddedNats())
        self._nats_pid = nats.pid
        model = f"--model-path={self._model_path}"
        for name, module, flags in (
            ("gateway", "services.gateway", [f"--port={self.port}"]),
            ("tokenizer", "services.tokenizer", [model]),
            ("scheduler", "services.scheduler", self._scheduler_flags),
            ("worker", "benchmarks.scripted_worker", self._worker_flags),
        ):
            self.spawn(name, [sys.executable, "-m", module, f"--nats-url={nats.url}", "--log-level=warning", *flags])
        self.wait_ready("/ready")

    def processes(self) -> dict[str, psutil.Process]:
        return {**super().processes(), "nats-server": psutil.Process(self._nats_pid)}

    def scheduler(self) -> dict[str, Any]:
        """The scheduler's own account of itself."""
        info: dict[str, Any] = self.get("/server_info")["schedulers"][0]
        return info


def model_folder(model_path: str = DEFAULT_MODEL) -> Path:
    """The model's directory, fetched if it is not there yet."""
    return resolve_model(model_path, lambda line: print(line, file=sys.stderr))


def free_port() -> int:
    """A loopback port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
