"""Which processes make a deployment, with which arguments, and in which order they stop."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from pathlib import Path
from typing import Any

from rhizome.launch_config import Launch
from rhizome.supervisor import ProcessSpec, UnitSpec
from shared.config import to_argv

_ROOT = Path(__file__).parents[1]
_STOP_ORDER = ("gateway", "tokenizer", "vision", "scheduler", "worker")
"""From the clients inwards: what is accepted is finished before the service that does the work goes."""


def units_of(launch: Launch, nats_url: str) -> list[UnitSpec]:
    """Every unit of the deployment; nothing is started."""
    own, gateway = launch.own, launch.gateway
    make = _Maker(nats_url)
    units = [
        make.single("gateway", i, dataclasses.replace(gateway, port=gateway.port + i)) for i in range(own.num_gateways)
    ]
    units += [make.single("tokenizer", i, launch.tokenizer) for i in range(own.num_tokenizers)]
    units += [make.single("vision", i, launch.vision) for i in range(own.num_vision)]
    units.append(make.single("scheduler", 0, launch.scheduler))
    units += [make.engine(i, launch) for i in range(own.num_engines)]
    return units


class _Maker:
    """Turns configurations into process specifications that share one environment and one bus."""

    def __init__(self, nats_url: str) -> None:
        self._nats_url = nats_url
        self._env = child_environment(dict(os.environ))

    def single(self, service: str, index: int, config: Any) -> UnitSpec:
        process = self.process(service, f"{service}-{index}", config)
        return UnitSpec(process.name, _STOP_ORDER.index(service), lambda: [process])

    def engine(self, index: int, launch: Launch) -> UnitSpec:
        name, tp_size = f"worker-{index}", launch.own.tp_size
        config = launch.worker
        config = dataclasses.replace(config, base_gpu_id=config.base_gpu_id + index * tp_size)
        if not config.num_threads:
            config = dataclasses.replace(config, num_threads=threads_per_rank(launch.own.num_engines * tp_size))

        def members() -> list[ProcessSpec]:
            meet = f"127.0.0.1:{free_port()}" if tp_size > 1 else ""
            return [
                self.process(
                    "worker", f"{name}-rank{rank}" if rank else name, config, tp_rank=rank, dist_init_addr=meet
                )
                for rank in range(tp_size)
            ]

        return UnitSpec(name, _STOP_ORDER.index("worker"), members)

    def process(self, service: str, name: str, config: Any, **changes: Any) -> ProcessSpec:
        common = dataclasses.replace(config.common, name=name, nats_url=self._nats_url)
        own = dataclasses.replace(config, common=common, **changes)
        return ProcessSpec(name, service, (sys.executable, "-m", f"services.{service}", *to_argv(own)), self._env)


def child_environment(env: dict[str, str]) -> dict[str, str]:
    """The launcher's environment without its flags' defaults, and with this source tree importable.

    A service gets its options as arguments, which leave out what equals the built-in default; a `RHIZOME_` variable
    that the launcher has already taken into account must not count a second time.
    """
    out = {key: value for key, value in env.items() if not key.startswith("RHIZOME_") or key == "RHIZOME_HOME"}
    out["PYTHONPATH"] = os.pathsep.join(part for part in (str(_ROOT), env.get("PYTHONPATH", "")) if part)
    return out


def threads_per_rank(num_ranks: int) -> int:
    """CPU threads for each of the ranks on this machine, so that all together use every core once."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // num_ranks)


def free_port() -> int:
    """A loopback port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
