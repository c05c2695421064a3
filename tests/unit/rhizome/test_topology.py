from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import pytest

from rhizome.launch_config import SERVICE_CONFIGS, Launch, parse
from rhizome.supervisor import ProcessSpec
from rhizome.topology import child_environment, threads_per_rank, units_of
from shared.config import add_flags, from_namespace

URL = "nats://127.0.0.1:4999"


def processes(launch: Launch) -> dict[str, ProcessSpec]:
    return {process.name: process for unit in units_of(launch, URL) for process in unit.members()}


def config_of(process: ProcessSpec) -> Any:
    """What the process would parse from its arguments."""
    assert process.argv[1:3] == ("-m", f"services.{process.service}")
    parser = argparse.ArgumentParser()
    cls = SERVICE_CONFIGS[process.service]
    add_flags(parser, cls)
    return from_namespace(cls, parser.parse_args(process.argv[3:]))


def test_one_of_each_by_default() -> None:
    assert list(processes(parse([]))) == ["gateway-0", "tokenizer-0", "vision-0", "scheduler-0", "worker-0"]


def test_each_process_gets_its_configuration_back_from_its_arguments() -> None:
    launch = parse(
        ["--num-gateways", "2", "--num-tokenizers", "2", "--port", "31000", "--api-key", "a b", "--api-key", "c",
         "--disable-radix-cache", "--chunked-prefill-size", "64", "--page-size", "1", "--temperature-is-no-flag"][:-1]
    )  # fmt: skip
    found = {name: config_of(process) for name, process in processes(launch).items()}
    for i in range(2):
        common = dataclasses.replace(launch.gateway.common, name=f"gateway-{i}", nats_url=URL)
        assert found[f"gateway-{i}"] == dataclasses.replace(launch.gateway, port=31000 + i, common=common)
        assert found[f"tokenizer-{i}"].common.name == f"tokenizer-{i}"
    assert found["gateway-0"].api_key == ("a b", "c")
    assert found["scheduler-0"].disable_radix_cache
    assert found["scheduler-0"].chunked_prefill_size == 64
    assert found["worker-0"].page_size == 1


def test_the_ranks_of_an_engine_are_one_unit_and_meet_at_a_new_port_each_time() -> None:
    launch = parse(["--num-engines", "2", "--tp-size", "3"])
    units = {unit.name: unit for unit in units_of(launch, URL)}
    first, again = ([config_of(process) for process in units["worker-1"].members()] for _ in range(2))
    assert [c.tp_rank for c in first] == [0, 1, 2]
    assert [c.common.name for c in first] == ["worker-1", "worker-1-rank1", "worker-1-rank2"]
    assert len({c.dist_init_addr for c in first}) == 1
    assert first[0].dist_init_addr != again[0].dist_init_addr
    assert first[0].num_threads == threads_per_rank(6)


def test_engines_take_the_gpus_one_after_the_other() -> None:
    launch = parse(["--num-engines", "2", "--tp-size", "2", "--base-gpu-id", "1"])
    found = {name: config_of(process) for name, process in processes(launch).items() if name.startswith("worker")}
    assert {name: config.base_gpu_id + config.tp_rank for name, config in found.items()} == {
        "worker-0": 1, "worker-0-rank1": 2, "worker-1": 3, "worker-1-rank1": 4,
    }  # fmt: skip


def test_an_engine_of_one_process_needs_no_meeting_place() -> None:
    assert config_of(processes(parse([]))["worker-0"]).dist_init_addr == ""


def test_services_stop_from_the_clients_inwards() -> None:
    units = sorted(units_of(parse([]), URL), key=lambda unit: unit.stage)
    assert [unit.name for unit in units] == ["gateway-0", "tokenizer-0", "vision-0", "scheduler-0", "worker-0"]
    assert len({unit.stage for unit in units}) == 5


def test_vision_may_be_several_or_none() -> None:
    assert [name for name in processes(parse(["--num-vision", "2"])) if "vision" in name] == ["vision-0", "vision-1"]
    assert not [name for name in processes(parse(["--num-vision", "0"])) if "vision" in name]


def test_an_option_taken_from_the_environment_does_not_reach_a_service_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHIZOME_PORT", "31777")
    monkeypatch.setenv("RHIZOME_HOME", "/models")
    process = processes(parse(["--port", "30000"]))["gateway-0"]
    assert "RHIZOME_PORT" not in process.env
    assert process.env["RHIZOME_HOME"] == "/models"


def test_children_find_this_source_tree_first() -> None:
    assert child_environment({"PYTHONPATH": "/theirs"})["PYTHONPATH"].endswith(":/theirs")
