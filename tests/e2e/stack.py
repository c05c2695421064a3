"""A whole Rhizome started the way a user starts it: `python -m rhizome.launch_server`, all services as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

START_TIMEOUT_S = 600.0  # the first start may fetch the model
STOP_TIMEOUT_S = 60.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Stack:
    """One launcher process and its children."""

    def __init__(self, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        nats_port = free_port()
        self.nats_url = f"nats://127.0.0.1:{nats_port}"
        self._folder = tempfile.TemporaryDirectory(prefix="rhizome-e2e-")
        self.log_path = Path(self._folder.name) / "launcher.log"
        with self.log_path.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rhizome.launch_server", "--port", str(self.port),
                 "--nats-port", str(nats_port), *flags],
                stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the launcher exited with {self.process.poll()}:\n{self.log[-4000:]}"
            if self.status("/ready") == 200:
                return
            time.sleep(0.1)
        raise AssertionError(f"not ready after {timeout_s:g} s:\n{self.log[-4000:]}")

    def status(self, path: str) -> int:
        """HTTP status of a GET; 0 when nothing answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as fault:
            return fault.code
        except OSError:
            return 0

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            return json.load(reply)

    def post(self, path: str, body: Any, timeout_s: float = 120.0) -> tuple[int, Any]:
        """(status, decoded JSON) of a POST; `body` may be bytes to be sent as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                return int(reply.status), json.load(reply)
        except urllib.error.HTTPError as fault:
            return fault.code, json.load(fault)

    def chat(self, text: str, **fields: Any) -> Any:
        """One greedy chat turn; the decoded response."""
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 16, **fields}
        status, answer = self.post("/v1/chat/completions", body)
        assert status == 200, answer
        return answer

    def engine(self) -> dict[str, Any]:
        """EngineStats of the only engine."""
        return _engines(self.get("/server_info"))[0]

    def pids(self, module: str) -> list[int]:
        """Processes of this stack that run `python -m <module>`."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [c.pid for c in children if module in _cmdline(c)]

    def stop(self) -> int:
        """Ctrl-C; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._folder.cleanup()
        return int(self.process.returncode)


def _cmdline(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _engines(info: Any) -> list[dict[str, Any]]:
    """Every object in the document that looks like EngineStats."""
    if isinstance(info, dict):
        if "total_pages" in info and "free_pages" in info:
            return [info]
        return [e for v in info.values() for e in _engines(v)]
    if isinstance(info, list):
        return [e for v in info for e in _engines(v)]
    return []
