"""kill -9 of any one service: requests end or go on, never hang, and the next one succeeds."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack

SERVICES = ["services.gateway", "services.tokenizer", "services.scheduler", "services.worker", "nats-server"]


@pytest.fixture(scope="module")
def fragile() -> Iterator[Stack]:
    """A stack of its own: crashes must not disturb the other tests."""
    running = Stack()
    try:
        running.wait_ready()
        yield running
    finally:
        assert running.stop() == 0, "the launcher did not end in order"


def _stream_to_the_end(url: str, outcome: list[str]) -> None:
    """Read a long stream until it ends somehow; what happened goes to `outcome`."""
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True, "stream": True,
                       "temperature": 0}).encode()  # fmt: skip
    request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            outcome.append("started")
            for line in reply:
                if b'"error"' in line:
                    outcome.append("error")
                elif b"[DONE]" in line:
                    outcome.append("done")
    except urllib.error.HTTPError as fault:
        outcome.append(f"status {fault.code}")
    except OSError:
        outcome.append("connection lost")
    outcome.append("over")


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_comes_back_and_no_request_hangs(fragile: Stack, service: str) -> None:
    fragile.wait_ready(60)
    outcome: list[str] = []
    reader = threading.Thread(target=_stream_to_the_end, args=(fragile.url, outcome))
    reader.start()
    deadline = time.monotonic() + 60
    while not outcome and time.monotonic() < deadline:
        time.sleep(0.02)
    victims = fragile.pids(service)
    assert victims, f"no process runs {service}"
    os.kill(victims[0], signal.SIGKILL)
    reader.join(120)
    assert outcome[-1:] == ["over"], f"the stream hangs after {service} was killed: {outcome}"
    _next_request_succeeds(fragile, service, victims[0])


def _next_request_succeeds(stack: Stack, service: str, killed: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if [p for p in stack.pids(service) if p != killed] and stack.status("/ready") == 200:
            body = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4, "temperature": 0}
            try:
                status, answer = stack.post("/v1/chat/completions", body)
            except OSError:
                continue
            if status == 200:
                assert answer["choices"][0]["message"]["content"]
                return
            assert status == 503, answer
        time.sleep(0.2)
    raise AssertionError(f"no request succeeded within 90 s after {service} was killed:\n{stack.log[-3000:]}")
