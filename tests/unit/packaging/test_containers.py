"""Dockerfiles and the compose file, read as text: what is copied, what is started, what is said to whom."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from rhizome.launch_config import SERVICE_CONFIGS
from rhizome.nats_server import OBJECTS_BYTES
from shared import wire
from shared.config import flag_name, flat_fields
from tests.unit.packaging.project import ROOT, SERVICES, metadata

BUILD_FILES = {"pyproject.toml", "constraints.txt"}
COMPOSE_SERVICES = {
    "gateway": "gateway", "tokenizer": "tokenizer", "scheduler": "scheduler",
    "vision-cpu": "vision", "vision-gpu": "vision", "worker-cpu": "worker", "worker-gpu": "worker",
}  # fmt: skip


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continuation lines joined."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    return [(pair[0], pair[1]) for pair in pairs]


def copied(path: Path) -> set[str]:
    return {source for name, args in instructions(path) if name == "COPY" for source in args.split()[:-1]}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_holds_only_its_service_and_shared(service: str) -> None:
    sources = copied(ROOT / "services" / service / "Dockerfile")
    assert sources == BUILD_FILES | {"shared/", "services/__init__.py", f"services/{service}/"}


def test_the_model_image_holds_only_the_fetcher_and_shared() -> None:
    assert copied(ROOT / "rhizome/models/Dockerfile") == BUILD_FILES | {
        "shared/",
        "rhizome/__init__.py",
        "rhizome/models/",
    }


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_installs_its_extra_from_pinned_versions_and_runs_its_service_as_a_user(service: str) -> None:
    steps = instructions(ROOT / "services" / service / "Dockerfile")
    installs = [args for name, args in steps if name == "RUN" and f"'.[{service}]'" in args]
    assert len(installs) == 1
    assert "-c constraints.txt" in installs[0]
    entrypoints = [" ".join(json.loads(args)) for name, args in steps if name == "ENTRYPOINT"]
    assert entrypoints
    assert all(f"python -m services.{service}" in line for line in entrypoints)
    assert ("USER", "rhizome") in steps
    assert service in metadata()["optional-dependencies"]


def test_everything_that_an_image_copies_is_let_through_to_the_builder() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    everything = {source for path in ROOT.glob("*/*/Dockerfile") for source in copied(path)}
    assert {source.split("/")[0] for source in everything} == let_through
    assert all((ROOT / name).exists() for name in everything)


@pytest.mark.parametrize("name", COMPOSE_SERVICES)
def test_compose_starts_every_service_with_flags_that_exist(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    kind = COMPOSE_SERVICES[name]
    assert service["build"]["dockerfile"] == f"services/{kind}/Dockerfile"
    flags = {flag_name(f.name) for f, _ in flat_fields(SERVICE_CONFIGS[kind])}
    assert {argument.split("=")[0] for argument in service["command"]} <= flags
    assert "--nats-url=nats://nats:4222" in service["command"]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["depends_on"]["nats"] == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", ["tokenizer", "vision-cpu", "vision-gpu", "worker-cpu", "worker-gpu"])
def test_who_needs_the_model_waits_until_it_is_there(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["depends_on"]["model"] == {"condition": "service_completed_successfully"}
    assert "models:/cache:ro" in service["volumes"]
    assert "--model-path=/cache/current" in service["command"]


def test_scaled_gateways_get_ports_of_their_own_and_no_service_fixes_its_container_name(
    compose: dict[str, Any],
) -> None:
    assert compose["services"]["gateway"]["ports"] == ["30000-30009:30000"]
    assert not [name for name, service in compose["services"].items() if "container_name" in service]


def test_gateways_vision_and_workers_of_a_host_share_memory_at_the_same_path(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in ("gateway", "vision-cpu", "vision-gpu"):
        assert "media:/run/rhizome" in services[name]["volumes"]
        assert "--shared-memory-dir=/run/rhizome" in services[name]["command"]
    for name in ("worker-cpu", "worker-gpu"):
        assert "media:/run/rhizome:ro" in services[name]["volumes"]
    assert compose["volumes"]["media"]["driver_opts"]["type"] == "tmpfs"


@pytest.mark.parametrize("service", ["gateway", "tokenizer", "vision", "worker"])
def test_no_name_is_fixed_so_that_replicas_have_names_of_their_own_hosts(service: str) -> None:
    steps = instructions(ROOT / "services" / service / "Dockerfile")
    assert not any("--name" in args for name, args in steps if name == "ENTRYPOINT")


def test_the_profiles_choose_between_cpu_and_gpu(compose: dict[str, Any]) -> None:
    profiles = {name: service["profiles"] for name, service in compose["services"].items() if "profiles" in service}
    assert profiles == {
        "worker-cpu": ["cpu"], "worker-gpu": ["gpu"], "vision-cpu": ["vision-cpu"], "vision-gpu": ["vision-gpu"],
    }  # fmt: skip
    targets = {name: compose["services"][name]["build"]["target"] for name in profiles}
    assert targets == {"worker-cpu": "cpu", "worker-gpu": "gpu", "vision-cpu": "cpu", "vision-gpu": "gpu"}
    for name in ("worker", "vision"):
        steps = instructions(ROOT / "services" / name / "Dockerfile")
        assert set(targets.values()) <= {args.split()[-1] for step, args in steps if step == "FROM"}
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text()


def test_nats_takes_messages_as_large_as_ours(compose: dict[str, Any]) -> None:
    assert f"max_payload: {wire.MAX_PAYLOAD_BYTES}" in compose["configs"]["nats"]["content"]
    assert compose["services"]["nats"]["image"].startswith("nats:")


def test_nats_keeps_objects_as_the_embedded_server_does(compose: dict[str, Any]) -> None:
    assert f"max_memory_store: {OBJECTS_BYTES}" in compose["configs"]["nats"]["content"]


def test_named_volumes_and_configs_are_declared(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(compose["volumes"])
        assert {config["source"] for config in service.get("configs", [])} <= set(compose["configs"])


def test_files_that_are_not_python_are_installed_too() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    data = [
        path.relative_to(ROOT).as_posix()
        for folder in ("services", "shared", "rhizome")
        for path in (ROOT / folder).rglob("*.*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert [path for path in data if not any(fnmatch(path, pattern) for pattern in patterns)] == []
