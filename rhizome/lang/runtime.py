"""A whole local deployment started from a program: `Runtime` for the language, `Engine` for plain generation.

Both start `python -m rhizome.launch_server` as a child process, which supervises the services; it ends with this
process at the latest.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rhizome.lang.backends.endpoint import RuntimeEndpoint
from rhizome.lang.errors import LanguageError
from rhizome.lang.loops import background_loop, wait_on
from rhizome.lang.streaming import following

_ROOT = Path(__file__).parents[2]
_POLL_S = 0.1
_STOP_TIMEOUT_S = 60.0


class Runtime:
    """Args:
    launch_timeout_s: longest wait until it answers; the first start may fetch the model.
    flags: of the launcher, with underscores: model_path="...", tp_size=2, disable_radix_cache=True, ...
    """

    def __init__(self, *, launch_timeout_s: float = 600.0, prefix_hints: bool = True, **flags: Any) -> None:
        flags.setdefault("port", _free_port())
        self.port = int(flags["port"])
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="rhizome-runtime-")
        self._log = Path(self._folder.name) / "launcher.log"
        with self._log.open("wb") as out:
            # In a session of its own: Ctrl-C is for the program, which then stops the deployment in order.
            self._child = subprocess.Popen(
                _tethered([sys.executable, "-m", "rhizome.launch_server", *_argv(flags)]), env=_environment(),
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        atexit.register(self.shutdown)
        try:
            self._wait_ready(launch_timeout_s)
        except BaseException:
            self.shutdown()
            raise
        self.endpoint = RuntimeEndpoint(self.url, prefix_hints=prefix_hints)

    def cache_prefix(self, prefix: str) -> None:
        """Compute a text that later prompts begin with."""
        from rhizome.lang.conversation import Prompt

        wait_on(background_loop(), self.endpoint.cache_prefix(Prompt(prefix)))

    def shutdown(self) -> None:
        """Stop all processes, in order. Does nothing the second time."""
        atexit.unregister(self.shutdown)
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._folder.cleanup()

    def _wait_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                raise LanguageError(f"the server ended with status {self._child.returncode}:\n{self._tail()}")
            try:
                with urllib.request.urlopen(self.url + "/ready", timeout=10):
                    return
            except (urllib.error.HTTPError, OSError):
                time.sleep(_POLL_S)
        raise LanguageError(f"the server is not ready after {timeout_s:g} s:\n{self._tail()}")

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()


class Engine(Runtime):
    """The same deployment for plain generation, with SGLang's methods."""

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        stream: bool = False,
        **fields: Any,
    ) -> Any:
        """An answer of /generate, a list for several prompts, an iterator of answers with `stream`."""
        body = _body(prompt, sampling_params, input_ids, fields)
        if stream:
            return self._stream({**body, "stream": True})
        return wait_on(background_loop(), self.endpoint.call(body))

    async def async_generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        stream: bool = False,
        **fields: Any,
    ) -> Any:
        """The same, awaited; with `stream` an async iterator."""
        body = _body(prompt, sampling_params, input_ids, fields)
        if stream:
            return self.endpoint.events({**body, "stream": True})
        return await self.endpoint.call(body)

    def flush_cache(self) -> Any:
        return wait_on(background_loop(), self.endpoint.flush_cache())

    def get_server_info(self) -> Any:
        return wait_on(background_loop(), self.endpoint.get_server_info())

    def _stream(self, body: dict[str, Any]) -> Iterator[Any]:
        loop, answers = background_loop(), self.endpoint.events(body)
        try:
            while (answer := wait_on(loop, following(answers))) is not None:  # type: ignore[arg-type]
                yield answer
        finally:
            wait_on(loop, answers.aclose())  # type: ignore[attr-defined]


def _body(prompt: Any, sampling_params: Any, input_ids: Any, fields: dict[str, Any]) -> dict[str, Any]:
    given = {"text": prompt, "input_ids": input_ids, "sampling_params": sampling_params, **fields}
    return {name: value for name, value in given.items() if value is not None}


def _tethered(argv: list[str]) -> list[str]:
    """The command tied to this process, where its main thread starts it (see rhizome/supervisor/tether.py)."""
    if threading.current_thread() is not threading.main_thread():
        return argv
    return [sys.executable, "-I", "-S", str(_ROOT / "rhizome" / "supervisor" / "tether.py"), str(os.getpid()), *argv]


def _environment() -> dict[str, str]:
    """This process's environment, with the source tree importable."""
    path = os.pathsep.join(part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path}


def _argv(flags: dict[str, Any]) -> list[str]:
    out: list[str] = []
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            out.append(flag)
        elif value is not False and value is not None:
            out += [flag, str(value)]
    return out


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
