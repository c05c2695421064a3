"""The supervisor with small real child processes on a real NATS server."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from rhizome.supervisor import ProcessSpec, RestartPolicy, StartFailed, Supervisor, UnitSpec
from shared import messages as m
from shared import wire
from shared.bus import NatsBus
from shared.subjects import Subjects

FAKE = Path(__file__).with_name("fake_service.py")
ROOT = Path(__file__).parents[4]
QUICK = RestartPolicy(first_delay_s=0.01, max_delay_s=0.05)


class Stage:
    """A supervisor under test: what it said, what its children printed, what it announced."""

    def __init__(self, nats_url: str, bus: NatsBus) -> None:
        self.deployment = "t" + secrets.token_hex(4)
        self.subjects = Subjects(self.deployment)
        self.said: list[str] = []
        self.output: list[tuple[str, str]] = []
        self.goodbyes: list[m.Goodbye] = []
        self._url, self._bus = nats_url, bus
        self._changed = asyncio.Event()
        self.supervisor: Supervisor | None = None

    def process(self, name: str, behaviour: str = "serve") -> ProcessSpec:
        argv = (sys.executable, str(FAKE), self._url, self.deployment, name, behaviour)
        return ProcessSpec(name, name.split("-")[0], argv, {**os.environ, "PYTHONPATH": str(ROOT)})

    def unit(self, *names: str, behaviour: str = "serve", stage: int = 0) -> UnitSpec:
        return UnitSpec(names[0], stage, lambda: [self.process(name, behaviour) for name in names])

    async def start(self, *units: UnitSpec, stop_timeout_s: float = 10.0) -> Supervisor:
        async def on_goodbye(data: bytes, _: str) -> None:
            self.goodbyes.append(wire.decode(m.Goodbye, data))
            self._changed.set()

        await self._bus.subscribe(self.subjects.goodbye, on_goodbye)
        self.supervisor = Supervisor(
            units, self._bus, self.subjects, self._say, self._sink, QUICK, stop_timeout_s=stop_timeout_s
        )
        await self.supervisor.start()
        return self.supervisor

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was said, printed or announced fulfils the condition."""
        while not condition():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 30)

    def pids_of(self, name: str) -> list[int]:
        """Process ids in the order in which the process `name` became ready."""
        return [int(line.rsplit(" ", 1)[1]) for line in self.said if line.startswith(f"✓ {name} ")]

    def _say(self, line: str) -> None:
        self.said.append(line)
        self._changed.set()

    def _sink(self, name: str, line: str) -> None:
        self.output.append((name, line))
        self._changed.set()


@pytest.fixture
async def stage(nats_url: str, nats_bus: NatsBus) -> AsyncIterator[Stage]:
    made = Stage(nats_url, nats_bus)
    yield made
    if made.supervisor is not None:
        made.supervisor.kill()
        await made.supervisor.stop()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_every_process_is_reported_ready_once_by_its_heartbeat(stage: Stage) -> None:
    supervisor = await stage.start(stage.unit("gateway-0"), stage.unit("tokenizer-0"))
    await supervisor.wait_ready()
    assert len(stage.pids_of("gateway-0")) == len(stage.pids_of("tokenizer-0")) == 1
    assert all(alive(pid) for pid in stage.pids_of("gateway-0"))


async def test_a_killed_process_is_announced_and_started_again(stage: Stage) -> None:
    supervisor = await stage.start(stage.unit("gateway-0"), stage.unit("tokenizer-0"))
    await supervisor.wait_ready()
    (pid,) = stage.pids_of("gateway-0")
    os.kill(pid, signal.SIGKILL)
    await stage.until(lambda: len(stage.pids_of("gateway-0")) == 2 and bool(stage.goodbyes))
    assert stage.pids_of("gateway-0")[1] != pid
    assert len(stage.pids_of("tokenizer-0")) == 1, "the other service was left alone"
    (bye,) = stage.goodbyes
    assert (bye.service, bye.name, bye.reason) == ("gateway", "gateway-0", "killed by SIGKILL")
    assert bye.id == ""


async def test_all_ranks_of_an_engine_start_again_when_one_dies_with_a_new_rendezvous(stage: Stage) -> None:
    starts = itertools.count()

    def members() -> list[ProcessSpec]:
        epoch = next(starts)
        return [stage.process(f"worker-{epoch}-{rank}") for rank in range(2)]

    supervisor = await stage.start(UnitSpec("engine-0", 0, members))
    await supervisor.wait_ready()
    first, second = stage.pids_of("worker-0-0")[0], stage.pids_of("worker-0-1")[0]
    os.kill(second, signal.SIGKILL)
    await stage.until(lambda: bool(stage.pids_of("worker-1-0") and stage.pids_of("worker-1-1")))
    assert not alive(first)
    await stage.until(lambda: len(stage.goodbyes) == 2)
    assert {bye.name: bye.reason for bye in stage.goodbyes} == {
        "worker-0-1": "killed by SIGKILL",
        "worker-0-0": "ended with worker-0-1",
    }


async def test_a_process_that_never_gets_ready_makes_the_start_fail_with_its_last_words(stage: Stage) -> None:
    supervisor = await stage.start(stage.unit("worker-0", behaviour="crash"))
    fault = await supervisor.wait_failed()
    assert isinstance(fault, StartFailed)
    assert "worker-0 cannot start (exit status 3)" in fault.message
    assert "the disk is on fire" in fault.message
    assert stage.output.count(("worker-0", "the disk is on fire")) == QUICK.max_start_failures


async def test_a_usage_error_is_not_tried_again(stage: Stage) -> None:
    supervisor = await stage.start(stage.unit("worker-0", behaviour="usage"))
    assert "no such flag" in (await supervisor.wait_failed()).message
    assert len(stage.output) == 1


async def test_stages_stop_one_after_the_other_each_by_itself(stage: Stage) -> None:
    supervisor = await stage.start(stage.unit("worker-0", stage=3), stage.unit("gateway-0", stage=0))
    await supervisor.wait_ready()
    await supervisor.stop()
    assert stage.output == [("gateway-0", "gateway-0 stopped"), ("worker-0", "worker-0 stopped")]
    assert not any(line.startswith(("✗", "!")) for line in stage.said)
    assert not any(alive(pid) for pid in stage.pids_of("worker-0") + stage.pids_of("gateway-0"))


async def test_a_process_deaf_to_sigterm_is_killed_after_the_bound(stage: Stage) -> None:
    supervisor = await stage.start(stage.unit("gateway-0", behaviour="deaf"), stop_timeout_s=0.1)
    await supervisor.wait_ready()
    await supervisor.stop()
    assert any("did not stop within 0.1 s, killed" in line for line in stage.said)
    assert not alive(stage.pids_of("gateway-0")[0])


async def test_what_a_process_started_ends_with_it(stage: Stage) -> None:
    supervisor = await stage.start(stage.unit("gateway-0", behaviour="parent"))
    await supervisor.wait_ready()
    grandchild = int(stage.output[0][1].split()[1])
    assert alive(grandchild)
    os.kill(stage.pids_of("gateway-0")[0], signal.SIGKILL)
    await stage.until(lambda: len(stage.pids_of("gateway-0")) == 2)
    assert not alive(grandchild)


async def test_kill_ends_everything_at_once(stage: Stage) -> None:
    supervisor = await stage.start(stage.unit("gateway-0", behaviour="deaf"))
    await supervisor.wait_ready()
    supervisor.kill()
    await supervisor.stop()
    assert not alive(stage.pids_of("gateway-0")[0])


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_no_child_survives_a_killed_launcher() -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c",
         "import subprocess, sys, time; from rhizome.supervisor import tether; "
         "p = subprocess.Popen(tether.command([sys.executable, '-c', 'import time; print(1, flush=True); "
         "time.sleep(600)']), stdout=subprocess.PIPE, start_new_session=True); p.stdout.readline(); "
         "print(p.pid, flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert launcher.stdout is not None
    child = psutil.Process(int(launcher.stdout.readline()))
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    _, still_there = psutil.wait_procs([child], timeout=30)
    assert not [p for p in still_there if p.status() != psutil.STATUS_ZOMBIE]
